"""Memory that the plan and the seal of a convert take a record, with made-up records.

    python tests/checks/convert_memory.py 100000 400000

Each step runs in a process of its own, for each of the two numbers of records, and this one watches
what memory it takes that no file backs, as the kernel counts it. What both runs take is no growth.
What is freed goes back to the kernel at once: else peaks differ by tens of megabytes, by chance.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ecgfast_kernels.codec.signals import MAX_BEATS, NO_BEAT, NUM_CORRELATIONS

from ecgfast.convert.inputs import write_inputs
from ecgfast.convert.plan import ConvertOptions, Plan, work_folder
from ecgfast.convert.seal import seal
from ecgfast.convert.sources import spec_of
from ecgfast.ingest import InputFile
from ecgfast.ingest.inventory import Inventory
from ecgfast.store import table
from ecgfast.store.format import shard_files
from ecgfast.store.patients import Pseudonyms, read_or_create_key
from ecgfast.store.quality import MEASURES
from ecgfast.store.table import PendingRows

STEPS = ("plan", "seal")
_SAMPLES_A_SECOND = 500
_FREED_AT_ONCE = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
_FILE = {"bytes": 12_345_678, "sha256": "0" * 64}


def main(numbers: list[int]) -> None:
    """Print bytes a record of each step."""
    for step, grown in growth(*numbers).items():
        print(f"{step}: {grown:.1f} bytes a record")


def growth(few: int, many: int) -> dict[str, float]:
    """Step -> bytes of memory that each further record takes.

    Args:
        few: records of the smaller store; with 60,000 its peak lasts long enough to be seen.
        many: records of the larger one.
    """
    with TemporaryDirectory() as folder:
        peaks = {
            (step, number): _peak(step, Path(folder) / f"{step}-{number}", number)
            for step in STEPS
            for number in (few, many)
        }
    return {step: (peaks[step, many] - peaks[step, few]) / (many - few) for step in STEPS}


def _peak(step: str, out: Path, num_records: int) -> int:
    """The most bytes that no file backs of a process that does one step."""
    if step == "seal":
        _run(["units", str(out), str(num_records)])
    command = [sys.executable, __file__, step, str(out), str(num_records)]
    peak = 0
    began = time.monotonic()
    with subprocess.Popen(command, env=os.environ | _FREED_AT_ONCE) as process:
        while process.poll() is None:
            peak = max(peak, _anonymous_bytes(process.pid))
            time.sleep(1 / _SAMPLES_A_SECOND)
    print(
        f"{step} {num_records}: peak {peak / 1e6:.1f} MB, {time.monotonic() - began:.1f} s",
        file=sys.stderr,
    )
    if process.returncode:
        raise SystemExit(f"{step} of {num_records} records failed")
    return peak


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, __file__, *arguments], check=True)


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith("RssAnon:"))
    return sum(1024 * int(line[1]) for line in lines)


def make_plan(out: Path, num_records: int) -> None:
    """Write the list of inputs with made-up names."""
    source = Path("/made-up")
    items = (
        InputFile(
            record_id=(name := f"{number // 1000:05d}/{number:08d}"),
            path=source / f"{name}.hea",
            source=source,
            num_bytes=120_000,
            mtime_ns=number,
        )
        for number in range(num_records)
    )
    plan = write_inputs(out, items, Inventory(), ConvertOptions())
    assert plan.num_inputs == num_records


def make_units(out: Path, num_records: int) -> None:
    """Write the files of the units of a convert, as if its shards had been made."""
    plan, pseudonyms = _plan(out, num_records)
    work_folder(out).mkdir(parents=True)
    for name in shard_files(0).values():
        (out / name).parent.mkdir(parents=True)
    for unit in plan.units:
        rows = PendingRows()
        rows.add([*_rows(plan.slots(unit), pseudonyms)])
        files = dict.fromkeys(shard_files(unit).values(), _FILE)
        facts = [len(plan.slots(unit)), len(plan.slots(unit)), files, rows.kinds]
        text = {"facts": json.dumps(facts), "quarantine": "", "sources": ""}
        plan.unit_file(unit).write_bytes(rows.pack(text))


def _plan(out: Path, num_records: int) -> tuple[Plan, Pseudonyms]:
    key = out.with_name(f"{out.name}.key")
    options = ConvertOptions()
    pseudonyms = options.pseudonyms(read_or_create_key(key))
    spec = spec_of([out.parent], options, None) | {"key": pseudonyms.fingerprint}
    plan = Plan(
        out=out, spec=spec, key_file=str(key), num_inputs=num_records, num_slots=num_records
    )
    return plan, pseudonyms


def _rows(slots: range, pseudonyms: Pseudonyms) -> Iterator[dict[str, object]]:
    """Rows with six ECGs of a patient; many have near neighbours, and none has another's beats."""
    rng = np.random.default_rng(slots.start)
    directions = np.random.default_rng(0).normal(0, 8, (6, NUM_CORRELATIONS))
    spread = rng.normal(size=(len(slots), 6)) @ directions
    near = np.clip(spread + rng.normal(0, 4, spread.shape), -127, 127).astype(np.int8)
    beats = np.full((len(slots), MAX_BEATS), NO_BEAT, "<u2")
    apart = np.stack([np.array(slots) // power % 100 for power in (1, 100, 10_000)], axis=1)
    beats[:, 0], beats[:, 1:4] = 0, np.cumsum(300 + 20 * apart, axis=1)
    numbers = rng.lognormal(5, 0.3, (len(slots), 4))
    for n, slot in enumerate(slots):
        name, site = f"{slot // 1000:05d}/{slot:08d}", f"hospital-{slot % 3}"
        patient = f"P{slot // 6}"
        yield {
            "record_id": pseudonyms.of("record", name),
            "patient_id": pseudonyms.patient(patient, site),
            "patient_key": pseudonyms.patient_key(patient, site),
            "site": site,
            "age": float(slot % 90),
            "sex": "female" if slot % 2 else "male",
            "ejection_fraction": float(slot % 70) if slot % 5 else None,
            "format": "wfdb",
            "original_rate_hz": 500.0,
            "original_timesteps": 5000,
            "start_timestep": 0,
            "invalid_share": 0.0,
            "quantisation_error_uv": 0.0,
            **dict(zip(MEASURES, numbers[n].tolist(), strict=True)),
            "einthoven_uv": 1.0,
            "pacing_spikes": 0,
            "quality": "noise" if slot % 20 == 0 else "",
            "quality_leads": "",
            "flags": "resampled" if slot % 10 == 0 else "",
            "content": rng.bytes(16).hex() if slot % 50 else "1" * 32,
            "row": slot,
            "labels": {},
            "left_out": "",
            "position": slot,
            "fingerprint": near[n].tobytes() + beats[n].tobytes(),
        }


def make_seal(out: Path, num_records: int) -> None:
    """Seal what `make_units` has made."""
    table._ROW_GROUP = 4096  # two row groups of 65,536 in memory are no growth either
    manifest = seal(_plan(out, num_records)[0])
    assert manifest["counts"]["records"] == num_records


if __name__ == "__main__":
    if sys.argv[1] in ("units", *STEPS):
        step = {"units": make_units, "plan": make_plan, "seal": make_seal}[sys.argv[1]]
        step(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main([int(each) for each in sys.argv[1:3]])
