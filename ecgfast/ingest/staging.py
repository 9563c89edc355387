"""Inputs in object storage: what a walk looks at and what a reader opens, for as long.

Every reader opens files by path. So a walk sees each folder as empty files of the right names,
sizes and times, with the first bytes of those that it looks into; and a unit has whole copies of
its inputs, a block at a time. Both lie in $TMPDIR, and are removed when the next ones come.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from ecgfast.errors import FormatError
from ecgfast.ingest import InputFile, format_of, owner_of
from ecgfast.ingest.files import MAX_TEXT_BYTES
from ecgfast.ingest.format import HEAD_BYTES, Format, read_head
from ecgfast.ingest.sidecar import SHARED_SIDECAR
from ecgfast.ingest.vendor import hdf5
from ecgfast.ingest.wfdb_folders import ANNOTATOR_SUFFIXES, SIGNAL_SUFFIXES, stems
from ecgfast.ingest.wfdb_header import read_header
from ecgfast.store.durable import explained
from ecgfast.store.objects import MissingObjectError, ObjectFacts, objects_at

_BLOCK_INPUTS = 256
_AT_ONCE = 32  # requests
_LONGEST_NAME = 255  # bytes, of Linux
_PREFIX = "ecgfast-inputs-"


class StagedFolders:
    """The folders of a source as a walk sees them: those above the one it is in, and that one.

    Args:
        url: of the source.
        root: an empty folder, which stands for the source.
    """

    def __init__(self, url: str, root: Path) -> None:
        self._objects, self._root = objects_at(url), os.path.join(root, "")
        self._here: list[str] = []
        self._whole: str | None = None

    def bring(self, folder: str) -> list[str]:
        """Fill a folder below the root, and remove those that the walk has left.

        Args:
            folder: its path, with a slash at its end.
        Returns:
            names of objects in it that no file can have.
        """
        for path in [path for path in self._here if not folder.startswith(path)]:
            self._here.remove(path)
            shutil.rmtree(path, ignore_errors=True)
        self._here.append(folder)
        inner = folder[len(self._root) :].rstrip("/")
        folders, found = self._objects.folder(inner)
        names = {name for name in folders if _is_name(name)}
        with explained(Path(folder)):
            for name in names:
                os.mkdir(folder + name)
        files = [each for each in found if _is_name(each.name) and each.name not in names]
        opened = _opened(files)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda each: self._stand_in(folder, inner, each, opened), files):
                pass
        return [each.name for each in found if each not in files and each.name]

    def _stand_in(self, folder: str, inner: str, each: ObjectFacts, opened: set[str]) -> None:
        path, name = Path(folder + each.name), f"{inner}/{each.name}".lstrip("/")
        content: list[memoryview] = []
        if each.name in opened and each.num_bytes:
            most = MAX_TEXT_BYTES if name.lower().endswith(".hea") else HEAD_BYTES
            content = self._objects.read_ranges(name, [0], [min(most, each.num_bytes)])
        _write(path, content)
        os.truncate(path, each.num_bytes)
        os.utime(path, ns=(each.mtime_ns, each.mtime_ns))

    def complete(self, path: str, file_format: Format) -> None:
        """Fetch the whole of a file that can say anywhere how many records it holds."""
        if self._whole is not None and os.path.exists(self._whole):  # not of a folder that is left
            os.truncate(self._whole, 0)
        self._whole = None
        if file_format is hdf5.FORMAT:
            self._whole = path
            facts = os.stat(path)
            _write(Path(path), self._objects.parts(path[len(self._root) :]))
            os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))

    def url_of(self, path: str | Path) -> str:
        """The address of what stands for it."""
        return f"{self._objects.url}/{os.fspath(path)[len(self._root) :]}"


def _is_name(name: str) -> bool:
    """Whether a file can have this name."""
    is_plain = name not in ("", ".", "..") and not set(name) & {"/", "\0"}
    return is_plain and len(os.fsencode(name)) <= _LONGEST_NAME


def _opened(files: list[ObjectFacts]) -> set[str]:
    """Names of the files that a walk looks into: none that a WFDB header of their stem claims."""
    by_suffix: dict[str, list[str]] = {}
    for each in files:
        by_suffix.setdefault(each.name[each.name.rfind(".") + 1 :].lower(), []).append(each.name)
    headers = stems(by_suffix.get("hea", ()))
    signals: set[str] = set()
    opened: set[str] = set()
    for suffix, names in by_suffix.items():
        if suffix in SIGNAL_SUFFIXES:
            signals |= stems(names)
        if suffix in SIGNAL_SUFFIXES | ANNOTATOR_SUFFIXES:
            opened |= {name for name in names if name[: name.rfind(".")] not in headers}
        elif suffix != "hea":
            opened |= set(names)
    headers_alone = {n for n in by_suffix.get("hea", ()) if n[: n.rfind(".")] not in signals}
    return {name for name in opened | headers_alone if not name.startswith(".")}


def walk_staged(
    source: Path,
    url: str,
    below: Callable[..., Iterator[InputFile]],
    examples: dict[str, list[str]],
) -> Iterator[InputFile]:
    """Yield the inputs below an address; their paths stand for them until the next one.

    Args:
        source: of the inputs.
        url: its address.
        below: yields the inputs of a folder whose folders are `staged`.
        examples: kind -> paths of files, which become addresses.
    """
    with TemporaryDirectory(prefix=_PREFIX) as folder:
        folders = StagedFolders(url, Path(folder))
        for item in below(Path(folder), staged=folders):
            size, mtime = item.size_and_mtime()
            listed = item._replace(source=source, num_bytes=size, mtime_ns=mtime)
            yield listed._replace(url=folders.url_of(item.path))
        for kind, paths in examples.items():
            examples[kind] = sorted(
                folders.url_of(path) if path.startswith(folder) else path for path in paths
            )


def staged(items: Iterable[InputFile]) -> Iterator[InputFile]:
    """Yield inputs with a path on this machine, which lasts until the next one is asked for.

    Args:
        items: local ones, which stay as they are, and those in object storage.
    Raises:
        EcgfastError: no connection, no permission, no space.
    """
    items, folder = iter(items), None
    with ExitStack() as stack, ThreadPoolExecutor(_AT_ONCE) as pool:
        while block := list(islice(items, _BLOCK_INPUTS)):
            urls = {each.url for each in block if each.url}
            if urls and folder is None:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix=_PREFIX)))
            if folder is None:
                yield from block
                continue
            paths = {url: _copy_of(folder, url) for url in urls}
            _keep(folder, set(paths.values()))
            for _ in pool.map(lambda pair: _bring(*pair), paths.items()):
                pass
            for each in block:
                yield each._replace(path=paths[each.url]) if each.url else each


def _copy_of(folder: Path, url: str) -> Path:
    """Where the copy of an object lies: one folder for the objects of each folder."""
    above, _, name = url.rpartition("/")
    return folder / hashlib.sha256(above.encode()).hexdigest()[:16] / name


def _keep(folder: Path, paths: set[Path]) -> None:
    """Remove the copies of the block before, but not of a file of many records that goes on."""
    above = {path.parent for path in paths}
    for inner in folder.iterdir():
        if inner not in above:
            shutil.rmtree(inner)
            continue
        for path in inner.iterdir():
            if path not in paths:
                path.unlink()


def _bring(url: str, path: Path) -> None:
    """Copy an object, and what belongs to it; the reader refuses what is not there."""
    above, _, name = url.rpartition("/")
    objects, folder = objects_at(above), path.parent
    folder.mkdir(exist_ok=True)
    waiting, seen = [name], {name}
    while waiting:
        name = waiting.pop()
        if not (folder / name).exists():  # a file that was kept has lost what belongs to it
            try:
                _write(folder / name, objects.parts(name))
            except MissingObjectError:
                continue
        found = {each for each in _belonging(folder / name) if _is_name(each)} - seen
        waiting += found
        seen |= found


def _belonging(path: Path) -> list[str]:
    """Names of the files beside one that its reader opens too."""
    if path.suffix.lower() == ".hea":
        try:
            header = read_header(path)
        except FormatError:  # its reader says why
            return []
        segments = [f"{each.name}.hea" for each in header.segments if each.name is not None]
        return [*segments, *{each.file_name for each in header.signals}]
    found = owner_of(path.name) or format_of(read_head(path))
    own = path.with_suffix(".json").name
    return [own, SHARED_SIDECAR] if found is not None and found.has_sidecar else []


def _write(path: Path, parts: Iterable[memoryview]) -> None:
    """Write a file whole or not at all; others may be writing it at the same time."""
    own = path.with_name(f".{secrets.token_hex(8)}")
    try:
        with explained(path):
            with own.open("wb") as file:
                file.writelines(parts)
            own.replace(path)
    finally:
        own.unlink(missing_ok=True)
