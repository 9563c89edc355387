"""What the other files of a folder are, by their names: a record's own, or one of few kinds."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ecgfast.errors import FormatError
from ecgfast.ingest import suffixes
from ecgfast.ingest.files import open_regular
from ecgfast.ingest.numpy_arrays import SHARED_SIDECAR

SIGNALS, SIDECARS, ANNOTATIONS = "signal files", "sidecars", "annotations"
SEGMENTS = "segments of joined records"
BELONGING = (SIGNALS, SIDECARS, ANNOTATIONS, SEGMENTS)

XML, DICOM, SCP = "XML", "DICOM", "SCP-ECG"
OTHER_SIGNALS, PICTURES, TEXTS = "other signal formats", "PDFs and images", "tables and texts"
ARCHIVES, OTHER = "archives", "other files"
LOST_SIGNALS = "signal files without a header"
LOST_ANNOTATIONS = "annotations without a header"
HIDDEN, HIDDEN_FOLDERS = "hidden files", "hidden folders"
LINKS, BROKEN_LINKS = "links to folders", "broken links"
NAMED_FOLDERS, SPECIAL = "folders named as records", "pipes, sockets and devices"
TOO_DEEP = "folders whose path is too long"
# A fixed list: names, and even odd suffixes, can hold the name of a patient.
PASSED_OVER = (
    *(XML, DICOM, SCP, OTHER_SIGNALS, LOST_SIGNALS, LOST_ANNOTATIONS, PICTURES, TEXTS, ARCHIVES),
    *(HIDDEN, HIDDEN_FOLDERS, LINKS, BROKEN_LINKS, NAMED_FOLDERS, TOO_DEEP, SPECIAL, OTHER),
)

_KINDS = {
    XML: "xml",
    DICOM: "dcm dicom dic ima",
    SCP: "scp",
    OTHER_SIGNALS: "edf bdf gdf h5 hdf5 hl7 mwf mfer ecg",
    PICTURES: "pdf png jpg jpeg gif bmp tif tiff svg ps eps",
    TEXTS: "csv tsv txt md rst rtf log htm html doc docx xls xlsx ods parquet json yml yaml",
    ARCHIVES: "zip gz tgz tar bz2 xz zst 7z rar",
}
_KIND_OF = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}
_KIND_OF_NAME = {
    "DICOMDIR": DICOM,
    **dict.fromkeys(("RECORDS", "ANNOTATORS", "SHA256SUMS", "MD5SUMS", "LICENSE", "README"), TEXTS),
}
_SIGNAL = {"dat", "mat", "xyz", "flac", "bin", "raw", "sig"} | {f"d{n}" for n in range(100)}
# The annotators of PhysioNet's ECG databases; any word can be one, but few are.
_ANNOTATOR = {
    *("atr", "ann", "ari", "apn", "aux", "ecg", "event", "man", "mrk", "pu", "pu0", "pu1", "pwave"),
    *("qrs", "gqrs", "sqrs", "wqrs", "xws", "q1c", "q2c", "qt1", "qt2", "st", "sta", "stb", "stc"),
    *("i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6"),
}
_FIRST_WORD = re.compile(r"^[ \t]*([^\s#]\S*)", re.MULTILINE)
LONGEST_PATH = 4096  # bytes, its end marked by a zero: PATH_MAX of Linux
_HEADER_BYTES = 1 << 20  # a day in segments of a few seconds


@dataclass(frozen=True, kw_only=True)
class FolderContent:
    """The files of one folder that name no record.

    Attributes:
        belonging: files that belong to records of the folder, by kind.
        segments: names of headers among them that are parts of another record of the folder.
        passed_over: names of all others, by kind.
    """

    belonging: Counter[str]
    segments: set[str]
    passed_over: dict[str, list[str]]


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in lower case without its dot, "" for none."""
    dot = name.rfind(".")
    return name[dot + 1 :].lower() if dot > 0 else ""


def kind_of(name: str) -> str:
    """Return the kind of a file that no record claims, one of `PASSED_OVER`."""
    suffix = suffix_of(name)
    if suffix in _SIGNAL:
        return LOST_SIGNALS
    if suffix in _KIND_OF:
        return _KIND_OF[suffix]
    return LOST_ANNOTATIONS if suffix in _ANNOTATOR else _KIND_OF_NAME.get(name, OTHER)


def sort_names(folder: str, names: Mapping[str, Sequence[str]]) -> FolderContent:
    """Find out of every file of a folder to which record it belongs, or what it is.

    A signal file belongs to the header of its own stem. Only headers without one are opened, for
    the names that they hold: several records can share one file, and a joined record names its
    segments, which are records' headers but none of their own.

    Args:
        folder: path of the folder.
        names: regular files of the folder by suffix (`suffix_of`), those of records too.
    """
    headers, arrays = _stems(names.get("hea", ())), _stems(names.get("npy", ()))
    belonging: Counter[str] = Counter()
    passed_over: defaultdict[str, list[str]] = defaultdict(list)
    alone = headers  # headers without a signal file of their own stem
    of_records = suffixes()
    for suffix, members in names.items():
        if f".{suffix}" in of_records:
            continue
        if suffix in _SIGNAL:
            alone = alone - _stems(members)
            kind, owners = SIGNALS, headers
        elif suffix == "json":
            kind, owners = SIDECARS, arrays
        elif suffix in _ANNOTATOR:
            kind, owners = ANNOTATIONS, headers
        else:
            kind, owners = "", set()
        rest = [name for name in members if name[: name.rfind(".")] not in owners]
        if kind == SIDECARS and arrays and SHARED_SIDECAR in rest:
            rest.remove(SHARED_SIDECAR)
        belonging[kind] += len(members) - len(rest)
        for name in rest:
            passed_over[kind_of(name)].append(name)
    words = _first_words(folder, names["hea"], alone) if alone else {}
    named = {word for each in words.values() for word in each}
    for kind in (LOST_SIGNALS, OTHER):
        rest = [name for name in passed_over[kind] if name not in named]
        belonging[SIGNALS] += len(passed_over[kind]) - len(rest)
        passed_over[kind] = rest
    segments = _segments(words) & set(names.get("hea", ()))
    belonging[SEGMENTS] += len(segments)
    return FolderContent(
        belonging=+belonging,
        segments=segments,
        passed_over={kind: each for kind, each in passed_over.items() if each},
    )


def suffixes_in_words(suffixes: Counter[str]) -> str:
    """Return counts of suffixes as text, the most frequent first: "8 .xml, 3 .dcm"."""
    words = [
        f"{count:,} {f'.{suffix}' if suffix else 'without suffix'}"
        for suffix, count in sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    ]
    shown, rest = words[:5], len(words) - 5
    return ", ".join(shown) + (f" and {rest} other suffixes" if rest > 0 else "")


def _stems(names: Iterable[str]) -> set[str]:
    return {name[: name.rfind(".")] for name in names}


def _first_words(folder: str, headers: Iterable[str], stems: set[str]) -> dict[str, list[str]]:
    """Stem -> first words of the lines of its header, the names of signal files among them.

    Only of headers that have one of the stems. One that cannot be read is refused later.
    """
    words: dict[str, list[str]] = {}
    for header in headers:
        stem = header[: header.rfind(".")]
        if stem in stems:
            try:
                with open_regular(os.path.join(folder, header)) as file:
                    text = file.read(_HEADER_BYTES).decode("utf-8", errors="replace")
            except (OSError, FormatError):
                continue
            words[stem] = _FIRST_WORD.findall(text)
    return words


def _segments(words: Mapping[str, list[str]]) -> set[str]:
    """Names of the headers of segments. No record is both: segments are not joined themselves."""
    joined: dict[str, list[str]] = {}
    for stem, (first, *others) in ((stem, each or [""]) for stem, each in words.items()):
        _, _, count = first.partition("/")  # NAME/SEGMENTS
        if count.isdecimal():
            joined[stem] = others[: int(count[:9])]
    return {f"{name}.hea" for others in joined.values() for name in others if name not in joined}
