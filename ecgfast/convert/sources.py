"""From sources on a command line to the plan of a store: what is refused leaves nothing behind."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ecgfast import log
from ecgfast.convert.inputs import write_inputs
from ecgfast.convert.plan import (
    ConvertOptions,
    Plan,
    Spec,
    check_spec,
    is_growing,
    is_planned,
    is_sealed,
    read_plan,
    request_of,
    work_folder,
    write_plan,
)
from ecgfast.errors import ConfigError, FormatError
from ecgfast.ingest import InputFile
from ecgfast.ingest.inventory import Inventory, walk, walk_list
from ecgfast.labels.columns import check_names
from ecgfast.store.format import (
    FORMAT_VERSION,
    MANIFEST,
    SIGNALS,
    key_beside,
    refuse_inside_store,
)
from ecgfast.store.manifest import read_manifest
from ecgfast.store.objects import absolute
from ecgfast.store.patients import read_key, read_or_create_key
from ecgfast.store.reader import open_store
from ecgfast.vocabulary import Codec


def make_plan(
    sources: Sequence[str | Path],
    out: Path,
    options: ConvertOptions,
    key_file: str | Path | None,
    listing: str | Path | None,
    *,
    is_labelled: bool,
    url: str = "",
) -> Plan | None:
    """The plan of a store, made or found; None where the store is finished.

    Args:
        sources: files and folders, or one store.
        out: folder of the store.
        options: what decides its bytes.
        key_file: as in `convert`.
        listing: as in `convert`.
        is_labelled: a table of labels is given too.
        url: address of the store where it is made in object storage.
    """
    check_names(options.columns)
    paths = [Path(source) for source in sources]
    key = Path(key_file) if key_file is not None else key_beside(out)
    _refuse_within(out, key)
    # An unfinished store is one too, and no folder without recordings.
    stores = [path for path in paths if (path / MANIFEST).exists() or (path / SIGNALS).exists()]
    if not stores:
        if url and key_file is None:
            raise ConfigError(
                f"--out {url} needs --key-file, a file that you keep: no folder beside the store "
                "can hold its pseudonym key; it is made if it does not exist"
            )
        return _plan_of_files(paths, out, options, key, listing, url)
    own = replace(options, columns=(), keep_ages_over_89=False)
    # With a store as source, these belong to the labels that are joined.
    unused = own != options or key_file is not None
    is_default = own == ConvertOptions(codec=options.codec) and listing is None
    if len(paths) > 1 or not is_default or (unused and not is_labelled):
        raise ConfigError(
            f"{stores[0]} is a store, which is transcoded alone and as it is; give only "
            "--out, --codec and --workers with it"
        )
    return _plan_of_store(stores[0], out, options.codec, url)


def _plan_of_files(
    paths: list[Path],
    out: Path,
    options: ConvertOptions,
    key: Path,
    listing: str | Path | None,
    url: str,
) -> Plan | None:
    """Order matters: a wrong key or path leaves nothing behind."""
    known = read_key(key) if key.exists() else None
    spec = spec_of(paths, options, listing)
    draft = None
    if not is_sealed(out) and not is_planned(out):
        _check_free(out)
        inventory = Inventory()
        draft = write_inputs(out, listed(paths, listing, inventory), inventory, options)
    if known is None and draft is not None:
        log.info(f"made the pseudonym key {key}: keep it, and keep it apart from the store")
        known = read_or_create_key(key)
    pseudonyms = options.pseudonyms(known or read_key(key))
    spec["key"] = pseudonyms.fingerprint
    if draft is not None:
        return write_plan(replace(draft, spec=spec, key_file=str(key.resolve()), url=url))
    if not is_sealed(out):
        plan = read_plan(out)
        check_spec(plan, spec, url)
        return plan
    manifest = read_manifest(out)
    if manifest["version"] == 1:  # the request as it was then
        spec |= {"format_version": 1, "ages_over_89": spec.pop("keep_ages_over_89")}
    other = "a finished store made from other sources or options"
    _refuse_other(out, request_of(spec, pseudonyms), other, url)
    log.info(f"{url or out} is finished already")
    _warn_of_changes(url or out, manifest["counts"]["inputs"], paths)
    return None


def spec_of(paths: list[Path], options: ConvertOptions, listing: str | Path | None) -> Spec:
    """What a plan of files has to be the same in, without its key."""
    spec: Spec = {
        "sources": [absolute(path) for path in paths],
        **asdict(options),
    }
    spec |= {"columns": list(options.columns), "format_version": FORMAT_VERSION}
    if not options.quality_limits:  # as a request was before there were any
        del spec["quality_limits"]
    return spec if listing is None else spec | {"list": absolute(listing)}


def listed(
    paths: list[Path], listing: str | Path | None, inventory: Inventory
) -> Iterator[InputFile]:
    """The inputs below the sources, or those of a list.

    Raises:
        ConfigError: the list is no file, or goes with more than one folder.
    """
    if listing is None:
        return walk(paths, inventory)
    listing = Path(listing)
    if len(paths) != 1 or not paths[0].is_dir():
        raise ConfigError("--list needs one SOURCE, the folder that its paths are relative to")
    if not listing.is_file():
        raise ConfigError(f"--list {listing} is no file; give one with a path a line")
    return walk_list(listing, paths[0], inventory)


def _plan_of_store(source: Path, out: Path, codec: Codec, url: str) -> Plan | None:
    """A plan to encode every record of a store again.

    Raises:
        CorruptStoreError: the source is damaged.
        ConfigError: `out` is a finished store of something else.
    """
    reader = open_store(source)
    spec = {"store": str(source.resolve()), "identity": reader.identity, "codec": codec}
    if is_sealed(out):
        _refuse_other(out, request_of(spec, None), "another finished store", url)
        return None
    if is_planned(out):
        plan = read_plan(out)
        check_spec(plan, spec, url)
        return plan
    _check_free(out)
    reader.check_digests()  # the new store's own digests would hide damage that is here already
    count = len(reader)
    return write_plan(Plan(out=out, spec=spec, url=url, num_inputs=count, num_slots=count))


def _refuse_other(out: Path, request: str, other: str, url: str) -> None:
    """Refuse a finished store that does not answer the same request."""
    if read_manifest(out)["request"] != request:
        raise ConfigError(f"--out {url or out} holds {other}; choose another folder")
    if not is_growing(out):  # left by a process that died after writing the manifest
        shutil.rmtree(work_folder(out), ignore_errors=True)


def _warn_of_changes(out: str | Path, before: int, paths: list[Path]) -> None:
    """Warn where the sources hold other inputs than the finished store; it needs them no more."""
    if not all(path.exists() for path in paths):
        return
    try:
        now = sum(1 for _ in walk(paths, Inventory()))
    except (FormatError, OSError) as error:  # an emptied folder, a share that is not mounted
        log.warning(f"{out} stays as it is; its sources cannot be listed again: {error}")
        return
    if now != before:
        log.warning(
            f"the sources hold {now:,} inputs, {out} was made from {before:,} and stays as it is; "
            "--append adds those that are new"
        )


def _refuse_within(out: Path, key: Path) -> None:
    """Refuse a store in another store, and a key in any store."""
    refuse_inside_store(out.resolve().parent, "--out")
    refuse_inside_store(key, "--key-file")
    if key.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"--key-file {key} lies in the store {out}, which is meant to be shared without its "
            "key; choose a place outside"
        )


def _check_free(out: Path) -> None:
    """Refuse to write among files of somebody else.

    Raises:
        ConfigError: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"--out {out} exists and is neither empty nor a store; choose another folder"
        )
