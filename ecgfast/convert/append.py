"""The plan of an append: inputs that a finished store does not know yet, behind its last shard."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pyarrow.compute as pc

from ecgfast import log
from ecgfast.convert.inputs import write_inputs
from ecgfast.convert.plan import (
    ConvertOptions,
    Plan,
    check_spec,
    is_growing,
    is_sealed,
    read_plan,
    work_folder,
    write_plan,
)
from ecgfast.convert.sources import listed, spec_of
from ecgfast.errors import ConfigError
from ecgfast.ingest import InputFile
from ecgfast.ingest.files import printable
from ecgfast.ingest.inventory import Inventory
from ecgfast.labels.columns import check_names
from ecgfast.labels.matching import patient_ids, store_pseudonyms
from ecgfast.store.csv_files import listed_sizes, refused_ids, write_changed
from ecgfast.store.erase import erase_records, erased_digests, finish_erasure
from ecgfast.store.format import (
    SHARD_RECORDS,
    changed_beside,
    erased_beside,
    key_beside,
    num_shards,
)
from ecgfast.store.generations import settle
from ecgfast.store.patients import Pseudonyms
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.store.table import recordings_of


def make_append_plan(
    sources: Sequence[str | Path],
    out: Path,
    options: ConvertOptions,
    key_file: str | Path | None,
    listing: str | Path | None,
    *,
    replace_changed: bool = False,
) -> Plan | None:
    """The plan of what is new below the sources, made or found; None where nothing is.

    Args:
        sources: files and folders, all or only new ones.
        out: a finished store; the caller holds its lock.
        options: those that are not the defaults must be the store's.
        key_file: of the store, where it is not STORE.key.
        listing: as in `convert`.
        replace_changed: take inputs again whose files have changed, instead of listing them.
    Raises:
        ConfigError: no finished store, one of format 1, other options, or another key.
        ResumeError: another append of this store was begun.
    """
    check_names(options.columns)
    if not is_sealed(out):
        raise ConfigError(
            f"--append needs a finished store, got {out}; leave it out for the first convert"
        )
    finish_erasure(out)
    settle(out)  # what a crash behind a manifest left
    reader = open_store(out)
    if reader.manifest["version"] == 1:
        raise ConfigError(
            f"{out} has format 1, which does not grow; ecgfast convert {out} --out NEW makes a "
            "store that does"
        )
    own = _options_of(reader, options)
    paths = [Path(source) for source in sources]
    spec = spec_of(paths, own, listing) | {"append": reader.identity}
    key = Path(key_file) if key_file is not None else key_beside(out)
    pseudonyms = store_pseudonyms(reader, key)
    spec |= {"key": pseudonyms.fingerprint, "replace": replace_changed}
    if is_growing(out):
        plan = read_plan(out)
        check_spec(plan, spec)
        return plan
    shutil.rmtree(work_folder(out), ignore_errors=True)  # of one that is sealed
    inventory = Inventory()
    found = _Found(reader, pseudonyms, replace_changed=replace_changed)
    items = found.new(listed(paths, listing, inventory))
    first = num_shards(reader.num_slots) * SHARD_RECORDS
    draft = write_inputs(out, items, inventory, own, first)
    _report(out, found)
    if replace_changed and found.changed:  # a crash behind this line makes them new inputs
        erase_records(reader, set(found.changed))
        spec["append"] = open_store(out).identity
    if not draft.num_inputs:
        shutil.rmtree(work_folder(out))
        log.info(f"{out}: nothing is new, {found.num_known:,} inputs are known")
        return None
    return write_plan(replace(draft, spec=spec, key_file=str(key.resolve())))


def _options_of(reader: StoreReader, asked: ConvertOptions) -> ConvertOptions:
    """The options that a store was made with; columns that are asked for join them.

    Raises:
        ConfigError: others are asked for.
    """
    manifest = reader.manifest
    own = ConvertOptions(
        codec=reader.codec,
        window=manifest["preprocessing"]["window"],
        short=manifest["preprocessing"]["short"],
        quality=manifest["quality"],
        keep_identifiers=manifest["identifiers"] == "kept",
        patient_ids=patient_ids(reader),
        one_ecg_per_patient=manifest["patients"]["one_ecg_each"],
        split_seed=manifest["splits"].get("seed", 0),
        columns=tuple(dict.fromkeys([*manifest.get("columns", []), *asked.columns])),
        keep_ages_over_89=manifest["retained"]["ages_over_89"],
        quality_limits=manifest.get("quality_limits", {}),
    )
    if asked.quality_limits and asked.limits != own.limits:
        raise ConfigError(
            f"--quality-limits: {reader.path} was made with others, and what is appended is "
            "checked in the same way; leave --quality-limits out"
        )
    default = ConvertOptions()
    for name in {each.name for each in fields(own)} - {"columns", "quality_limits"}:
        value, here = getattr(asked, name), getattr(own, name)
        if value not in (here, getattr(default, name)):
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--{flag} {value}: {reader.path} was made with {here}, and what is appended is "
                f"converted in the same way; leave --{flag} out"
            )
    return own


@dataclass
class _Found:
    """What a listing holds, beside what the store knows.

    Attributes:
        reader: the store.
        pseudonyms: of its key.
        replace_changed: take inputs again whose files have changed.
        num_known: inputs that the store has, or has refused.
        num_erased: inputs that were erased from the store, and stay out.
        changed: of them, those whose files have changed since: record_id -> path.
    """

    reader: StoreReader
    pseudonyms: Pseudonyms
    replace_changed: bool
    num_known: int = 0
    num_erased: int = 0
    changed: dict[str, str] = field(default_factory=dict)

    def new(self, items: Iterator[InputFile]) -> Iterator[InputFile]:
        """Yield the inputs that are to be converted."""
        known = known_ids(self.reader)
        sizes: dict[str, tuple[int, int]] | None = None
        erased = erased_digests(self.reader.path)
        for item in items:
            record_id = self.pseudonyms.of("record", item.record_id)
            if erased and self.pseudonyms.erased(record_id) in erased:
                self.num_erased += 1
                continue
            if record_id not in known:
                yield item
                continue
            self.num_known += 1
            if sizes is None:  # a listing of new files alone needs none of them
                sizes = listed_sizes(self.reader.path)
            before = sizes.get(record_id)
            if before is not None and before != item.size_and_mtime():
                self.changed[record_id] = printable(item.place)
                if self.replace_changed:
                    yield item


def known_ids(reader: StoreReader) -> set[str]:
    """The ids of all recordings that a store has or has refused, as it has them."""
    records = reader.columns("record_id", "start_timestep")
    later = records.filter(pc.field("start_timestep") > 0)  # windows, of which the first may lack
    refused = refused_ids(reader.quarantine)
    return {*records["record_id"].to_pylist(), *recordings_of(later), *refused}


def _report(out: Path, found: _Found) -> None:
    """Say which files have changed; their names can be those of patients, so not in the log."""
    if found.num_erased:
        log.warning(
            f"{found.num_erased:,} inputs were erased from {out} and stay out, as "
            f"{erased_beside(out)} says; remove their files from the sources"
        )
    if found.replace_changed or not found.changed:
        changed_beside(out).unlink(missing_ok=True)
        return
    write_changed(out, found.changed)
    log.warning(
        f"{len(found.changed):,} of {found.num_known:,} known inputs have changed since they were "
        f"converted, and stay in {out} as they were; {changed_beside(out)} lists them, --replace "
        "takes them again"
    )
