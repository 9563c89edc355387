"""From sources on a command line to the sorted list of records to read."""

import heapq
import os
from codecs import BOM_UTF8
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from ecgfast.errors import FormatError
from ecgfast.ingest import FORMATS, InputFile, kinds, own_suffixes, owner_of
from ecgfast.ingest.files import printable
from ecgfast.ingest.format import Format
from ecgfast.ingest.kinds import (
    kind_of_special,
    recognise,
    recognise_all,
    suffix_of,
    suffixes_in_words,
    without_suffix,
)
from ecgfast.ingest.staging import StagedFolders, walk_staged
from ecgfast.store.format import address_of

NUM_EXAMPLES = 3  # of each kind of file that is passed over


@dataclass(kw_only=True)
class Inventory:
    """Every file below the sources, each counted once.

    What lies in a hidden folder or behind a link to a folder is not looked at: the folder or link
    counts as one.

    Attributes:
        inputs: the records, in the order of `walk`; empty where they are streamed.
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
    """List every record below the sources in the order of `walk`; see `take_inventory`."""
    return take_inventory(sources).inputs


def take_inventory(sources: Sequence[Path]) -> Inventory:
    """List every record below the sources and count every other file there by its kind.

    Args:
        sources: folders or files.
    Raises:
        FormatError: as `walk`, or two records would get one record_id.
    """
    inventory = Inventory()
    inventory.inputs = list(walk(sources, inventory))
    first_of: dict[str, InputFile] = {}
    for item in inventory.inputs:
        first = first_of.setdefault(item.record_id, item)
        if first is not item:
            raise collision(item.record_id, first.path, item.path)
    return inventory


def walk(sources: Sequence[Path], inventory: Inventory) -> Iterator[InputFile]:
    """Yield every record below the sources, holding no more than the folders above it in memory.

    The order is that of the bytes of the paths below their sources, with suffixes, as S3 lists
    objects and git sorts trees; rows of a batch file come in their own order.

    Folders are walked in depth; hidden folders and links to folders are passed over. Of every file
    that belongs to no record and has no suffix of one format alone, the first 64 KB are read.

    Args:
        sources: folders or files.
        inventory: its counts and examples are filled on the way.
    Raises:
        FormatError: a source does not exist or holds nothing readable, or two sources overlap.
    """
    _refuse_overlap(sources)
    return heapq.merge(*(_of_source(source, inventory) for source in sources), key=_place)


def walk_list(listing: Path, source: Path, inventory: Inventory) -> Iterator[InputFile]:
    """Yield the records that a list names, without a look at any folder.

    Lines of other files are passed over, and counted only where a file cannot be opened; so are
    those with a hidden part.

    Args:
        listing: one path a line, below `source` or absolute, sorted by bytes (LC_ALL=C sort).
        source: folder that the paths are relative to.
        inventory: its number of files is filled on the way.
    Raises:
        FormatError: the list is not sorted, leads out of the folder, or names no record.
    """
    root = os.path.join(source, "")
    files = _listed_files(listing, source, inventory)
    for _, same_stem in groupby(files, key=lambda item: without_suffix(item[0])):
        for file in _with_suffixes(root, dict(same_stem)):
            yield from _records_of(file, file.path[len(root) :], source, inventory)
    if not inventory.num_record_files:
        raise FormatError(f"--list {listing} names no ECG file that is read; check it")


def _listed_files(
    listing: Path, source: Path, inventory: Inventory
) -> Iterator[tuple[str, Format]]:
    """Yield the path below the source, and the format, of each file of a list that is read."""
    before, above = b"", os.fsencode(os.path.join(source, ""))
    with listing.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(BOM_UTF8) if number == 1 else line  # of Windows editors
            name = line.rstrip(b"\r\n").removeprefix(above).removeprefix(b"./")
            where = f"--list {listing}, line {number}"
            parts = name.split(b"/")
            if b"\0" in name:
                raise FormatError(f"{where} is no path, got a zero byte; give a text file")
            if name.startswith(b"/") or b".." in parts:
                raise FormatError(f"{where} leads out of {source}; give the folder above all paths")
            if name <= before and name:
                raise FormatError(
                    f"{where} is not behind the one before it; sort the list with LC_ALL=C sort -u"
                )
            before = name
            if not name or any(part.startswith(b".") for part in parts):
                continue
            file_format, kind = recognise(Path(os.fsdecode(above + name)))
            if file_format is not None:
                yield os.fsdecode(name), file_format
            elif kind == kinds.UNREADABLE:
                _pass_over(inventory, kind, os.fsdecode(above), [os.fsdecode(name)])


def collision(record_id: str, first: Path, second: Path) -> FormatError:
    """The error for two files whose records would get one id."""
    return FormatError(
        f"record_id {record_id!r} is claimed by {first} and {second}; "
        "convert their common parent folder without --list, or rename one"
    )


def _refuse_overlap(sources: Sequence[Path]) -> None:
    """Refuse sources that would bring the same file twice under two names."""
    resolved = [Path(os.path.realpath(source)) for source in sources]
    for i, inner in enumerate(resolved):
        for j, outer in enumerate(resolved):
            if i < j and inner == outer:
                raise FormatError(f"sources {sources[i]} and {sources[j]} are one; give it once")
            if i != j and inner.is_relative_to(outer):
                raise FormatError(
                    f"source {sources[i]} lies in source {sources[j]}, so its records would be "
                    "read twice; give one of them"
                )


class _File(NamedTuple):
    """A file that holds records, or, without a format, a folder.

    Attributes:
        path: that of a folder ends with a slash.
        file_format: None where nothing reads it.
        keeps_suffix: whether its records' ids have its suffix, because another file has its stem.
    """

    path: str
    file_format: Format | None = None
    keeps_suffix: bool = False


def _of_source(source: Path, inventory: Inventory) -> Iterator[InputFile]:
    found: Counter[str] = Counter()  # suffixes of the source's files
    if source.is_dir():
        items = _below(source, inventory, found)
    elif source.is_file():
        found[suffix_of(source.name)] += 1
        file_format, kind = recognise(source)
        if file_format is None:
            _pass_over(inventory, kind, os.path.join(source.parent, ""), [source.name])
        items = _records_of(_File(str(source), file_format), source.name, source, inventory)
    elif url := address_of(source):
        below = partial(_below, inventory=inventory, found=found)
        items = walk_staged(source, url, below, inventory.examples)
    elif source.exists():
        raise FormatError(f"source {source} is a pipe or a device, allowed a file or a folder")
    else:
        raise FormatError(f"source {source} does not exist, allowed a file or a folder")
    is_empty = True
    for item in items:
        is_empty = False
        yield item
    if is_empty:
        others = f" (found {suffixes_in_words(found)})" if found else ""
        raise FormatError(
            f"source {source} holds no ECG file that is read{others}, allowed are the formats "
            "of `ecgfast convert --list-formats`; give the folder or file that holds the "
            "recordings"
        )


def _place(item: InputFile) -> bytes:
    """The bytes by which records of several sources are sorted."""
    path = os.fsencode(item.url or item.path)
    source = os.fsencode(address_of(item.source) or item.source)
    return path.removeprefix(source).lstrip(b"/") or os.fsencode(item.path.name)


def _below(
    source: Path, inventory: Inventory, found: Counter[str], staged: StagedFolders | None = None
) -> Iterator[InputFile]:
    """Yield everything below a folder; `found` counts its files by suffix, for a refusal."""
    root = os.path.join(source, "")
    waiting = [iter([_File(root)])]  # what is still to come of each open folder
    while waiting:
        file = next(waiting[-1], None)
        if file is None:
            waiting.pop()
        elif file.file_format is None:
            if staged is not None and (odd := staged.bring(file.path)):
                _pass_over(inventory, kinds.UNREADABLE, file.path, odd)
            waiting.append(iter(_content_of(file.path, inventory, found)))
        else:
            if staged is not None:
                staged.complete(file.path, file.file_format)
            yield from _records_of(file, file.path[len(root) :], source, inventory)


def _content_of(prefix: str, inventory: Inventory, found: Counter[str]) -> list[_File]:
    """The folders of a folder and its files that hold records, in the order of `walk`.

    Args:
        prefix: path of the folder, with a slash at its end.
        inventory: its counts are filled, but for those of records.
        found: its files are counted by suffix.
    """
    folder = prefix.rstrip(os.sep) or prefix
    if len(os.fsencode(folder)) >= kinds.LONGEST_PATH:  # the system lists no such folder
        _pass_over(inventory, kinds.TOO_DEEP, "", [folder])
        return []
    content: list[_File] = []
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
                content.append(_File(f"{prefix}{name}/"))
                if name.lower().endswith(own_suffixes()):
                    odd[kinds.NAMED_FOLDERS].append(name)
            elif kind := kind_of_special(entry):
                odd[kind].append(name)
            else:
                names[suffix_of(name)].append(name)
    claimed: set[str] = set()
    for each in FORMATS:
        for kind, members in each.companions(folder, names).items():
            inventory.belonging[kind] += len(members)
            claimed.update(members)
    files: dict[str, Format] = {}
    others = [name for members in names.values() for name in members if name not in claimed]
    for name, (file_format, kind) in zip(others, recognise_all(prefix, others), strict=True):
        if file_format is None:
            odd[kind].append(name)
        else:
            files[name] = file_format
    for kind, members in odd.items():
        _pass_over(inventory, kind, prefix, members)
    found.update({suffix: len(members) for suffix, members in names.items()})
    content += _with_suffixes(prefix, files)
    return sorted(content, key=lambda file: os.fsencode(file.path))


def _with_suffixes(prefix: str, files: dict[str, Format]) -> list[_File]:
    """Files of a folder (name -> format); one ECG in several of one stem keeps their suffixes."""
    stems = Counter(map(without_suffix, files))
    shared = {
        name: (without_suffix(name), file_format.num_rows(Path(prefix + name)) is None)
        for name, file_format in files.items()
        if stems[without_suffix(name)] > 1
    }
    times = Counter(shared.values())  # a record and rows of a batch have other ids in any case
    keeps = {name for name, key in shared.items() if times[key] > 1 and owner_of(name) is None}
    return [_File(prefix + name, each, name in keeps) for name, each in files.items()]


def _pass_over(inventory: Inventory, kind: str, prefix: str, names: list[str]) -> None:
    inventory.passed_over[kind] += len(names)
    first = [printable(prefix + name) for name in heapq.nsmallest(NUM_EXAMPLES, names)]
    known = inventory.examples.get(kind, [])
    inventory.examples[kind] = sorted(known + first)[:NUM_EXAMPLES]


def _records_of(
    file: _File, relative: str, source: Path, inventory: Inventory
) -> Iterator[InputFile]:
    """Yield the records of one file; none where no format reads it."""
    if file.file_format is None:
        return
    path = Path(file.path)
    inventory.num_record_files += 1
    stem = relative if file.keeps_suffix else without_suffix(relative)
    record_id = printable(stem.replace(os.sep, "/"))
    rows = file.file_format.num_rows(path)
    if rows is None:
        yield InputFile(record_id=record_id, path=path, source=source)
        return
    for row in range(rows):
        yield InputFile(record_id=f"{record_id}/{row}", path=path, source=source, row=row)
