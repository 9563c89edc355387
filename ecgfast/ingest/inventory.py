"""From sources on a command line to the frozen, sorted list of records to read."""

import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ecgfast.errors import FormatError
from ecgfast.ingest import InputFile, format_of, kinds, suffixes
from ecgfast.ingest.kinds import kind_of, sort_names, suffix_of, suffixes_in_words

NUM_EXAMPLES = 3  # of each kind of file that is passed over


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
        found: Counter[str] = Counter()  # suffixes of the source's files
        if source.is_dir():
            _add_folders(source, inventory, found)
        elif source.is_file():
            found[suffix_of(source.name)] += 1
            _add_records(source.name, str(source), source, inventory)
        elif source.exists():
            raise FormatError(f"source {source} is a pipe or a device, allowed a file or a folder")
        else:
            raise FormatError(f"source {source} does not exist, allowed a file or a folder")
        if len(inventory.inputs) == before:
            others = f" (found {suffixes_in_words(found)})" if found else ""
            raise FormatError(
                f"source {source} holds no ECG file that is read{others}, allowed "
                f"{', '.join(suffixes())}; give the folder or file that holds the recordings"
            )
    inventory.inputs.sort(key=lambda item: item.record_id)
    for first, second in pairwise(inventory.inputs):
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


def _add_folders(source: Path, inventory: Inventory, found: Counter[str]) -> None:
    """Add everything below a folder; `found` counts its files by suffix, for a refusal."""
    record_suffixes = suffixes()
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
                    if name.lower().endswith(record_suffixes):
                        odd[kinds.NAMED_FOLDERS].append(name)
                elif kind := _kind_of_special(entry):
                    odd[kind].append(name)
                else:
                    names[suffix_of(name)].append(name)
        prefix = os.path.join(folder, "")
        content = sort_names(folder, names)
        for suffix in record_suffixes:
            for name in names.get(suffix[1:], ()):
                if name in content.segments:
                    continue
                path = prefix + name
                if not _add_records(path[above:], path, source, inventory):
                    odd[kind_of(name)].append(name)
        inventory.belonging.update(content.belonging)
        for kind, members in (*content.passed_over.items(), *odd.items()):
            _pass_over(inventory, kind, prefix, members)
        found.update({suffix: len(members) for suffix, members in names.items()})


def _kind_of_special(entry: os.DirEntry[str]) -> str | None:
    """The kind of what is neither file nor folder; None for a link that is read as a file."""
    if not os.path.exists(entry.path):  # a link to nothing or to itself, or a lost recording
        return None if entry.name.lower().endswith(suffixes()) else kinds.BROKEN_LINKS
    if entry.is_dir():
        return kinds.LINKS
    return None if entry.is_file() else kinds.SPECIAL


def _pass_over(inventory: Inventory, kind: str, prefix: str, names: list[str]) -> None:
    inventory.passed_over[kind] += len(names)
    first = [printable(prefix + name) for name in heapq.nsmallest(NUM_EXAMPLES, names)]
    known = inventory.examples.get(kind, [])
    inventory.examples[kind] = sorted(known + first)[:NUM_EXAMPLES]


def _add_records(relative: str, path: str, source: Path, inventory: Inventory) -> bool:
    """Add the records of one file; returns whether a format recognises it."""
    file = Path(path)
    file_format = format_of(file)
    if file_format is None:
        return False
    inventory.num_record_files += 1
    record_id = printable(os.path.splitext(relative)[0].replace(os.sep, "/"))
    rows = file_format.num_rows(file)
    if rows is None:
        inventory.inputs.append(InputFile(record_id=record_id, path=file, source=source))
    else:
        inventory.inputs += [
            InputFile(record_id=f"{record_id}/{row}", path=file, source=source, row=row)
            for row in range(rows)
        ]
    return True
