"""`ecgfast convert` of WFDB format 16 beside a plain `wfdb.rdsamp` loop, on one and two cores.

    python benchmarks/convert_peers.py ../shared/data/ptbxl/hr_gt [--records 10000]

The source's records are copied, folder after folder, until there are enough; the page cache is
warm. Where the system empties it at once, `--cohort-in /dev/shm` keeps the copies in memory.
Convert is timed as a whole process, from the command to the sealed store: discovery, checks,
statistics, encoding, fsync. The loop only reads; its imports are not timed. Rows go to
benchmarks/results/DEVICE/convert.jsonl.
"""

import argparse
import os
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
    names = ["wfdb-rdsamp-loop", "ecgfast", *(["ecgfast-2-workers"] if len(cores) > 1 else [])]
    rates: dict[str, list[float]] = {name: [] for name in names}
    with (
        tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder,
        tempfile.TemporaryDirectory(prefix="ecgfast-bench-", dir=args.cohort_in) as cohort,
    ):
        for number in range(copies):
            shutil.copytree(args.source, Path(cohort) / f"{number:04d}")
        os.sync()  # or the disk is busy with the copies while the first convert is timed
        loop = sorted(Path(cohort).rglob("*.hea"))[:LOOP_RECORDS]
        for turn in range(args.repeats):
            for workers, name in enumerate(names):
                if workers == 0:
                    rate = len(loop) / time_loop(loop, cores)
                else:
                    store = Path(folder) / f"{turn}" / f"{workers}"
                    rate = copies * each / time_convert(Path(cohort), store, cores[:workers])
                rates[name].append(rate)
                print(f"{name:20} {rate:8,.0f} records/s", flush=True)
    shape = f"{args.source.name}, {copies * each} x 12 x 5000 int16, format 16"
    for name, values in rates.items():
        numbers = {("throughput", "records/s"): values}
        rows = make_rows(numbers, case="convert", provider=name, shape=shape)
        append_rows(RESULTS / device_slug() / "convert.jsonl", rows)


def time_convert(cohort: Path, store: Path, cores: list[int]) -> float:
    """Seconds of one convert process on these cores, with as many workers."""
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "ecgfast"]
    command += ["convert", str(cohort), "--out", str(store), "--workers", str(len(cores))]
    for path in cohort.rglob("*.*"):
        path.read_bytes()  # into the page cache: the kernel may have let go of some
    store.parent.mkdir(exist_ok=True)
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(store.parent)
    return seconds


def time_loop(headers: list[Path], cores: list[int]) -> float:
    """Seconds that `wfdb.rdsamp` takes for these records on the first core."""
    os.sched_setaffinity(0, cores[:1])
    began = time.perf_counter()
    for header in headers:
        wfdb.rdsamp(str(header.with_suffix("")))
    seconds = time.perf_counter() - began
    os.sched_setaffinity(0, cores)
    return seconds


if __name__ == "__main__":
    main()
