"""Generations of a store: each convert that appends makes another one, and none moves a row.

Generation g is the rows before its `num_slots`: the manifest's `history` has them, oldest first, up
to the generation before its own. An erasure changes rows that earlier ones had, and cuts it.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ecgfast.errors import ConfigError
from ecgfast.store.durable import explained, sync_folder
from ecgfast.store.format import NEXT, QUARANTINE
from ecgfast.store.manifest import Manifest, digest_of_file, read_manifest, write_manifest

_SAME = ("identity", "num_records", "num_slots", "counts")  # in an entry as in a manifest


def generation_of(manifest: Manifest) -> int:
    """The number of a store's newest generation, from 1."""
    return int(manifest.get("generation", 1))


def history_of(manifest: Manifest) -> list[dict[str, Any]]:
    """Entries of the generations before it that can still be opened, oldest first."""
    history: list[dict[str, Any]] = manifest.get("history", [])
    return history


def grown_from(manifest: Manifest) -> dict[str, Any]:
    """Entries of the manifest of the next generation, which has all rows of this one."""
    entry = {name: manifest[name] for name in _SAME}
    entry |= {"generation": generation_of(manifest), "quarantine": manifest["files"][QUARANTINE]}
    return {"generation": entry["generation"] + 1, "history": [*history_of(manifest), entry]}


def split_generation(path: Path) -> tuple[Path, int | None]:
    """STORE@3 as STORE and 3; a folder of that name is itself."""
    name, at, number = path.name.rpartition("@")
    if not (at and name and number.isascii() and number.isdecimal()) or path.exists():
        return path, None
    return path.with_name(name), int(number)


def whole_store(path: str | Path) -> Path:
    """The folder of a store that is changed or checked, which reaches all its generations.

    Raises:
        ConfigError: the path names one of them.
    """
    store, generation = split_generation(Path(path))
    if generation is not None:
        raise ConfigError(
            f"{path} names one generation, and a store is changed and checked as a whole; give "
            f"{store}"
        )
    return store


def refuse_generation_name(path: Path) -> None:
    """Refuse a new store whose name would read as a generation of another.

    Raises:
        ConfigError: its name ends in @ and a number, and nothing of that name exists yet.
    """
    store, generation = split_generation(path)
    if generation is not None:
        raise ConfigError(
            f"a new store cannot be named {path.name}, which means generation {generation} of "
            f"{store.name}; names must not end in @ and a number: take {store.name}-{generation}"
        )


def as_of(manifest: Manifest, generation: int | None, store: Path) -> Manifest:
    """The manifest of one generation, the newest for None.

    Raises:
        ConfigError: the store does not have it, or does not any more.
    """
    newest, history = generation_of(manifest), history_of(manifest)
    if generation is None or generation == newest:
        return manifest
    for number, entry in enumerate(history):
        if entry["generation"] == generation:
            same = {name: entry[name] for name in _SAME}
            files = manifest["files"] | {QUARANTINE: entry["quarantine"]}
            before = {"generation": generation, "history": history[:number]}
            return manifest | same | before | {"files": files}
    numbers = [*(entry["generation"] for entry in history), newest]
    gone = "" if numbers[0] == 1 else "; records of those before were erased or replaced"
    allowed = ", ".join(map(str, numbers))
    raise ConfigError(
        f"{store} has no generation {generation}, allowed {allowed}{gone}; give one of these, or "
        "the store without @"
    )


def commit(store: Path, content: Manifest, names: Iterable[str]) -> Manifest:
    """Make files count that were written as NAME.next: a crash leaves all of the old or the new.

    Args:
        store: its folder; the caller holds its lock.
        content: of `write_manifest`, with the digests of the new files.
        names: of these, without `NEXT`.
    """
    manifest = write_manifest(store, content)
    _replace(store, names)
    return manifest


def settle(store: Path) -> None:
    """Give the files that count their names, where a crash came in between; remove all others."""
    files = read_manifest(store)["files"]
    waiting = [name for name in files if (store / f"{name}{NEXT}").is_file()]
    _replace(store, [name for name in waiting if counts_as_next(store, name, files[name])])
    for name in waiting:
        (store / f"{name}{NEXT}").unlink(missing_ok=True)


def counts_as_next(store: Path, name: str, entry: dict[str, Any]) -> bool:
    """Whether NAME.next is the file that the manifest means, and NAME the one before it."""
    path = store / f"{name}{NEXT}"
    return path.is_file() and digest_of_file(path) == entry["sha256"]


def _replace(store: Path, names: Iterable[str]) -> None:
    folders = set()
    with explained(store):
        for name in names:
            os.replace(store / f"{name}{NEXT}", store / name)
            folders.add((store / name).parent)
        for folder in sorted(folders):
            sync_folder(folder)
