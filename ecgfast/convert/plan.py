"""The frozen plan of a convert: options and ordered inputs; compared on every resume."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from ecgfast.errors import ConfigError, ResumeError
from ecgfast.ingest import InputFile
from ecgfast.ingest.inventory import Inventory
from ecgfast.store.durable import explained, write_durably
from ecgfast.store.format import MANIFEST, beside

_PLAN, _INPUTS = "plan.json", "inputs.jsonl"
_LAYOUT = 5  # version of the work folder's layout; other versions cannot be resumed
_COUNTS = {"num_inputs": int, "num_files": int, "passed_over": dict, "examples": dict}  # of a plan

Spec = dict[str, Any]


def work_folder(out: Path) -> Path:
    """Journal, frozen input list and rows of an unfinished store: beside it, they hold paths."""
    return beside(out, ".convert")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A frozen list of inputs.

    Attributes:
        work: folder that holds it.
        num_inputs: how many there are.
        num_files: files below the sources when the list was made; 0 for a store.
        passed_over: of them, those that nothing reads, by kind.
        examples: kind -> some of their paths.
    """

    work: Path
    num_inputs: int
    num_files: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def batches(self, start: int, size: int) -> Iterator[list[bytes]]:
        """The lines of the inputs from `start` on, in lists of `size`, read as they are needed."""
        with (self.work / _INPUTS).open("rb") as file:
            rest = islice(file, start, None)
            while lines := list(islice(rest, size)):
                yield lines


def is_finished(out: Path) -> bool:
    """Whether the folder holds a sealed store."""
    return (out / MANIFEST).exists()


def is_frozen(out: Path) -> bool:
    """Whether an earlier run froze its plan."""
    return (work_folder(out) / _PLAN).exists()


def check_free(out: Path) -> None:
    """Refuse to write among files of somebody else.

    Raises:
        ConfigError: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"--out {out} exists and is neither empty nor a store; choose another folder"
        )


def write_inputs(out: Path, inventory: Inventory) -> Plan:
    """Write the sorted inputs of a new store; returns the plan that `write_plan` makes durable."""
    work = _made(work_folder(out))
    write_durably(work / _INPUTS, map(_line, inventory.inputs), mode=0o600)
    return Plan(
        work=work,
        num_inputs=len(inventory.inputs),
        num_files=inventory.num_files,
        passed_over=dict(inventory.passed_over),
        examples=inventory.examples,
    )


def write_plan(out: Path, spec: Spec, plan: Plan) -> Plan:
    """Write the plan of a new store, after its inputs: a plan that exists is whole.

    Args:
        out: folder of the store.
        spec: all that decides the store's bytes, sources included.
        plan: its inputs, or the number of records to transcode, and what else was found.
    """
    _made(plan.work)
    content = {"layout": _LAYOUT, "spec": spec} | {key: getattr(plan, key) for key in _COUNTS}
    write_durably(plan.work / _PLAN, [json.dumps(content).encode()], mode=0o600)
    return plan


def read_plan(out: Path, spec: Spec) -> Plan:
    """The plan of an earlier run of the same command.

    Raises:
        ResumeError: that run had other sources or options, named with both values, or was of a
            version of ecgfast with another layout of the work folder; or its files are damaged.
    """
    work = work_folder(out)
    plan = _parsed(out, work / _PLAN)
    layout = plan.get("layout", 1)
    if layout != _LAYOUT:
        raise ResumeError(
            f"{out} was begun by another version of ecgfast: {work / _PLAN} has layout {layout}, "
            f"allowed {_LAYOUT}; finish it with that version, or remove {out} and {work} to begin "
            "again"
        )
    for name, kind in {"spec": dict, **_COUNTS}.items():
        if type(plan.get(name)) is not kind:
            raise _damaged(out, work / _PLAN, f"it has no {name}")
    _compare(out, plan["spec"], spec)
    if "sources" in spec:  # a store that is transcoded has no list
        _check_inputs(out, work / _INPUTS, plan["num_inputs"])
    return Plan(work=work, **{key: plan[key] for key in _COUNTS})


def _parsed(out: Path, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise _damaged(out, path, "it is no file")
    try:
        plan = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(out, path, str(error)) from error
    if not isinstance(plan, dict):
        raise _damaged(out, path, f"it is a {type(plan).__name__}")
    return plan


def _check_inputs(out: Path, path: Path, expected: int) -> None:
    """Refuse a list that was cut short: the store would lack records without an error."""
    if not path.is_file():
        raise _damaged(out, path, "it is no file")
    found = 0
    with path.open("rb") as file:
        for line in file:
            found += line.endswith(b"\n")
    if found != expected:
        raise _damaged(out, path, f"it has {found:,} inputs of {expected:,}")


def _damaged(out: Path, path: Path, why: str) -> ResumeError:
    return ResumeError(
        f"{path} is damaged: {why}; remove {out} and {work_folder(out)} to begin again"
    )


def _compare(out: Path, earlier: Spec, now: Spec) -> None:
    for key in sorted(earlier.keys() | now.keys()):
        if earlier.get(key) != now.get(key):
            raise ResumeError(
                f"{out} was begun with {key} = {earlier.get(key)}, got {now.get(key)}; "
                f"give the earlier value, or remove {out} and {work_folder(out)} to begin again"
            )


def _made(work: Path) -> Path:
    with explained(work):
        work.mkdir(parents=True, exist_ok=True)
    return work


def _line(item: InputFile) -> bytes:
    entry = [item.record_id, str(item.path), str(item.source), item.row]
    return json.dumps(entry).encode() + b"\n"


@lru_cache
def _source(text: str) -> Path:
    """The same few folders for every record: making a Path takes 10 microseconds."""
    return Path(text)


def parse_input(line: bytes) -> InputFile:
    """The input that a line of `Plan.batches` names.

    Raises:
        ResumeError: the line is damaged.
    """
    try:
        record_id, path, source, row = json.loads(line)
        return InputFile(record_id=record_id, path=Path(path), source=_source(source), row=row)
    except (ValueError, TypeError, RecursionError) as error:
        raise ResumeError(
            f"{_INPUTS} of the unfinished store is damaged: {error}; remove the store and the "
            ".convert folder beside it to begin again"
        ) from error
