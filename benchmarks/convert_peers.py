"""`ecgfast convert` of WFDB format 16 beside a plain `wfdb.rdsamp` loop, on one and two cores.

    python benchmarks/convert_peers.py ../shared/data/ptbxl/hr_gt [--records 10000]

The source's records are copied, folder after folder, until there are enough; the page cache is
warm. Where the system empties it at once, `--cohort-in /dev/shm` keeps the copies in memory.
Convert is timed as a whole process, from the command to the sealed store: discovery, checks,
statistics, encoding, fsync. `ecgfast-plain` is the same without measures of quality and with
readable ids. The loop only reads; its imports are not timed. On a machine that others use, the
rates by processor time tell more. Rows go to benchmarks/results/DEVICE.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import typer
import wfdb
from plot import RESULTS

from ecgfast.bench import device_slug, make_rows, show

LOOP_RECORDS = 1000  # a loop has a constant rate, which needs no longer look
WORKERS = {"wfdb-rdsamp-loop": 0, "ecgfast-plain": 1, "ecgfast": 1, "ecgfast-2-workers": 2}
# Takes the measures out of a process that does all by itself; what reads them at the end finds 0.
PLAIN = """
import sys
from ecgfast.cli import main
from ecgfast.convert import work
from ecgfast.store.quality import MEASURES
row = dict.fromkeys((*MEASURES, "einthoven_uv", "pacing_spikes"), 0)
row |= {"quality": "", "quality_leads": "", "flags": []}
work.quality_of = lambda signal, *rest: [row] * len(signal)
sys.exit(main([*sys.argv[1:], "--keep-identifiers"]))
"""


def main(
    source: Path, records: int = 10_000, cohort_in: Path | None = None, repeats: int = 3
) -> None:
    """Take turns on so many copies of a folder of WFDB records of 12 x 5000, or a few more."""
    each = sum(1 for _ in source.rglob("*.hea"))
    if each == 0:
        raise SystemExit(f"error: {source} holds no WFDB header: give .hea and .dat files")
    copies, cores = -(-records // each), sorted(os.sched_getaffinity(0))
    shape = f"{source.name}, {copies * each} x 12 x 5000 int16, format 16"
    ways = {name: number for name, number in WORKERS.items() if number <= len(cores)}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="ecgfast-bench-", dir=cohort_in) as cohort:
        for number in range(copies):
            shutil.copytree(source, Path(cohort) / f"{number:04d}")
        os.sync()  # or the disk is busy with the copies while the first convert is timed
        for _ in range(repeats):
            for name, number in ways.items():
                program = ["-c", PLAIN] if name == "ecgfast-plain" else ["-m", "ecgfast"]
                used = cores[: max(number, 1)]
                rates[name].append(rates_of(Path(cohort), used, number, program))
    for name, values in rates.items():
        whole, of_processor = map(list, zip(*values, strict=True))
        numbers = {
            ("throughput", "records/s"): whole,
            ("throughput_of_processor", "records/s"): of_processor,
        }
        rows = make_rows(numbers, case="convert", provider=name, shape=shape)
        show(rows, RESULTS / device_slug() / "convert.jsonl")


def rates_of(
    cohort: Path, cores: list[int], workers: int, program: list[str]
) -> tuple[float, float]:
    """Records a second on these cores, of the clock and of all processors, of workers or a loop."""
    headers = sorted(cohort.rglob("*.hea"))
    for path in cohort.rglob("*.*"):
        path.read_bytes()  # into the page cache: the kernel may have let go of some
    before_cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder:
        command = [sys.executable, *program, "convert", str(cohort)]
        command += ["--out", f"{folder}/store", "--workers", str(workers)]
        os.sched_setaffinity(0, cores)  # of this process and of those that it starts
        before = os.times()
        if workers:
            subprocess.run(command, check=True, capture_output=True)
        else:
            headers = headers[:LOOP_RECORDS]
            for header in headers:
                wfdb.rdsamp(str(header.with_suffix("")))
        after = os.times()
    os.sched_setaffinity(0, before_cores)
    seconds = after.elapsed - before.elapsed, sum(after[:4]) - sum(before[:4])
    return len(headers) / seconds[0], len(headers) / seconds[1]


if __name__ == "__main__":
    typer.run(main)
