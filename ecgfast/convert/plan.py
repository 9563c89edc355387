"""The plan of a convert: which input fills which rows of the store, fixed before any is converted.

Rows are called slots: an input has one, or, with `--window all`, one for each window that it
promises. What is refused leaves its slots empty, so that no unit of 1024 slots depends on another.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, get_args

from ecgfast.errors import ConfigError, ResumeError
from ecgfast.ingest import InputFile
from ecgfast.store.durable import explained, write_durably
from ecgfast.store.format import MANIFEST, SHARD_RECORDS, num_shards, work_beside
from ecgfast.store.manifest import read_manifest
from ecgfast.store.objects import exists
from ecgfast.store.patients import Pseudonyms, read_key
from ecgfast.store.quality import Limits, default_limits
from ecgfast.vocabulary import Codec, PatientIds, Quality, Short, WindowChoice

_PLAN, INPUTS, OFFSETS = "plan.json", "inputs.jsonl", "offsets"
_LAYOUT = 8  # version of the work folder's layout; other versions cannot be resumed
_SAME_EVERYWHERE = ("ecgfast", "numpy", "scipy", "wfdb")  # packages that decide a store's bytes

Spec = dict[str, Any]


@lru_cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in _SAME_EVERYWHERE}


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What decides the bytes of a store, beside its inputs and its key; see `convert`."""

    codec: Codec = "ecgpack"
    window: WindowChoice = "first"
    short: Short = "quarantine"
    quality: Quality = "flag"
    keep_identifiers: bool = False
    patient_ids: PatientIds = "site"
    one_ecg_per_patient: bool = False
    split_seed: int = 0
    columns: tuple[str, ...] = ()
    keep_ages_over_89: bool = False
    quality_limits: Limits = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what came from outside.

        Raises:
            ConfigError: a value is not allowed.
        """
        check_choices(codec=(self.codec, Codec), window=(self.window, WindowChoice))
        check_choices(short=(self.short, Short), quality=(self.quality, Quality))
        check_choices(patient_ids=(self.patient_ids, PatientIds))

    @property
    def limits(self) -> Limits:
        """Every limit of the signal checks: the defaults, and over them `quality_limits`."""
        return default_limits() | dict(self.quality_limits)

    def pseudonyms(self, key: bytes) -> Pseudonyms:
        """The pseudonyms that a key gives."""
        return Pseudonyms(key, self.keep_identifiers, self.patient_ids)


def check_choices(**options: tuple[str, object]) -> None:
    """Refuse options, name -> value and Literal, with none of the values of their Literal."""
    for name, (value, kind) in options.items():
        allowed = get_args(kind)
        if value not in allowed:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} must be one of {', '.join(allowed)}, got {value!r}")


class PlannedInput(NamedTuple):
    """An input, its number in the list, and its slots."""

    item: InputFile
    position: int
    slots: range


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A frozen list of inputs, in a folder beside the store.

    Attributes:
        out: folder of the store; of one in object storage, what it has on this machine.
        spec: all that decides the store's bytes, sources included.
        key_file: of the pseudonyms; empty for a store that is transcoded.
        num_inputs: how many inputs there are; records, for a store that is transcoded.
        num_slots: rows of the arrays when these inputs are in them.
        first_slot: of the first input; those below hold earlier generations of the store.
        num_files: files below the sources when the list was made; 0 for a store.
        passed_over: of them, those that nothing reads, by kind.
        examples: kind -> some of their paths.
        num_bytes: size of the list.
        url: address of a store in object storage, else empty.
        versions: of the packages that decide the store's bytes.
    """

    out: Path
    spec: Spec
    key_file: str = ""
    num_inputs: int
    num_slots: int
    first_slot: int = 0
    num_files: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    num_bytes: int = 0
    url: str = ""
    versions: dict[str, str] = field(default_factory=_versions)

    @property
    def units(self) -> range:
        """Numbers of the shards that the inputs are divided into."""
        return range(self.first_slot // SHARD_RECORDS, num_shards(self.num_slots))

    @property
    def appends(self) -> bool:
        """Whether the inputs are added to a finished store."""
        return "append" in self.spec

    @property
    def options(self) -> ConvertOptions:
        """Those that the store was begun with."""
        names = {each.name for each in fields(ConvertOptions)} & self.spec.keys()
        given = {name: self.spec[name] for name in names}
        return ConvertOptions(**given | {"columns": tuple(given["columns"])})

    def pseudonyms(self) -> Pseudonyms:
        """Those of the key that the store was begun with.

        Raises:
            ConfigError: the key is missing, or another one.
        """
        pseudonyms = self.options.pseudonyms(read_key(Path(self.key_file), warn=False))
        _compare(self.out, {"key": self.spec["key"]}, {"key": pseudonyms.fingerprint})
        return pseudonyms

    def slots(self, unit: int) -> range:
        """The slots of a unit."""
        first = unit * SHARD_RECORDS
        return range(first, min(first + SHARD_RECORDS, self.num_slots))

    def unit_file(self, unit: int) -> Path:
        """What says that a unit is finished, and holds its rows; readable by this user alone."""
        return work_folder(self.out) / f"unit-{unit:06d}.arrow"

    def inputs(self, unit: int) -> Iterator[PlannedInput]:
        """The inputs that fill a unit; the first and last may have further slots outside.

        Raises:
            ResumeError: the list is damaged.
        """
        slots, work = self.slots(unit), work_folder(self.out)
        with (work / OFFSETS).open("rb") as file:
            file.seek(8 * (unit - self.units.start))
            offset = int.from_bytes(file.read(8), "little")
        with (work / INPUTS).open("rb") as file:
            file.seek(offset)
            for line in file:
                planned = _parsed_input(self.out, line)
                if planned.slots.start >= slots.stop:
                    return
                yield planned


def work_folder(out: Path) -> Path:
    """The plan and the units of an unfinished store: beside it, they hold readable paths."""
    return work_beside(out)


def is_sealed(out: Path) -> bool:
    """Whether the folder holds a finished store, perhaps one that is to grow."""
    return exists(out / MANIFEST)


def is_growing(out: Path) -> bool:
    """Whether a plan adds to a finished store; one that was sealed already adds nothing."""
    try:
        planned = json.loads((work_folder(out) / _PLAN).read_bytes())["spec"]["append"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(is_sealed(out) and planned == read_manifest(out)["identity"])


def is_finished(out: Path) -> bool:
    """Whether nothing is left to do for a store."""
    return is_sealed(out) and not is_growing(out)


def is_planned(out: Path) -> bool:
    """Whether an earlier run wrote its plan."""
    return (work_folder(out) / _PLAN).exists()


def write_plan(plan: Plan) -> Plan:
    """Write the plan of a new store, after its inputs: a plan that exists is whole."""
    work = work_folder(plan.out)
    with explained(work):
        work.mkdir(parents=True, exist_ok=True)
    content = {"layout": _LAYOUT, **asdict(plan)}
    del content["out"]
    write_durably(work / _PLAN, [json.dumps(content).encode()], mode=0o600)
    return plan


def check_spec(plan: Plan, spec: Spec, url: str = "") -> None:
    """See that a plan was made by the same command.

    Raises:
        ResumeError: it had other sources or options, named with both values.
    """
    _compare(plan.out, {"url": plan.url, **plan.spec}, {"url": url, **spec})


def request_of(spec: Spec, pseudonyms: Pseudonyms | None) -> str:
    """By which a repeated command recognises its store; `pseudonyms` of a store from files."""
    if pseudonyms is None:
        return hashlib.sha256(f"{spec['identity']} {spec['codec']}".encode()).hexdigest()
    # Keyed: the manifest must not let anybody test guesses of a readable path.
    return pseudonyms.digest("request", json.dumps(spec, sort_keys=True)).hex()


def read_plan(out: Path) -> Plan:
    """The plan of an earlier run, whose inputs are there.

    Raises:
        ResumeError: there is none, it was made by a version of ecgfast with another layout of the
            work folder or with other versions of its packages; or its files are damaged.
    """
    path = work_folder(out) / _PLAN
    try:
        held = path.stat()
    except FileNotFoundError:
        raise ResumeError(
            f"{out} has no plan: {path} is missing; begin with ecgfast convert SOURCE --out {out}"
        ) from None
    return _plan_of(out, (held.st_mtime_ns, held.st_ino, held.st_size))


@lru_cache(maxsize=4)  # a worker reads it once for all its units
def _plan_of(out: Path, held: tuple[int, ...]) -> Plan:
    path = work_folder(out) / _PLAN
    content = _parsed(out, path)
    layout = content.pop("layout", 1)
    if layout != _LAYOUT:
        raise ResumeError(
            f"{out} was begun by another version of ecgfast: {path} has layout {layout}, "
            f"allowed {_LAYOUT}; finish it with that version, or {anew(out)}"
        )
    model = vars(Plan(out=out, spec={}, num_inputs=0, num_slots=0))
    for name in model.keys() - {"out"}:
        if type(content.get(name)) is not type(model[name]):
            raise damaged(out, path, f"it has no {name}")
    plan = Plan(out=out, **{name: content[name] for name in model.keys() - {"out"}})
    for name, here in _versions().items():
        if plan.versions.get(name) != here:
            raise ResumeError(
                f"{out} was begun with {name} {plan.versions.get(name)}, here is {here}, and "
                f"another version may give other bytes; install that one, or {anew(out)}"
            )
    if "sources" in plan.spec:  # a store that is transcoded has no list
        for name, size in ((INPUTS, plan.num_bytes), (OFFSETS, 8 * len(plan.units))):
            found = path.with_name(name).stat().st_size if path.with_name(name).is_file() else 0
            if found != size:
                raise damaged(out, path.with_name(name), f"it has {found:,} bytes of {size:,}")
    return plan


def _parsed(out: Path, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise damaged(out, path, "it is no file")
    try:
        plan = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged(out, path, str(error)) from error
    if not isinstance(plan, dict):
        raise damaged(out, path, f"it is a {type(plan).__name__}")
    return plan


def damaged(out: Path, path: Path, why: str) -> ResumeError:
    """The error for a file of the work folder that cannot be used."""
    return ResumeError(f"{path} is damaged: {why}; {anew(out)}")


def anew(out: Path) -> str:
    """What to remove to begin again: never a store that is finished."""
    if is_sealed(out):
        return f"remove {work_folder(out)} to begin again; {out} stays as it is"
    return f"remove {out} and {work_folder(out)} to begin again"


def _compare(out: Path, earlier: Spec, now: Spec) -> None:
    for key in sorted(earlier.keys() | now.keys()):
        if earlier.get(key) != now.get(key):
            raise ResumeError(
                f"{out} was begun with {key} = {earlier.get(key)}, got {now.get(key)}; "
                f"give the earlier value, or {anew(out)}"
            )


@lru_cache
def _source(text: str) -> Path:
    """The same few folders for every record: making a Path takes 10 microseconds."""
    return Path(text)


def _parsed_input(out: Path, line: bytes) -> PlannedInput:
    try:
        record_id, path, source, row, size, mtime, position, first, num_slots = json.loads(line)
        url = path if "://" in path else ""
        item = InputFile(record_id, Path(path), _source(source), row, size, mtime, url)
        return PlannedInput(item, position, range(first, first + num_slots))
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(out, work_folder(out) / INPUTS, str(error)) from error
