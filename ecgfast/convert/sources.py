"""From sources on a command line to the plan of a store: what is refused leaves nothing behind."""

import json
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import xxhash

from ecgfast import log
from ecgfast.convert.plan import (
    INPUTS,
    OFFSETS,
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
from ecgfast.convert.preprocess import num_windows
from ecgfast.errors import ConfigError, EcgfastError, FormatError
from ecgfast.ingest import InputFile, read_record
from ecgfast.ingest.inventory import Inventory, collision, walk, walk_list
from ecgfast.ingest.staging import staged
from ecgfast.ingest.wfdb_header import read_header
from ecgfast.labels.columns import check_names
from ecgfast.store.durable import DurableFile, explained, write_durably
from ecgfast.store.format import (
    FORMAT_VERSION,
    MANIFEST,
    SIGNALS,
    key_beside,
    num_shards,
    refuse_inside_store,
)
from ecgfast.store.manifest import read_manifest
from ecgfast.store.objects import absolute
from ecgfast.store.patients import read_key, read_or_create_key
from ecgfast.store.reader import open_store
from ecgfast.vocabulary import Codec

_WRITTEN_AT_ONCE = 1024  # lines


def make_plan(
    sources: Sequence[str | Path],
    out: Path,
    options: ConvertOptions,
    key_file: str | Path | None,
    listing: str | Path | None,
    *,
    is_labelled: bool,
) -> Plan | None:
    """The plan of a store, made or found; None where the store is finished."""
    check_names(options.columns)
    paths = [Path(source) for source in sources]
    key = Path(key_file) if key_file is not None else key_beside(out)
    _refuse_within(out, key)
    # An unfinished store is one too, and no folder without recordings.
    stores = [path for path in paths if (path / MANIFEST).exists() or (path / SIGNALS).exists()]
    if not stores:
        return _plan_of_files(paths, out, options, key, listing)
    own = replace(options, columns=(), keep_ages_over_89=False)
    # With a store as source, these belong to the labels that are joined.
    unused = own != options or key_file is not None
    is_default = own == ConvertOptions(codec=options.codec) and listing is None
    if len(paths) > 1 or not is_default or (unused and not is_labelled):
        raise ConfigError(
            f"{stores[0]} is a store, which is transcoded alone and as it is; give only "
            "--out, --codec and --workers with it"
        )
    return _plan_of_store(stores[0], out, options.codec)


def _plan_of_files(
    paths: list[Path], out: Path, options: ConvertOptions, key: Path, listing: str | Path | None
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
        return write_plan(replace(draft, spec=spec, key_file=str(key.resolve())))
    if not is_sealed(out):
        plan = read_plan(out)
        check_spec(plan, spec)
        return plan
    manifest = read_manifest(out)
    if manifest["version"] == 1:  # the request as it was then
        spec |= {"format_version": 1, "ages_over_89": spec.pop("keep_ages_over_89")}
    other = "a finished store made from other sources or options"
    _refuse_other(out, request_of(spec, pseudonyms), other)
    log.info(f"{out} is finished already")
    _warn_of_changes(out, manifest["counts"]["inputs"], paths)
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


def _plan_of_store(source: Path, out: Path, codec: Codec) -> Plan | None:
    """A plan to encode every record of a store again.

    Raises:
        CorruptStoreError: the source is damaged.
        ConfigError: `out` is a finished store of something else.
    """
    reader = open_store(source)
    spec = {"store": str(source.resolve()), "identity": reader.identity, "codec": codec}
    if is_sealed(out):
        _refuse_other(out, request_of(spec, None), "another finished store")
        return None
    if is_planned(out):
        plan = read_plan(out)
        check_spec(plan, spec)
        return plan
    _check_free(out)
    reader.check_digests()  # the new store's own digests would hide damage that is here already
    return write_plan(Plan(out=out, spec=spec, num_inputs=len(reader), num_slots=len(reader)))


def _refuse_other(out: Path, request: str, other: str) -> None:
    """Refuse a finished store that does not answer the same request."""
    if read_manifest(out)["request"] != request:
        raise ConfigError(f"--out {out} holds {other}; choose another folder")
    if not is_growing(out):  # left by a process that died after writing the manifest
        shutil.rmtree(work_folder(out), ignore_errors=True)


def _warn_of_changes(out: Path, before: int, paths: list[Path]) -> None:
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


def write_inputs(
    out: Path,
    items: Iterable[InputFile],
    inventory: Inventory,
    options: ConvertOptions,
    first_slot: int = 0,
) -> Plan:
    """Write the list of inputs as they are found; an error leaves nothing behind.

    Args:
        out: folder of the store.
        items: in the order of the store.
        inventory: counts of files, complete when the last item was taken.
        options: whose windows each input has.
        first_slot: of the first input.
    Returns:
        the plan that `write_plan` makes durable, without a spec.
    Raises:
        FormatError: two inputs have one id.
    """
    work = work_folder(out)
    was_there = work.exists()
    with explained(work):
        work.mkdir(parents=True, exist_ok=True)
    lines = _Lines(options, first_slot)
    file = DurableFile(work / INPUTS, mode=0o600)
    try:
        found = lines.of(items)
        while some := list(islice(found, _WRITTEN_AT_ONCE)):  # an error of a source is none of this
            file.write(some)
        entry = file.finish()
        _refuse_collisions(work / INPUTS, lines.hashes)
        write_durably(work / OFFSETS, [np.array(lines.offsets, "<u8").tobytes()], mode=0o600)
    except BaseException:  # Ctrl-C too
        file.discard()
        if not was_there:
            shutil.rmtree(work, ignore_errors=True)
        raise
    return Plan(
        out=out,
        spec={},
        num_inputs=len(lines.hashes),
        num_slots=lines.num_slots,
        first_slot=first_slot,
        num_files=inventory.num_files,
        passed_over=dict(inventory.passed_over),
        examples=inventory.examples,
        num_bytes=int(entry["bytes"]),
    )


class _Lines:
    """Inputs on their way to a file: nothing of them stays but 8 bytes each."""

    def __init__(self, options: ConvertOptions, first_slot: int) -> None:
        self._options, self._first_shard = options, num_shards(first_slot)
        self.num_slots = first_slot
        self.hashes = array("Q")  # of the record ids
        self.offsets: list[int] = []  # of the line that fills the first slot of each unit

    def of(self, items: Iterable[InputFile]) -> Iterator[bytes]:
        """Yield the line of each input."""
        num_bytes = 0
        items = items if self._options.window == "first" else staged(items)  # they are read
        for item in items:
            slots = num_slots(item, self._options)
            begun = num_shards(self.num_slots + slots) - self._first_shard - len(self.offsets)
            self.offsets += [num_bytes] * begun
            place = [item.place, str(item.source), item.row, *item.size_and_mtime()]
            line = [item.record_id, *place, len(self.hashes), self.num_slots, slots]
            data = json.dumps(line).encode() + b"\n"
            self.num_slots += slots
            self.hashes.append(_hash(item.record_id))
            num_bytes += len(data)
            yield data


def num_slots(item: InputFile, options: ConvertOptions) -> int:
    """Rows that an input fills."""
    if options.window == "first":
        return 1
    try:
        return num_windows(*_length(item))
    except EcgfastError:  # its unit refuses it
        return 1


def _length(item: InputFile) -> tuple[int, float]:
    """Timesteps and rate of a recording: what a WFDB header promises; other files are read."""
    if item.path.suffix.lower() == ".hea" and item.path.is_file():
        header = read_header(item.path)
        is_plain = all(each.samples_per_frame == 1 and not each.skew for each in header.signals)
        if is_plain and header.num_timesteps > 0 and not header.segments:
            return header.num_timesteps, header.sampling_rate_hz
    record = read_record(item)
    return record.signal.shape[1], record.sampling_rate_hz


def _refuse_collisions(path: Path, hashes: "array[int]") -> None:
    """Refuse two inputs of one record_id: those of one hash are compared as text."""
    ordered = np.sort(np.frombuffer(hashes, np.uint64))
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not twice:
        return
    first_of: dict[str, Path] = {}
    with path.open("rb") as file:
        for line in file:
            record_id, name, *_ = json.loads(line)
            if _hash(record_id) in twice:
                if record_id in first_of:
                    raise collision(record_id, first_of[record_id], Path(name))
                first_of[record_id] = Path(name)


def _hash(record_id: str) -> int:
    return xxhash.xxh3_64_intdigest(record_id.encode())
