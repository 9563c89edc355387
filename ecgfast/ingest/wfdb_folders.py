"""Which files of a folder belong to its WFDB records: signals, annotations, segments."""

import os
import re
from collections.abc import Iterable, Mapping

from ecgfast.errors import FormatError
from ecgfast.ingest.files import open_regular
from ecgfast.ingest.format import NamesBySuffix

SIGNALS, ANNOTATIONS, SEGMENTS = "signal files", "annotations", "segments of joined records"

SIGNAL_SUFFIXES = frozenset(
    {"dat", "mat", "xyz", "flac", "bin", "raw", "sig"} | {f"d{n}" for n in range(100)}
)
# The annotators of PhysioNet's ECG databases; any word can be one, but few are.
ANNOTATOR_SUFFIXES = frozenset(
    (
        *("atr", "ann", "ari", "apn", "aux", "ecg", "event", "man", "mrk", "pu", "pu0", "pu1"),
        *("pwave", "qrs", "gqrs", "sqrs", "wqrs", "xws", "q1c", "q2c", "qt1", "qt2"),
        *("st", "sta", "stb", "stc", "i", "ii", "iii", "avr", "avl", "avf"),
        *("v1", "v2", "v3", "v4", "v5", "v6"),
    )
)
_FIRST_WORD = re.compile(r"^[ \t]*([^\s#]\S*)", re.MULTILINE)
_HEADER_BYTES = 1 << 20  # a day in segments of a few seconds


def companions(folder: str, names: NamesBySuffix) -> dict[str, list[str]]:
    """Return the names of files that belong to the headers of a folder, by kind.

    A signal file belongs to the header of its own stem. Only headers without one are opened, for
    the names that they hold: several records can share one file, and a joined record names its
    segments, which are headers but no records of their own.
    """
    headers = stems(names.get("hea", ()))
    alone = headers  # headers without a signal file of their own stem
    signals: set[str] = set()
    annotations: set[str] = set()
    for suffix, members in names.items():
        if suffix in SIGNAL_SUFFIXES:
            alone = alone - stems(members)
            signals |= {name for name in members if name[: name.rfind(".")] in headers}
        elif suffix in ANNOTATOR_SUFFIXES:
            annotations |= {name for name in members if name[: name.rfind(".")] in headers}
    if alone:
        words = _first_words(folder, names["hea"], alone)
        there = {name for members in names.values() for name in members}
        named = there & {word for each in words.values() for word in each}
        signals |= named.difference(names["hea"], annotations)
        segments = _segments(words).intersection(names["hea"])
    else:
        segments = set()
    found = {SIGNALS: signals, ANNOTATIONS: annotations, SEGMENTS: segments}
    return {kind: sorted(each) for kind, each in found.items() if each}


def stems(names: Iterable[str]) -> set[str]:
    """Return names without their suffixes."""
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
