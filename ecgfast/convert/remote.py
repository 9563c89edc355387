"""Stores made in object storage: units put their files there, the seal its tables, then a manifest.

What is not to be shared stays in the current folder under the store's name, as beside a local one:
the table of readable paths, the plan, the rows of finished units. A unit's files are removed here
when they are there, so that this machine holds those of one unit for each worker.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgfast.convert.plan import INPUTS, Plan, is_planned, read_plan, request_of, work_folder
from ecgfast.errors import BusyError, ConfigError, EcgfastError
from ecgfast.store.durable import store_lock
from ecgfast.store.format import MANIFEST, address_of, shard_files, sources_beside, work_beside
from ecgfast.store.manifest import digest_of_file, read_manifest
from ecgfast.store.objects import BrokenConnectionError, MissingObjectError, Objects, objects_at

_WRITABLE = ("s3://", "gs://", "az://", "file://")
_ATTEMPTS = 2


@dataclass(frozen=True)
class Place:
    """Where a store is made.

    Attributes:
        here: its folder on this machine, without signals where it has an address.
        url: its address; empty for a folder.
    """

    here: Path
    url: str = ""


def place_of(out: str | Path) -> Place:
    """Where `--out` is.

    Raises:
        ConfigError: an address that nothing can be written to, or that of a bucket.
    """
    url = address_of(out)
    if url is None:
        return Place(Path(out))
    scheme, _, rest = url.partition("://")
    if not url.startswith(_WRITABLE) or not rest.partition("/")[2]:
        raise ConfigError(
            f"--out must be a folder, or an address such as s3://BUCKET/STORE with one of "
            f"{', '.join(_WRITABLE)}, got {scheme}://{rest}"
        )
    return Place(Path.cwd() / Path(out).name, url)


@contextmanager
def prepared(place: Place) -> Iterator[None]:
    """Hold what a store with an address has on this machine; removed when the store is there.

    Raises:
        BusyError: another process of this machine makes it.
        ConfigError: something else has its name here.
    """
    if not place.url:
        yield
        return
    with store_lock(work_beside(place.here)):
        objects = objects_at(place.url)
        is_there = objects.size(MANIFEST) is not None
        _refuse_others(place, is_there=is_there)
        if is_there:  # known here as a finished one, which is left alone
            objects.copy(MANIFEST, place.here / MANIFEST)
        else:  # of a seal whose tables were not put there
            (place.here / MANIFEST).unlink(missing_ok=True)
        try:
            yield
        except BaseException:
            if is_there:
                shutil.rmtree(place.here)
            raise
        if (place.here / MANIFEST).exists():
            shutil.rmtree(place.here)
            shutil.rmtree(work_folder(place.here), ignore_errors=True)
            folder, name = _claim_of(place.url)
            with suppress(MissingObjectError):
                folder.remove([name])


def _refuse_others(place: Place, *, is_there: bool) -> None:
    here = place.here
    if is_planned(here):
        if read_plan(here).url == place.url:
            return
    elif not here.exists() and (is_there or not sources_beside(here).exists()):
        return
    raise ConfigError(
        f"{here} is another store, or files beside it are of another one; what {place.url} has on "
        f"this machine lies in the current folder under the name {here.name}: use another folder"
    )


def claim(plan: Plan) -> None:
    """See that no other plan makes the same store; one plan on two machines writes equal bytes.

    The object STORE.convert holds a keyed digest of the plan until the store is finished.

    Raises:
        BusyError: another plan does, or has just done so.
        ConfigError: the address holds something else.
    """
    if not plan.url:
        return
    objects, (folder, name) = objects_at(plan.url), _claim_of(plan.url)
    own, held = _digest_of(plan), None
    with suppress(MissingObjectError):
        held = folder.read(name)
    is_there = objects.size(MANIFEST) is not None
    if held is None and not is_there:
        if (found := next(objects.names(), None)) is not None:
            raise ConfigError(
                f"--out {plan.url} is neither empty nor a store, got {found} in it; choose another "
                "address"
            )
        held = own if folder.put(name, own, create=True) else folder.read(name)
        is_there = objects.size(MANIFEST) is not None  # of one that ended between two looks
    if is_there:
        raise BusyError(f"{plan.url} was finished by another convert meanwhile; run it again")
    if held != own:
        raise BusyError(
            f"{plan.url} is being made by another convert, of other inputs or options; wait until "
            f"it ends, or if it was given up remove {plan.url} and {plan.url}.convert"
        )


def _claim_of(url: str) -> tuple[Objects, str]:
    folder, _, name = url.rpartition("/")
    return objects_at(folder), f"{name}.convert"


def _digest_of(plan: Plan) -> bytes:
    pseudonyms, inputs = None, ""
    if "sources" in plan.spec:
        pseudonyms, inputs = plan.pseudonyms(), digest_of_file(work_folder(plan.out) / INPUTS)
    return hashlib.sha256(f"{request_of(plan.spec, pseudonyms)} {inputs}".encode()).digest()


def put_shard(plan: Plan, unit: int, files: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Move the files of a unit's shard to where the store has its address; returns their entries.

    Raises:
        EcgfastError: no permission, no connection, or the files arrive damaged.
    """
    if not plan.url:
        return files
    objects = objects_at(plan.url)
    with ThreadPoolExecutor(len(files) or 1) as pool:
        for _ in pool.map(lambda name: _put(objects, name, plan.out / name, files[name]), files):
            pass
    for name in files:
        (plan.out / name).unlink(missing_ok=True)  # two processes may do one unit
    if not files:  # of an attempt when an input could still be read
        names = shard_files(unit).values()
        if stale := [name for name in names if objects.size(name) is not None]:
            objects.remove(stale)
    return files


def put_store(plan: Plan) -> None:
    """Put the tables of a sealed store where its signals are, and the manifest last.

    Raises:
        BusyError: another convert has put another store there.
        EcgfastError: as `put_shard`.
    """
    if not plan.url:
        return
    objects, files = objects_at(plan.url), read_manifest(plan.out)["files"]
    files[MANIFEST] = {"sha256": digest_of_file(plan.out / MANIFEST)}
    if objects.size(MANIFEST) is None or objects.sha256(MANIFEST) != files[MANIFEST]["sha256"]:
        claim(plan)
        for name, entry in files.items():
            _put(objects, name, plan.out / name, entry)


def _put(objects: Objects, name: str, path: Path, entry: Mapping[str, Any]) -> None:
    """Put a file and read it back, twice if it is not the same the first time."""
    for attempt in range(_ATTEMPTS):
        try:
            with suppress(MissingObjectError):  # another process that does this unit has moved it
                objects.put(name, path)
            if objects.sha256(name) == entry["sha256"]:
                return
        except BrokenConnectionError:
            if attempt == _ATTEMPTS - 1:
                raise
    raise EcgfastError(
        f"{objects.url}/{name} was put there {_ATTEMPTS} times and read back with other bytes; "
        "check the connection, and run the same command again, it resumes where it stopped"
    )
