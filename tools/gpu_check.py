"""Everything worth knowing of one GPU: tests, tuning, rates, profile, a run; in four calls.

    python tools/gpu_check.py --out check1 --run 1    # of 4: see docs/performance.md
    python tools/gpu_check.py --out check --only tests,tune

A call takes at most 9.5 minutes. Stages run in the order of what one most wants to know, each a
process of its own with a time limit of its own; without a GPU those that need one are left out.
Logs and rows grow while a stage runs, so that a limit costs only what was unfinished. The tuning
stage writes the block sizes that later stages run with. A summary comes last. Exit status 1 when a
stage failed or was stopped.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Annotated, NamedTuple

import torch
import typer

ROOT = Path(__file__).resolve().parent.parent
SHORTEST_S = 15  # a stage that would have less is not begun
LONGEST_S = 570.0  # of a call

_PYTHON = shlex.quote(sys.executable)
_PYTEST = f"{_PYTHON} -m pytest -v --durations=10 -p no:cacheprovider"
_PYTEST += " --continue-on-collection-errors"
_BENCH, _ROWS = f"{_PYTHON} -m ecgfast bench", "--json {out}/rows.jsonl"
_RATES = f"{_PYTHON} tools/train_rates.py --out {{out}} {_ROWS}"
_SANITIZED = f"compute-sanitizer {_PYTHON} tests/fuzz/cuda_decoder.py"
# an epoch is 36 steps: the schedule of so short a run warms up in one
_REAL = (
    f"{_PYTHON} tests/checks/real_run.py --out {{out}} --set train.cuda_graph=true "
    "--set train.log_every=10 --set train.checkpoint_every=50 --set optim.warmup_epochs=1"
)
# Name, run, limit in seconds, what it needs ("gpu", modules, programs), and the command; the most
# informative first. `ops` runs eight at a time, as most of it is compilation on the CPU; in `step`
# the peer with graphs compiles three times.
STAGES = f"""
doctor 1 30 - {_PYTHON} -m ecgfast doctor
ops 1 90 xdist {_PYTEST} -n 8 -m 'op and not gpu' tests/kernels
tests 1 180 gpu {_PYTEST} -m gpu tests/kernels tests/unit tests/integration
tune 1 110 gpu {_PYTHON} tools/tune_kernels.py --seconds 80 --copy {{out}}/tuning.json
step 2 560 gpu {_BENCH} step {_ROWS}
trainer 3 290 gpu,zarr {_REAL} --set train.microbatch=1024 --set train.epochs=22 --seconds 200
small 3 90 gpu,zarr {_REAL} --preset vit_small --name small --set train.epochs=20 --seconds 70
kernels 1 100 gpu {_BENCH} kernels {_ROWS}
decode 1 60 gpu {_BENCH} decode {_ROWS}
loader 3 60 gpu,zarr,psutil {_BENCH} loader {_ROWS}
engines 4 230 gpu,zarr,psutil {_RATES} engines --seconds 1
gate 4 260 gpu,zarr {_PYTHON} tests/checks/loss_gate.py --store {{out}}/store
many 4 80 gpu,zarr,psutil {_RATES} many --presets vit_small
sanitizer 3 60 gpu,compute-sanitizer {_SANITIZED} --chunks 10
profile 3 60 gpu {_PYTHON} tools/profile_step.py --out {{out}} --variant ecgfast-graph
"""


class Stage(NamedTuple):
    """One process of the check; after `limit_s` it is stopped, with all that it started."""

    name: str
    run: int
    limit_s: int
    needs: tuple[str, ...]
    command: list[str]

    def missing(self) -> list[str]:
        """Return what the stage needs and this machine lacks."""
        modules = [name for name in self.needs if name != "gpu"]
        lacking = [name for name in modules if which(name) is None and find_spec(name) is None]
        no_gpu = "gpu" in self.needs and not torch.cuda.is_available()
        return [*lacking, "a GPU"] if no_gpu else lacking


def stages(out: Path) -> list[Stage]:
    """Read `STAGES`."""
    found = []
    for line in STAGES.strip().splitlines():
        name, run, limit_s, needs, command = line.split(maxsplit=4)
        words = shlex.split(command.replace("{out}", shlex.quote(str(out))))
        wanted = tuple(need for need in needs.split(",") if need != "-")
        found.append(Stage(name, int(run), int(limit_s), wanted, words))
    return found


def run_stage(stage: Stage, out: Path, seconds_left: float) -> tuple[str, str]:
    """Run one stage for at most its limit and what is left of the whole check.

    Returns:
        "ok", "FAILED", "stopped" or "left out"; and why.
    """
    if missing := stage.missing():
        return "left out", f"needs {', '.join(missing)}"
    limit_s = min(stage.limit_s, seconds_left)
    if limit_s < SHORTEST_S:
        return "left out", f"no time left; --only {stage.name} runs it"
    print(f"== {stage.name}, at most {limit_s:.0f} s: {shlex.join(stage.command)}", flush=True)
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]  # not installed
    path = os.pathsep.join(filter(None, paths))
    with (out / f"{stage.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            stage.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # so that its compile workers can be stopped with it
        )  # fmt: skip
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "stopped", f"limit of {limit_s:.0f} s"
    return ("FAILED", f"exit status {code}") if code else ("ok", "")


def main(
    out: Path = Path("gpu-check"),
    run: Annotated[int | None, typer.Option(min=1, max=4)] = None,
    only: Annotated[str, typer.Option(help="Stages, comma-separated.")] = "",
) -> None:
    """Run the stages of one run, some, or all, and write results to `out`."""
    out = out.resolve()  # stages run elsewhere
    every = {stage.name: stage for stage in stages(out) if run in (None, stage.run)}
    wanted = only.split(",") if only else [*every]
    if unknown := sorted(set(wanted) - set(every)):
        sys.exit(f"error: unknown stage {unknown[0]!r}; allowed: {', '.join(every)}")
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + LONGEST_S
    found = {}
    for name in (name for name in every if name in wanted):
        began = time.monotonic()
        status, reason = run_stage(every[name], out, end - began)
        found[f"{status:8} {name:10} {time.monotonic() - began:6.1f} s  {reason}"] = status
        if status != "left out":  # more lines where something went wrong
            lines = (out / f"{name}.log").read_text("utf-8", "replace").splitlines()
            print(*lines[-(12 if status == "ok" else 40) :], sep="\n", flush=True)
    print("", *map(str.rstrip, found), sep="\n")
    if {"FAILED", "stopped"} & set(found.values()):
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
