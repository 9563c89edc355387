"""Everything worth knowing of one GPU: tests, tuning, rates, profile, a run; in four calls.

    python tools/gpu_check.py --out check1 --run 1        # right, tuned, kernels
    python tools/gpu_check.py --out check2 --run 2        # whole steps beside their peers, in turns
    python tools/gpu_check.py --out check3 --run 3        # real runs, loader, profile
    python tools/gpu_check.py --out check3 --run 4        # loaders in training, losses
    python tools/gpu_check.py --out check --only tests,tune [--variants ecgfast-fsdp] [--list]

A call takes at most 9.5 minutes. Stages run in the order of what one most wants to know, each a
process of its own with a time limit of its own; without a GPU those that need one are left out.
Logs and rows grow while a stage runs, so that a limit costs only what was unfinished. The tuning
stage writes the block sizes that later stages run with. A summary comes last. Exit status 1 when a
stage failed or was stopped. docs/performance.md says how to read the results.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import torch

ROOT = Path(__file__).resolve().parent.parent
SHORTEST_S = 15  # a stage that would have less is not begun
LONGEST_S = 570.0  # of a call
RUNS = {
    1: ("doctor", "ops", "tests", "tune", "kernels", "decode"),
    2: ("step",),
    3: ("trainer", "small", "loader", "sanitizer", "profile"),
    4: ("engines", "gate", "many"),
}
RUN_VARIANTS = (
    "ecgfast-graph",
    "ecgfast-adamw-graph",
    "ecgfast-fused-graph",
    "ecgfast-epilogue-graph",
    "ecgfast-quack-graph",
    "reference-compiled-timm",
    "reference-compiled-timm-graph",
    "reference-eager-timm",
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One process of the check.

    Attributes:
        name: of the stage, and of its log.
        command: program and arguments; `{out}` is the output folder.
        limit_s: after so many seconds it is stopped, with all processes that it started.
        needs: modules and programs without which it is left out.
        gpu: whether it is left out where PyTorch sees no GPU.
    """

    name: str
    command: tuple[str, ...]
    limit_s: int
    needs: tuple[str, ...] = ()
    gpu: bool = True

    def missing(self) -> list[str]:
        """Return what the stage needs and this machine lacks."""
        lacking = [n for n in self.needs if which(n) is None and find_spec(n) is None]
        return [*lacking, "a GPU"] if self.gpu and not torch.cuda.is_available() else lacking


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a stage ended: "ok", "FAILED", "stopped" or "left out", why, and after how long."""

    status: str
    seconds: float = 0.0
    reason: str = ""


def stages(variants: list[str]) -> tuple[Stage, ...]:
    """Every stage, the most informative first.

    Args:
        variants: of the training step beside ours; none: those that `bench step` chooses.
    """
    bench, rows = "-m ecgfast bench", "--json {out}/rows.jsonl"
    steps = "".join(f" --variant {name}" for name in variants)
    pytest = "-m pytest -v --durations=10 -p no:cacheprovider --continue-on-collection-errors"
    real = (
        "tests/checks/real_run.py --out {out} --set train.cuda_graph=true --set train.log_every=10 "
        # an epoch is 36 steps: the schedule of so short a run warms up in one
        "--set train.checkpoint_every=50 --set optim.warmup_epochs=1"
    )
    large = "--set train.microbatch=1024 --set train.epochs=22 --seconds 200"
    small = "--preset vit_small --name small --set train.epochs=20 --seconds 70"
    rates = f"tools/train_rates.py --out {{out}} {rows} --presets"
    hostile = "tests/fuzz/cuda_decoder.py --chunks 10"
    presets = "vit_tiny,vit_small,vit_base,vit_large"
    zarr, memcheck, python = ("zarr",), "compute-sanitizer", sys.executable

    def stage(
        name: str,
        limit_s: int,
        words: str,
        needs: tuple[str, ...] = (),
        program: tuple[str, ...] = (python,),
    ) -> Stage:
        command = (*program, *shlex.split(words))
        gpu = name not in ("doctor", "ops")
        return Stage(name=name, command=command, limit_s=limit_s, needs=needs, gpu=gpu)

    return (
        stage("doctor", 30, "-m ecgfast doctor"),
        # eight at a time: most of it is compilation, on the CPU
        stage("ops", 90, f"{pytest} -n 8 -m 'op and not gpu' tests/kernels", ("xdist",)),
        stage("tests", 180, f"{pytest} -m gpu tests/kernels tests/unit tests/integration"),
        stage("tune", 110, "tools/tune_kernels.py --seconds 80 --copy {out}/tuning.json"),
        # the peer with graphs compiles four times
        stage("step", 560 if variants else 200, f"{bench} step {rows}{steps}"),
        stage("trainer", 290, f"{real} {large}", zarr),
        stage("small", 90, f"{real} {small}", zarr),
        stage("kernels", 100, f"{bench} kernels {rows}"),
        stage("decode", 60, f"{bench} decode {rows}"),
        stage("loader", 60, f"{bench} loader {rows}", zarr),
        stage("engines", 230, f"{rates} {presets} --seconds 1 engines", zarr),
        stage("gate", 260, f"{rates} vit_large gate", zarr),
        stage("many", 80, f"{rates} vit_small many", zarr),
        stage("sanitizer", 60, hostile, (memcheck,), (memcheck, python)),
        stage("profile", 60, "tools/profile_step.py --out {out} --variant ecgfast-graph"),
    )


def run_stage(stage: Stage, out: Path, seconds_left: float) -> Result:
    """Run one stage for at most its limit and what is left of the whole check."""
    if missing := stage.missing():
        return Result(status="left out", reason=f"needs {', '.join(missing)}")
    limit_s = min(stage.limit_s, seconds_left)
    if limit_s < SHORTEST_S:
        return Result(status="left out", reason=f"no time left; --only {stage.name} runs it")
    command = [word.replace("{out}", str(out)) for word in stage.command]
    print(f"== {stage.name}, at most {limit_s:.0f} s: {' '.join(command)}", flush=True)
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]  # not installed
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
    }
    began = time.monotonic()
    with (out / f"{stage.name}.log").open("w", encoding="utf-8") as log:
        # A session of its own, so that its compile workers can be stopped with it.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            seconds = time.monotonic() - began
            return Result(status="stopped", seconds=seconds, reason=f"limit of {limit_s:.0f} s")
    seconds = time.monotonic() - began
    if code:
        return Result(status="FAILED", seconds=seconds, reason=f"exit status {code}")
    return Result(status="ok", seconds=seconds)


def tail(result: Result, log: Path) -> list[str]:
    """Last lines of a stage's log, more of them where something went wrong."""
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-(12 if result.status == "ok" else 40) :]


def parse(names: list[str]) -> argparse.Namespace:
    """Parse the command line; a stage that does not exist ends the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder for results")
    which_stages = parser.add_mutually_exclusive_group()
    which_stages.add_argument("--run", type=int, choices=RUNS, help="one of four lists of stages")
    which_stages.add_argument("--only", help="stages to run, comma-separated; all by default")
    parser.add_argument("--seconds", type=float, default=LONGEST_S, help="for all stages together")
    parser.add_argument("--variants", default="", help="of the training step, comma-separated")
    parser.add_argument("--list", action="store_true", help="say what would run, and stop")
    arguments = parser.parse_args()
    if arguments.run:
        arguments.only = ",".join(RUNS[arguments.run])
        arguments.variants = arguments.variants or ",".join(RUN_VARIANTS)
    arguments.only = arguments.only.split(",") if arguments.only else names
    unknown = sorted(set(arguments.only) - set(names))
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}; allowed: {', '.join(names)}")
    return arguments


def main() -> int:
    """Run the stages that the command line names; return the exit status."""
    arguments = parse([stage.name for stage in stages([])])
    variants = [name for name in arguments.variants.split(",") if name]
    chosen = [stage for stage in stages(variants) if stage.name in arguments.only]
    if arguments.list:
        for stage in chosen:
            missing = f" (left out: needs {', '.join(m)})" if (m := stage.missing()) else ""
            print(f"{stage.name:10} {stage.limit_s:4} s  {' '.join(stage.command)}{missing}")
        return 0
    out = arguments.out.resolve()  # stages run elsewhere
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + arguments.seconds
    results: dict[str, Result] = {}
    for stage in chosen:
        results[stage.name] = run_stage(stage, out, end - time.monotonic())
    for name, result in results.items():
        print(f"\n-- {name}", *tail(result, out / f"{name}.log"), sep="\n")
    print()
    for name, result in results.items():
        print(f"{result.status:8} {name:10} {result.seconds:6.1f} s  {result.reason}".rstrip())
    return int(any(result.status in ("FAILED", "stopped") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
