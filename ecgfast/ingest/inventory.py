"""From sources on a command line to the frozen, sorted list of records to read."""

import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from ecgfast.errors import FormatError
from ecgfast.ingest import FORMATS, InputFile, format_of, kinds, own_suffixes, owner_of
from ecgfast.ingest.files import is_of_one_file
from ecgfast.ingest.format import Format, read_head
from ecgfast.ingest.kinds import kind_of, suffix_of, suffixes_in_words

NUM_EXAMPLES = 3  # of each kind of file that is passed over


@dataclass(kw_only=True)
class Inventory:
    """Every file below the sources, each counted once.

    What lies in a hidden folder or behind a link to a folder is not looked at: the folder or link
    counts as one.

    Attributes:
        inputs: the records, sorted by record_id.
        num_record_files: files that name them; one file can hold a batch of records.
        belonging: files that belong to records (`Format.companions`), by kind.
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

    Folders are walked in depth; hidden folders and links to folders are passed over. Of every file
    that belongs to no record and has no suffix of one format alone, the first 64 KB are read.

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
            file_format, kind = _recognised(source)
            if file_format is None:
                _pass_over(inventory, kind, os.path.join(source.parent, ""), [source.name])
            else:
                _add_records(source.name, str(source), source, inventory, file_format)
        elif source.exists():
            raise FormatError(f"source {source} is a pipe or a device, allowed a file or a folder")
        else:
            raise FormatError(f"source {source} does not exist, allowed a file or a folder")
        if len(inventory.inputs) == before:
            others = f" (found {suffixes_in_words(found)})" if found else ""
            raise FormatError(
                f"source {source} holds no ECG file that is read{others}, allowed are the formats "
                "of `ecgfast convert --list-formats`; give the folder or file that holds the "
                "recordings"
            )
    _tell_apart(inventory)
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


def _tell_apart(inventory: Inventory) -> None:
    """Let one ECG in several vendor files of one stem, as exports hold it, keep their suffixes."""
    files: defaultdict[str, set[Path]] = defaultdict(set)
    for item in inventory.inputs:
        files[item.record_id].add(item.path)
    inventory.inputs = [
        replace(item, record_id=f"{item.record_id}{printable(item.path.suffix)}")
        if len(files[item.record_id]) > 1 and owner_of(item.path.name) is None
        else item
        for item in inventory.inputs
    ]


def _add_folders(source: Path, inventory: Inventory, found: Counter[str]) -> None:
    """Add everything below a folder; `found` counts its files by suffix, for a refusal."""
    record_suffixes = own_suffixes()
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
        claimed: set[str] = set()
        for each in FORMATS:
            for kind, members in each.companions(folder, names).items():
                inventory.belonging[kind] += len(members)
                claimed.update(members)
        for name in (name for members in names.values() for name in members):
            if name in claimed:
                continue
            path = prefix + name
            file_format, kind = _recognised(Path(path))
            if file_format is None:
                odd[kind].append(name)
            else:
                _add_records(path[above:], path, source, inventory, file_format)
        for kind, members in odd.items():
            _pass_over(inventory, kind, prefix, members)
        found.update({suffix: len(members) for suffix, members in names.items()})


def _kind_of_special(entry: os.DirEntry[str]) -> str | None:
    """The kind of what is neither file nor folder; None for a link that is read as a file."""
    if not os.path.exists(entry.path):  # a link to nothing or to itself, or a lost recording
        return None if entry.name.lower().endswith(own_suffixes()) else kinds.BROKEN_LINKS
    if entry.is_dir():
        return kinds.LINKS
    return None if entry.is_file() else kinds.SPECIAL


def _pass_over(inventory: Inventory, kind: str, prefix: str, names: list[str]) -> None:
    inventory.passed_over[kind] += len(names)
    first = [printable(prefix + name) for name in heapq.nsmallest(NUM_EXAMPLES, names)]
    known = inventory.examples.get(kind, [])
    inventory.examples[kind] = sorted(known + first)[:NUM_EXAMPLES]


def _recognised(path: Path) -> tuple[Format | None, str]:
    """The format of a file, or None and the kind as which it is passed over.

    Raises:
        OSError: the share fails.
    """
    if owner := owner_of(path.name):
        return owner, ""
    try:
        head = read_head(path)
    except FormatError:  # what was a file when the folder was listed is one no more
        return None, kinds.SPECIAL
    except OSError as error:
        if not is_of_one_file(error):
            raise
        return None, kinds.UNREADABLE
    return format_of(head), kind_of(path.name, head.content)


def _add_records(
    relative: str, path: str, source: Path, inventory: Inventory, file_format: Format
) -> None:
    """Add the records of one file."""
    file = Path(path)
    inventory.num_record_files += 1
    record_id = printable(_without_suffix(relative).replace(os.sep, "/"))
    rows = file_format.num_rows(file)
    if rows is None:
        inventory.inputs.append(InputFile(record_id=record_id, path=file, source=source))
    else:
        inventory.inputs += [
            InputFile(record_id=f"{record_id}/{row}", path=file, source=source, row=row)
            for row in range(rows)
        ]


def _without_suffix(relative: str) -> str:
    """A path without its suffix; the numbers of 1.2.840.113619 and IM.0001 are none."""
    stem, suffix = os.path.splitext(relative)
    return relative if suffix[1:].isdecimal() else stem
