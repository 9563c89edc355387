"""What a file is: of a format, or of a kind that is passed over, by its first bytes or its name."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ecgfast.errors import FormatError
from ecgfast.ingest import format_of, own_suffixes, owner_of
from ecgfast.ingest.files import is_of_one_file
from ecgfast.ingest.format import Format, read_head
from ecgfast.ingest.wfdb_folders import ANNOTATOR_SUFFIXES, SIGNAL_SUFFIXES

XML, DICOM, SCP = "XML", "DICOM", "SCP-ECG"
OTHER_SIGNALS, TEXTS = "other signal formats", "tables and texts"
HOLTERS = "Holter recordings (no resting ECG)"
PDFS, IMAGES = "PDFs (no resting ECG)", "images (no resting ECG)"
ARCHIVES, OTHER = "archives", "other files"
LOST_SIGNALS = "signal files without a header"
LOST_ANNOTATIONS = "annotations without a header"
HIDDEN, HIDDEN_FOLDERS = "hidden files", "hidden folders"
LINKS, BROKEN_LINKS = "links to folders", "broken links"
NAMED_FOLDERS, SPECIAL = "folders named as records", "pipes, sockets and devices"
TOO_DEEP = "folders whose path is too long"
UNREADABLE = "files that cannot be opened"
# A fixed list: names, and even odd suffixes, can hold the name of a patient.
PASSED_OVER = (
    *(XML, DICOM, SCP, OTHER_SIGNALS, HOLTERS, LOST_SIGNALS, LOST_ANNOTATIONS, PDFS, IMAGES, TEXTS),
    *(ARCHIVES, HIDDEN, HIDDEN_FOLDERS, LINKS, BROKEN_LINKS, NAMED_FOLDERS, TOO_DEEP, SPECIAL),
    *(UNREADABLE, OTHER),
)

# First bytes, at an offset. ISHNE: Badilini, "The ISHNE Holter standard output file format", 1998.
_MAGIC = (
    *((0, b"ISHNE1.0", HOLTERS), (0, b"ANN  1.0", HOLTERS)),
    *((0, b"%PDF-", PDFS), (0, b"%!PS", PDFS)),
    *((0, b"\x89PNG\r\n", IMAGES), (0, b"\xff\xd8\xff", IMAGES), (0, b"GIF8", IMAGES)),
    *((0, b"II*\0", IMAGES), (0, b"MM\0*", IMAGES)),
    *((128, b"DICM", DICOM), (16, b"SCPECG", SCP)),
)
_KINDS = {
    XML: "xml",
    DICOM: "dcm dicom dic ima",
    SCP: "scp",
    HOLTERS: "hol",
    OTHER_SIGNALS: "edf bdf gdf h5 hdf5 hl7 mwf mfer ecg",
    PDFS: "pdf ps eps",
    IMAGES: "png jpg jpeg gif bmp tif tiff svg",
    TEXTS: "csv tsv txt md rst rtf log htm html doc docx xls xlsx ods parquet json yml yaml",
    ARCHIVES: "zip gz tgz tar bz2 xz zst 7z rar",
    LOST_SIGNALS: " ".join(SIGNAL_SUFFIXES),
}
_KIND_OF = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}
_KIND_OF_NAME = {
    "DICOMDIR": DICOM,
    **dict.fromkeys(("RECORDS", "ANNOTATORS", "SHA256SUMS", "MD5SUMS", "LICENSE", "README"), TEXTS),
}
_OPENED_AT_ONCE = 16
LONGEST_PATH = 4096  # bytes, its end marked by a zero: PATH_MAX of Linux


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in lower case without its dot, "" for none."""
    dot = name.rfind(".")
    return name[dot + 1 :].lower() if dot > 0 else ""


def without_suffix(path: str) -> str:
    """Return a path without its suffix; the numbers of 1.2.840.113619 and IM.0001 are none."""
    stem, suffix = os.path.splitext(path)
    return path if suffix[1:].isdecimal() else stem


def known_suffix(name: str) -> str:
    """Return the suffix of a file name if it is a common one: others can hold names of people."""
    suffix = suffix_of(name)
    common = f".{suffix}" in own_suffixes() or suffix in _KIND_OF
    return suffix if common else ""


def kind_of(name: str, content: bytes) -> str:
    """Return the kind of a file that no record claims, one of `PASSED_OVER`.

    Args:
        name: of the file, which decides where the content has no signature.
        content: its first bytes.
    """
    for start, magic, kind in _MAGIC:
        if content.startswith(magic, start):
            return kind
    suffix = suffix_of(name)
    if suffix in _KIND_OF:
        return _KIND_OF[suffix]
    return LOST_ANNOTATIONS if suffix in ANNOTATOR_SUFFIXES else _KIND_OF_NAME.get(name, OTHER)


def kind_of_special(entry: os.DirEntry[str]) -> str | None:
    """The kind of what is neither file nor folder; None for a link that is read as a file."""
    if not os.path.exists(entry.path):  # a link to nothing or to itself, or a lost recording
        return None if entry.name.lower().endswith(own_suffixes()) else BROKEN_LINKS
    if entry.is_dir():
        return LINKS
    return None if entry.is_file() else SPECIAL


def recognise(path: Path) -> tuple[Format | None, str]:
    """Return the format of a file, or None and the kind as which it is passed over.

    Raises:
        OSError: the share fails.
    """
    if owner := owner_of(path.name):
        return owner, ""
    try:
        head = read_head(path)
    except FormatError:  # what was a file when the folder was listed is one no more
        return None, SPECIAL
    except OSError as error:
        if not is_of_one_file(error):
            raise
        return None, UNREADABLE
    return format_of(head), kind_of(path.name, head.content)


def recognise_all(prefix: str, names: Sequence[str]) -> list[tuple[Format | None, str]]:
    """`recognise` the files of a folder; of many, several are opened at a time.

    A share takes milliseconds to open a file, and for many at a time no longer.

    Args:
        prefix: path of the folder, with a slash at its end.
        names: of the files.
    """
    known = {name: (owner, "") for name in names if (owner := owner_of(name))}
    others = [name for name in names if name not in known]
    paths = [Path(prefix + name) for name in others]
    if len(paths) < _OPENED_AT_ONCE:
        found = list(map(recognise, paths))
    else:
        pool = ThreadPoolExecutor(_OPENED_AT_ONCE)
        try:
            found = list(pool.map(recognise, paths))
        finally:
            pool.shutdown(cancel_futures=True)
    found_of = {**known, **dict(zip(others, found, strict=True))}
    return [found_of[name] for name in names]


def suffixes_in_words(suffixes: Counter[str]) -> str:
    """Return counts of suffixes as text, the most frequent first: "8 .xml, 3 .dcm"."""
    words = [
        f"{count:,} {f'.{suffix}' if suffix else 'without suffix'}"
        for suffix, count in sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    ]
    shown, rest = words[:5], len(words) - 5
    return ", ".join(shown) + (f" and {rest} other suffixes" if rest > 0 else "")
