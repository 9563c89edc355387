"""Where a trained model is: a folder, a model of the Hugging Face hub, a run in object storage."""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ecgfast import log
from ecgfast.errors import BackendUnavailableError, BusyError, ConfigError, CorruptStoreError
from ecgfast.runs.loading import EXPORTED, EXPORTED_WEIGHTS, RESULT
from ecgfast.store.durable import exclusive
from ecgfast.store.format import address_of
from ecgfast.store.objects import BrokenConnectionError, ObjectFacts, Objects

CARD, SETTINGS = "README.md", "config.toml"
HUB = "hf://"
_CHECKPOINTS = "checkpoints/"
_ATTEMPTS = 2
_WAIT_S = 0.2


def located(name: str | Path) -> Path:
    """Resolve the name of a model to a folder on this machine.

    A name that begins with ``hf://`` is a model of the Hugging Face hub, fetched into its cache
    unless it lies there: ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``. An address such as
    ``s3://BUCKET/RUN`` is copied into ecgfast's cache likewise. Every other name is a path, whether
    it exists or not: no mistyped path leaves this machine.

    Raises:
        ConfigError: no such model there, or the name of none.
        BackendUnavailableError: a package is not installed, or the hub cannot be reached.
        EcgfastError: no connection, no permission, no space.
    """
    if address_of(name):
        return _from_objects(Path(name))
    if str(name).startswith(HUB):
        return _from_hub(str(name))
    return Path(name)


def _from_objects(path: Path) -> Path:
    """A copy of a run, an exported model or a file of weights; who loads it checks its digests."""
    url = address_of(path)
    assert url is not None
    source = Objects(url)
    found = _needed(list(source.below()))
    if not found:  # no folder: a file of weights
        above, _, name = url.rpartition("/")
        source = Objects(above)
        found = [each for each in source.folder()[1] if each.name == name]
    if not any(each.name in (SETTINGS, EXPORTED, path.name) for each in found):
        raise ConfigError(
            f"{url} is neither a run nor a file of weights: it has no {SETTINGS}; check the address"
        )
    # Another content is another copy: a run that goes on, or was trained again, has other times.
    state = hashlib.sha256(repr((url, sorted(found))).encode()).hexdigest()[:32]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "ecgfast/runs" / state / path.name
    inside = folder.parent if found[0].name == path.name else folder
    while True:
        with suppress(BusyError), exclusive(folder.parent / ".lock", folder):
            _copy_missing(source, found, inside)
            return folder
        time.sleep(_WAIT_S)  # another rank copies it


def _needed(found: list[ObjectFacts]) -> list[ObjectFacts]:
    """What is loaded of a run: of its checkpoints the newest, none of a finished fine-tuning."""
    of = [each.name.split("/")[1] if each.name.startswith(_CHECKPOINTS) else "" for each in found]
    newest = max((name for name in of if name.startswith("step-")), key=_by_step, default="")
    kept = {"", "" if any(each.name == RESULT for each in found) else newest}
    return [each for each, name in zip(found, of, strict=True) if name in kept]


def _by_step(name: str) -> tuple[int, str]:
    return len(name), name


def _copy_missing(source: Objects, found: list[ObjectFacts], folder: Path) -> None:
    missing = [each for each in found if not _is_there(folder / each.name, each)]
    if missing:
        size = sum(each.num_bytes for each in missing)
        log.info(f"{source.url} is copied to {folder}, {size:,} bytes")
    for each in missing:
        if ".." in PurePosixPath(each.name).parts:
            raise CorruptStoreError(
                f"{source.url} holds a file outside of the folder: {each.name!r}; remove it"
            )
        _copy(source, each, folder / each.name)


def _is_there(path: Path, each: ObjectFacts) -> bool:
    return path.is_file() and path.stat().st_size == each.num_bytes


def _copy(source: Objects, each: ObjectFacts, path: Path) -> None:
    """Copy an object, twice if the connection breaks or ends too early the first time."""
    for attempt in range(_ATTEMPTS):
        try:
            if source.copy(each.name, path)["bytes"] == each.num_bytes:
                return
        except BrokenConnectionError:
            if attempt == _ATTEMPTS - 1:
                raise
    path.unlink()
    raise CorruptStoreError(
        f"{source.url}/{each.name} has other bytes than its listing says, {each.num_bytes:,}; it "
        "may be being written: run the same command again"
    )


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise BackendUnavailableError(
            f"{name} needs the package huggingface_hub; pip install 'ecgfast[hub]'"
        ) from error
    repository, _, revision = name.removeprefix(HUB).partition("@")
    if repository.count("/") != 1:
        raise ConfigError(f"a model of the hub is {HUB}OWNER/NAME[@REVISION], got {name}")
    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=[EXPORTED, EXPORTED_WEIGHTS, SETTINGS, CARD],
        )
    except LocalEntryNotFoundError as error:
        raise BackendUnavailableError(
            f"{name} is not in the cache, and the hub cannot be reached; check the network, or "
            "fetch the folder elsewhere and name it"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{name} cannot be fetched: {reason}; check the name") from error
    return Path(folder)
