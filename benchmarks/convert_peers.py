"""`ecgfast convert` of WFDB format 16 beside a plain `wfdb.rdsamp` loop, on one and two cores.

    python benchmarks/convert_peers.py ../shared/data/ptbxl/hr_gt [--records 10000]

The source's records are copied, folder after folder, until there are enough; the page cache is
warm. Where the system empties it at once, `--cohort-in /dev/shm` keeps the copies in memory.
Convert is timed as a whole process, from the command to the sealed store: discovery, checks,
statistics, encoding, fsync. `ecgfast-plain` is the same without measures of quality and with
readable ids. The loop only reads; its imports are not timed. On a machine that others use, the
rates by processor time tell more. Rows go to benchmarks/results/DEVICE/convert.jsonl.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import wfdb
from plot import RESULTS

from ecgfast.bench.measuring import append_rows, device_slug, make_rows

LOOP_RECORDS = 1000  # a loop has a constant rate, which needs no longer look
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of WFDB records of 12 x 5000")
    parser.add_argument("--records", type=int, default=10_000, help="copy until there are so many")
    parser.add_argument("--cohort-in", type=Path, help="folder of the copies, else the temporary")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    each = sum(1 for _ in args.source.rglob("*.hea"))
    if each == 0:
        raise SystemExit(f"error: {args.source} holds no WFDB header: give .hea and .dat files")
    copies = -(-args.records // each)
    workers = {"wfdb-rdsamp-loop": 0, "ecgfast-plain": 1, "ecgfast": 1}
    workers |= {"ecgfast-2-workers": 2} if len(cores) > 1 else {}
    rates: dict[str, list[float]] = {name: [] for name in workers}
    by_processor: dict[str, list[float]] = {name: [] for name in workers}
    with (
        tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder,
        tempfile.TemporaryDirectory(prefix="ecgfast-bench-", dir=args.cohort_in) as cohort,
    ):
        for number in range(copies):
            shutil.copytree(args.source, Path(cohort) / f"{number:04d}")
        os.sync()  # or the disk is busy with the copies while the first convert is timed
        loop = sorted(Path(cohort).rglob("*.hea"))[:LOOP_RECORDS]
        for turn in range(args.repeats):
            for name, number in workers.items():
                if number == 0:
                    records, times = len(loop), time_loop(loop, cores)
                else:
                    store = Path(folder) / f"{turn}" / name
                    program = ["-c", PLAIN] if name == "ecgfast-plain" else ["-m", "ecgfast"]
                    records = copies * each
                    times = time_convert(Path(cohort), store, cores[:number], program)
                rates[name].append(records / times[0])
                by_processor[name].append(records / times[1])
                shown = f"{records / times[0]:8,.0f} records/s, {records / times[1]:8,.0f}"
                print(f"{name:20} {shown} by processor time", flush=True)
    shape = f"{args.source.name}, {copies * each} x 12 x 5000 int16, format 16"
    for name, values in rates.items():
        numbers = {
            ("throughput", "records/s"): values,
            ("throughput_of_processor", "records/s"): by_processor[name],
        }
        rows = make_rows(numbers, case="convert", provider=name, shape=shape)
        append_rows(RESULTS / device_slug() / "convert.jsonl", rows)


def time_convert(
    cohort: Path, store: Path, cores: list[int], program: list[str]
) -> tuple[float, float]:
    """Seconds of one convert process on these cores, with as many workers; of its processors."""
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, *program]
    command += ["convert", str(cohort), "--out", str(store), "--workers", str(len(cores))]
    for path in cohort.rglob("*.*"):
        path.read_bytes()  # into the page cache: the kernel may have let go of some
    store.parent.mkdir(exist_ok=True)
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(store.parent)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_loop(headers: list[Path], cores: list[int]) -> tuple[float, float]:
    """Seconds that `wfdb.rdsamp` takes for these records on the first core; of the processor."""
    os.sched_setaffinity(0, cores[:1])
    began, before = time.perf_counter(), time.process_time()
    for header in headers:
        wfdb.rdsamp(str(header.with_suffix("")))
    seconds = time.perf_counter() - began, time.process_time() - before
    os.sched_setaffinity(0, cores)
    return seconds


if __name__ == "__main__":
    main()
