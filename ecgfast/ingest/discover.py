"""From sources on a command line to the frozen, sorted list of records to read."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ecgfast.errors import FormatError
from ecgfast.ingest.arrays import batch_size

SUFFIXES = (".hea", ".npy", ".npz")  # of the files that name a record; signal files lie beside them


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One future record.

    Attributes:
        record_id: path relative to `source` without suffix, `/` between parts; a file given as
            source gives its stem. Unique in one list. Records of a batch file add `/ROW`.
        path: of the file that names the record (a WFDB header, a NumPy array).
        source: folder or file, as the user gave it.
        row: position in a NumPy batch file, None for files of one record.
    """

    record_id: str
    path: Path
    source: Path
    row: int | None = None


def discover(sources: Sequence[Path]) -> list[InputFile]:
    """List every record below the sources, sorted by record_id.

    Folders are walked in depth; hidden files and links to folders are passed over.

    Args:
        sources: folders or files.
    Raises:
        FormatError: a source does not exist or holds nothing readable, two sources overlap, or two
            records would get one record_id.
    """
    _refuse_overlap(sources)
    found: list[InputFile] = []
    for source in sources:
        before = len(found)
        if source.is_dir():
            above = len(os.path.join(source, ""))
            for path in _walk(str(source)):
                found.extend(_inputs(Path(path), path[above:], source))
        elif source.is_file():
            found.extend(_inputs(source, source.name, source))
        else:
            raise FormatError(f"source {source} does not exist, allowed a file or a folder")
        if len(found) == before:
            raise FormatError(
                f"source {source} holds no ECG file, allowed {', '.join(SUFFIXES)}; "
                "give the folder or file that holds the recordings"
            )
    found.sort(key=lambda item: item.record_id)
    for first, second in pairwise(found):
        if first.record_id == second.record_id:
            raise FormatError(
                f"record_id {first.record_id!r} is claimed by {first.path} and {second.path}; "
                "convert their common parent folder, or rename one"
            )
    return found


def printable(name: str) -> str:
    """Return a name as text that can be written: old shares have bytes that are no UTF-8."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def _refuse_overlap(sources: Sequence[Path]) -> None:
    """Refuse sources that would bring the same file twice under two names."""
    resolved = [source.resolve() for source in sources]
    for i, inner in enumerate(resolved):
        for j, outer in enumerate(resolved):
            if i != j and inner.is_relative_to(outer):
                raise FormatError(
                    f"source {sources[i]} lies in source {sources[j]}, so its records would be "
                    "read twice; give one of them"
                )


def _walk(folder: str) -> Iterator[str]:
    """Yield the paths below a folder whose suffix names a record."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue  # .snapshot folders, and macOS's ._NAME companions on shares
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif entry.name.lower().endswith(SUFFIXES) and (_is_broken(entry) or entry.is_file()):
                yield entry.path


def _is_broken(entry: os.DirEntry[str]) -> bool:
    """Whether a link leads nowhere or to itself: a lost recording, which reading it then says."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def _inputs(path: Path, relative: str, source: Path) -> list[InputFile]:
    """Return the records that one file names."""
    stem, suffix = os.path.splitext(relative)
    if suffix.lower() not in SUFFIXES:
        return []
    record_id = printable(stem.replace(os.sep, "/"))
    rows = batch_size(path) if suffix.lower() == ".npy" and path.exists() else None
    if rows is None:
        return [InputFile(record_id=record_id, path=path, source=source)]
    return [
        InputFile(record_id=f"{record_id}/{row}", path=path, source=source, row=row)
        for row in range(rows)
    ]
