"""A pretraining as people run it, killed and resumed on the way, and the rates that it logged.

    python tests/checks/real_run.py --out real --seconds 240 --set train.cuda_graph=true

Writes synthetic recordings, converts them (both are kept for the next call), trains for half the
time, kills the run with SIGKILL, resumes it and lets it end, or stops it when the time is over.
Exit status 1 when the resumed run does not go on from a checkpoint, or steps are missing.
"""

import argparse
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ecgfast.log import read_metrics

ECGFAST = (sys.executable, "-m", "ecgfast")


def make_store(out: Path, records: int) -> Path:
    """Write and convert synthetic recordings, unless an earlier call has."""
    store = out / "store"
    if not store.exists():
        cohort = str(out / "cohort")
        synth = ["synth", cohort, "--records", str(records), "--sites", "8", "--seed", "0"]
        subprocess.run([*ECGFAST, *synth], check=True)
        subprocess.run([*ECGFAST, "convert", cohort, "--out", str(store)], check=True)
    return store


def train(command: Sequence[str], seconds: float, number: signal.Signals) -> bool:
    """Run a command, and send it a signal after so many seconds; True when it ended before."""
    process = subprocess.Popen(command)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        process.wait()
        return False
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with exit status {process.returncode}")
    return True


def report(run: Path, killed_at: float) -> list[str]:
    """Print what a run logged; return what is wrong with it.

    Args:
        run: its folder.
        killed_at: the last step that was logged before the kill, 0 without one.
    """
    rows = read_metrics(run)
    steps = [row["step"] for row in rows]
    for name in ("records_per_s", "data_wait_pct", "mfu"):
        values = [row[name] for row in rows[1:] if row.get(name) is not None]  # the first compiles
        if values:
            print(f"{name}: median {statistics.median(values):,.4g} of {len(values)} log lines")
    if not rows:
        return ["nothing was logged: give it more --seconds"]
    for row in (rows[0], rows[-1]):
        print(f"loss {row['loss']:.4f} at step {row['step']:.0f}")
    wrong = []
    if steps != sorted(set(steps)):
        wrong.append("steps were logged twice or out of order")
    if killed_at and steps[-1] <= killed_at:
        wrong.append(f"killed at step {killed_at:.0f}, and not a log line beyond")
    return wrong


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for recordings and run")
    parser.add_argument("--name", default="run", help="of the run within it")
    parser.add_argument("--seconds", type=float, default=240, help="of training, both halves")
    parser.add_argument("--preset", default="vit_large", help="of the model")
    parser.add_argument("--records", type=int, default=37456, help="to synthesise")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--set", action="append", default=[], help="a setting of the run")
    return parser.parse_args()


def main() -> int:
    """Make the store, train, kill, resume, report; return the exit status."""
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    store, run = make_store(arguments.out, arguments.records), arguments.out / arguments.name
    command = [*ECGFAST, "pretrain", str(store), "--out", str(run), "--preset", arguments.preset]
    command += ["--device", arguments.device, "--resume"]
    command += [word for setting in arguments.set for word in ("--set", setting)]
    began, killed_at = time.monotonic(), 0.0
    if not train(command, arguments.seconds / 2, signal.SIGKILL):
        killed_at = max((row["step"] for row in read_metrics(run)), default=0.0)
        print(f"killed after step {killed_at:.0f}", flush=True)
        if not killed_at:
            sys.exit("killed before its first log line: give it more --seconds")
        train(command, arguments.seconds / 2, signal.SIGTERM)
    print(f"{time.monotonic() - began:.0f} s of training, start and compilation included")
    wrong = report(run, killed_at)
    print(*wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
