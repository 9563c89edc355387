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
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import wfdb

from ecgfast.bench.measuring import append_rows, device_slug, make_rows

RESULTS = Path(__file__).parent / "results"
LOOP_RECORDS = 1000  # a loop has a constant rate, which needs no longer look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of WFDB records of 12 x 5000")
    parser.add_argument("--records", type=int, default=10_000, help="copy until there are so many")
    parser.add_argument("--cohort-in", type=Path, help="folder of the copies, else the temporary")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder,
        tempfile.TemporaryDirectory(prefix="ecgfast-bench-", dir=args.cohort_in) as copies,
    ):
        cohort = Path(copies) / "cohort"
        count = copy_records(args.source, cohort, args.records)
        loop = sorted(cohort.rglob("*.hea"))[:LOOP_RECORDS]
        for _ in range(args.repeats):
            measured = {"wfdb-rdsamp-loop": len(loop) / time_loop(loop, cores[:1])}
            for workers in (1, 2):
                if workers <= len(cores):
                    name = "ecgfast" if workers == 1 else "ecgfast-2-workers"
                    seconds = time_convert(cohort, Path(folder) / "store", cores[:workers])
                    measured[name] = count / seconds
            for name, rate in measured.items():
                rates.setdefault(name, []).append(rate)
                print(f"{name:20} {rate:8,.0f} records/s", flush=True)
    shape = f"{args.source.name}, {count} x 12 x 5000 int16, format 16"
    for name, values in rates.items():
        numbers = {("throughput", "records/s"): values}
        rows = make_rows(numbers, case="convert", provider=name, shape=shape)
        append_rows(RESULTS / device_slug() / "convert.jsonl", rows)


def copy_records(source: Path, cohort: Path, wanted: int) -> int:
    """Copy the source until there are `wanted` headers or more; returns how many there are."""
    each = sum(1 for _ in source.rglob("*.hea"))
    if each == 0:
        raise SystemExit(f"error: {source} holds no WFDB header, give a folder of .hea and .dat")
    copies = -(-wanted // each)
    for number in range(copies):
        shutil.copytree(source, cohort / f"{number:04d}")
    os.sync()  # or the disk is busy with the copies while the first convert is timed
    return copies * each


def time_convert(cohort: Path, store: Path, cores: list[int]) -> float:
    """Seconds of one convert process on these cores, with as many workers."""
    workers = str(len(cores))
    command = [sys.executable, "-m", "ecgfast", "convert", str(cohort)]
    command += ["--out", str(store), "--workers", workers]
    for path in cohort.rglob("*.*"):
        path.read_bytes()  # into the page cache: the kernel may have let go of some
    began = time.perf_counter()
    subprocess.run(
        ["taskset", "-c", ",".join(map(str, cores)), *command], check=True, capture_output=True
    )
    seconds = time.perf_counter() - began
    shutil.rmtree(store)
    for beside in store.parent.glob(f"{store.name}.*"):
        beside.unlink()
    return seconds


def time_loop(headers: list[Path], cores: list[int]) -> float:
    """Seconds that `wfdb.rdsamp` takes for these records, in a process of its own."""
    with ProcessPoolExecutor(1, initializer=os.sched_setaffinity, initargs=(0, cores)) as pool:
        return pool.submit(_read_all, headers).result()


def _read_all(headers: list[Path]) -> float:
    wfdb.rdsamp(str(headers[0].with_suffix("")))
    began = time.perf_counter()
    for header in headers:
        wfdb.rdsamp(str(header.with_suffix("")))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
