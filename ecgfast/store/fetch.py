"""A copy of a store from object storage or a web server, whole shards at a time: `ecgfast fetch`.

Training reads records in random order, for which a request each would be a thousand times as many
as there are shards: a store is copied once to where it is read.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from ecgfast.errors import ConfigError, CorruptStoreError, EcgfastError
from ecgfast.store.durable import explained, store_lock, sync_folder, write_durably
from ecgfast.store.format import MANIFEST, address_of, beside
from ecgfast.store.generations import refuse_generation_name, split_generation
from ecgfast.store.manifest import digest_of_file, read_manifest
from ecgfast.store.objects import BrokenConnectionError, Objects
from ecgfast.store.reader import open_store

Progress = Callable[[int, int], None]

AT_ONCE = 16  # files; a shard of 1024 records has some 25 MB
_ATTEMPTS = 2


def fetch_store(url: str, out: Path, progress: Progress | None = None) -> Path:
    """Copy a finished store to this machine; an interrupted copy is completed by the next call.

    Every file is compared with the size and sha256 that the store lists of it, and fetched a second
    time where it differs. Until all are there, they lie in OUT.fetch.

    Args:
        url: of its folder: s3://, gs://, az://, https://, http:// or file://.
        out: folder of the copy; where it holds the same store already, only damaged or missing
            files are fetched.
        progress: called with (bytes done, bytes in all).
    Returns:
        `out`.
    Raises:
        BackendUnavailableError: obstore is not installed.
        ConfigError: no such kind of address, or `out` holds something else.
        FormatError: there is no store at the address.
        CorruptStoreError: a file is not what the store lists, or was not the second time either.
        EcgfastError: no permission, no connection, no space.
    """
    refuse_generation_name(out)
    source = Objects(url)
    with store_lock(out):
        sealed = source.read(MANIFEST)
        if _holds(out, sealed, url):
            _complete(source, out, progress)
            return out
        work = beside(out, ".fetch")
        with explained(work):
            work.mkdir(parents=True, exist_ok=True)
        write_durably(work / MANIFEST, [sealed])
        _complete(source, work, progress)
        with explained(out):
            if out.exists():
                out.rmdir()
            os.replace(work, out)
            sync_folder(out.parent)
    return out


def cached_store(path: Path, cache: Path) -> Path:
    """The copy of a store in a folder of copies: made, completed or found there.

    A store whose labels have changed is another one: a run that reads the earlier copy keeps it.

    Args:
        path: a store's address, perhaps with @GENERATION; that of a folder is returned as it is.
        cache: folder of all copies.
    Raises:
        as `fetch_store`.
    """
    store, generation = split_generation(path)
    url = address_of(store)
    if url is None:
        return path
    digest = hashlib.sha256(Objects(url).read(MANIFEST)).hexdigest()
    copy = fetch_store(url, cache / digest[:32] / store.name)
    return copy if generation is None else copy.with_name(path.name)


def _holds(out: Path, sealed: bytes, url: str) -> bool:
    """Whether a folder holds the store that has this manifest; an empty one holds nothing."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if (out / MANIFEST).is_file() and (out / MANIFEST).read_bytes() == sealed:
        return True
    raise ConfigError(
        f"{out} holds something else than the store at {url}, or another version of it; move it "
        "away, or name another folder"
    )


def _complete(source: Objects, folder: Path, progress: Progress | None) -> None:
    """Fetch what a folder with a manifest lacks, or has damaged."""
    tables = read_manifest(folder)["files"]
    _fetch_all(source, folder, tables, None)
    shards = dict(open_store(folder).shard_table.files())
    _fetch_all(source, folder, tables | shards, progress)


def _fetch_all(
    source: Objects, work: Path, files: Mapping[str, Mapping[str, Any]], progress: Progress | None
) -> None:
    """Fetch what is missing of some files, several at a time."""
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CorruptStoreError(f"{source.url} lists a file outside of the store: {name!r}")
    missing = {n: entry for n, entry in files.items() if not _is_there(work / n, entry)}
    total = sum(entry["bytes"] for entry in files.values())
    need, free = sum(entry["bytes"] for entry in missing.values()), shutil.disk_usage(work).free
    if need > free:
        raise EcgfastError(
            f"{source.url} needs {need:,} bytes more at {work.parent}, which has {free:,}; free "
            "some space and run the same command again, or name a folder on another disk"
        )
    done = total - need
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ecgfast-fetch") as pool:
        running = [pool.submit(_fetch, source, n, work / n, entry) for n, entry in missing.items()]
        try:
            for future, entry in zip(running, missing.values(), strict=True):
                future.result()
                done += entry["bytes"]
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _is_there(path: Path, entry: Mapping[str, Any]) -> bool:
    has_size = path.is_file() and path.stat().st_size == entry["bytes"]
    return has_size and digest_of_file(path) == str(entry["sha256"])


def _fetch(source: Objects, name: str, path: Path, entry: Mapping[str, Any]) -> None:
    """Write a file whole or not at all, twice if its content is wrong the first time."""
    for attempt in range(_ATTEMPTS):
        try:
            found = source.copy(name, path)
        except BrokenConnectionError:
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        if found == entry:
            return
    path.unlink()
    raise CorruptStoreError(
        f"{source.url}/{name} has {found['bytes']:,} bytes and sha256 {found['sha256']}, its "
        f"store lists {entry['bytes']:,} and {entry['sha256']}; copy the store there again"
    )
