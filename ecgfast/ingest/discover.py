"""From sources on a command line to the frozen, sorted list of records to read."""

import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ecgfast.errors import FormatError
from ecgfast.ingest import kinds
from ecgfast.ingest.kinds import SUFFIXES, sort_names, suffix_of, suffixes_in_words
from ecgfast.ingest.numpy_files import batch_size

NUM_EXAMPLES = 3  # of each kind of file that is passed over


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


@dataclass(kw_only=True)
class Inventory:
    """Every file below the sources, each counted once.

    What lies in a hidden folder or behind a link to a folder is not looked at: the folder or link
    counts as one.

    Attributes:
        inputs: the records, sorted by record_id.
        num_record_files: files that name them; one file can hold a batch of records.
        belonging: files that belong to records (`kinds.BELONGING`), by kind.
        passed_over: files that nothing reads (`kinds.PASSED_OVER`), by kind.
        examples: kind -> the first paths of it in alphabetical order, at most `NUM_EXAMPLES`.
    """

    inputs: list[InputFile] = field(default_factory=list)
    num_record_files: int = 0
    belonging: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_files(self) -> int:
        """All files: of records, belonging to records, passed over."""
        return self.num_record_files + self.belonging.total() + self.passed_over.total()


def discover(sources: Sequence[Path]) -> list[InputFile]:
    """List every record below the sources, sorted by record_id; see `take_inventory`."""
    return take_inventory(sources).inputs


def take_inventory(sources: Sequence[Path]) -> Inventory:
    """List every record below the sources and count every other file there by its kind.

    Folders are walked in depth; hidden folders and links to folders are passed over. Kinds go by
    names: nothing but NumPy arrays, and headers without a signal file of their stem, is opened.

    Args:
        sources: folders or files.
    Raises:
        FormatError: a source does not exist or holds nothing readable, two sources overlap, or two
            records would get one record_id.
    """
    _refuse_overlap(sources)
    inventory = Inventory()
    for source in sources:
        before = len(inventory.inputs)
        suffixes: Counter[str] = Counter()
        if source.is_dir():
            _add_folders(source, inventory, suffixes)
        elif source.is_file():
            suffixes[suffix_of(source.name)] += 1
            if source.name.lower().endswith(SUFFIXES):
                _add_records(source.name, str(source), source, inventory)
        elif source.exists():
            raise FormatError(f"source {source} is a pipe or a device, allowed a file or a folder")
        else:
            raise FormatError(f"source {source} does not exist, allowed a file or a folder")
        if len(inventory.inputs) == before:
            others = f" (found {suffixes_in_words(suffixes)})" if suffixes else ""
            raise FormatError(
                f"source {source} holds no ECG file that is read{others}, allowed "
                f"{', '.join(SUFFIXES)}; give the folder or file that holds the recordings"
            )
    found = inventory.inputs
    found.sort(key=lambda item: item.record_id)
    for first, second in pairwise(found):
        if first.record_id == second.record_id:
            raise FormatError(
                f"record_id {first.record_id!r} is claimed by {first.path} and {second.path}; "
                "convert their common parent folder, or rename one"
            )
    return inventory


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


def _add_folders(source: Path, inventory: Inventory, suffixes: Counter[str]) -> None:
    """Add everything below a folder; `suffixes` counts its files for a refusal."""
    above = len(os.path.join(source, ""))
    waiting = [str(source)]
    while waiting:
        folder = waiting.pop()
        if len(os.fsencode(folder)) >= kinds.LONGEST_PATH:  # the system lists no such folder
            _pass_over(inventory, kinds.TOO_DEEP, "", [folder])
            continue
        names: defaultdict[str, list[str]] = defaultdict(list)
        odd: defaultdict[str, list[str]] = defaultdict(list)
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":  # .snapshot folders, and macOS's ._NAME companions on shares
                    is_folder = entry.is_dir(follow_symlinks=False)
                    odd[kinds.HIDDEN_FOLDERS if is_folder else kinds.HIDDEN].append(name)
                elif entry.is_file(follow_symlinks=False):
                    names[suffix_of(name)].append(name)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    if name.lower().endswith(SUFFIXES):
                        odd[kinds.NAMED_FOLDERS].append(name)
                elif kind := _kind_of_special(entry):
                    odd[kind].append(name)
                else:
                    names[suffix_of(name)].append(name)
        prefix = os.path.join(folder, "")
        content = sort_names(folder, names)
        for suffix in SUFFIXES:
            for name in names.get(suffix[1:], ()):
                if name not in content.segments:
                    path = prefix + name
                    _add_records(path[above:], path, source, inventory)
        inventory.belonging.update(content.belonging)
        for kind, members in (*content.passed_over.items(), *odd.items()):
            _pass_over(inventory, kind, prefix, members)
        suffixes.update({suffix: len(members) for suffix, members in names.items()})


def _kind_of_special(entry: os.DirEntry[str]) -> str | None:
    """The kind of what is neither file nor folder; None for a link that is read as a file."""
    if not os.path.exists(
        entry.path
    ):  # a link that leads nowhere or to itself, or a lost recording
        return None if entry.name.lower().endswith(SUFFIXES) else kinds.BROKEN_LINKS
    if entry.is_dir():
        return kinds.LINKS
    return None if entry.is_file() else kinds.SPECIAL


def _pass_over(inventory: Inventory, kind: str, prefix: str, names: list[str]) -> None:
    inventory.passed_over[kind] += len(names)
    first = [printable(prefix + name) for name in heapq.nsmallest(NUM_EXAMPLES, names)]
    known = inventory.examples.get(kind, [])
    inventory.examples[kind] = sorted(known + first)[:NUM_EXAMPLES]


def _add_records(relative: str, path: str, source: Path, inventory: Inventory) -> None:
    """Add the records that one file names."""
    inventory.num_record_files += 1
    stem, suffix = os.path.splitext(relative)
    record_id = printable(stem.replace(os.sep, "/"))
    file = Path(path)
    rows = batch_size(file) if suffix.lower() == ".npy" else None
    if rows is None:
        inventory.inputs.append(InputFile(record_id=record_id, path=file, source=source))
        return
    inventory.inputs += [
        InputFile(record_id=f"{record_id}/{row}", path=file, source=source, row=row)
        for row in range(rows)
    ]
