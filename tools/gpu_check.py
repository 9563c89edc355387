"""Everything worth knowing of one GPU, in one call: tests, rates beside peers, profile.

    python tools/gpu_check.py --out results [--only tests,step] [--list]

Each stage is a process of its own with a time limit, so that one failure costs nothing else. Logs
and rows go to `--out`; a summary comes last. Exit status 1 when any stage failed.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One process of the check; `{out}` in its command is the output folder."""

    name: str
    command: tuple[str, ...]
    limit_s: int


def _python(*words: str) -> tuple[str, ...]:
    return (sys.executable, *words)


def _bench(case: str) -> tuple[str, ...]:
    return _python("-m", "ecgfast", "bench", case, "--json", "{out}/rows.jsonl")


STAGES = (
    Stage(name="doctor", command=_python("-m", "ecgfast", "doctor"), limit_s=60),
    Stage(
        name="tests",
        command=_python("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests"),
        limit_s=240,
    ),
    Stage(name="decode", command=_bench("decode"), limit_s=90),
    Stage(name="kernels", command=_bench("kernels"), limit_s=120),
    Stage(name="step", command=_bench("step"), limit_s=240),
    Stage(name="profile", command=_python("tools/profile_step.py", "--out", "{out}"), limit_s=90),
    Stage(
        name="sanitizer",
        command=("compute-sanitizer", *_python("tools/sanitize_decoder.py")),
        limit_s=120,
    ),
    Stage(name="loader", command=_bench("loader"), limit_s=120),
)


def run_stage(stage: Stage, out: Path) -> tuple[bool, float]:
    """Run one stage; return whether it ended well, and its seconds."""
    command = [word.replace("{out}", str(out)) for word in stage.command]
    began = time.monotonic()
    print(f"== {stage.name}: {' '.join(command)}", flush=True)
    with (out / f"{stage.name}.log").open("w", encoding="utf-8") as log:
        try:
            process = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=stage.limit_s,
                check=False,
            )
            good = process.returncode == 0
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {stage.limit_s} s\n")
            good = False
    return good, time.monotonic() - began


def main() -> int:
    """Parse the command line and run the stages it names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder for results")
    parser.add_argument("--only", help="stages to run, comma-separated; all by default")
    parser.add_argument("--list", action="store_true", help="name the stages and stop")
    arguments = parser.parse_args()
    names = [stage.name for stage in STAGES]
    if arguments.list:
        print("\n".join(names))
        return 0
    wanted = arguments.only.split(",") if arguments.only else names
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}; allowed: {', '.join(names)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {s.name: run_stage(s, arguments.out) for s in STAGES if s.name in wanted}
    for name, (good, _) in results.items():
        lines = (arguments.out / f"{name}.log").read_text(encoding="utf-8").splitlines()
        print(f"\n-- {name}", *lines[-(12 if good else 40) :], sep="\n")
    print()
    for name, (good, seconds) in results.items():
        print(f"{'ok    ' if good else 'FAILED'} {name:10} {seconds:6.1f} s")
    return 0 if all(good for good, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
