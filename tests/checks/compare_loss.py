"""Are the loss traces of two runs the same? For changes that should change nothing.

    python tests/checks/compare_loss.py RUN_BEFORE RUN_AFTER [--tolerance 1e-5]

Compares the steps that both runs logged. Exit status 0 when every loss agrees, 1 when one does
not. The default tolerance is 0: bit-equal, as two runs on one CPU are.
"""

import argparse
import sys
from pathlib import Path

from ecgfast.log import read_metrics

KEYS = ("loss", "val_loss")


def differences(before: Path, after: Path) -> dict[str, tuple[int, float, float]]:
    """Compare two runs.

    Args:
        before: folder of a run.
        after: folder of the other.
    Returns:
        per key: steps compared, the largest difference, and the step that has it.
    """
    traces = [{row["step"]: row for row in read_metrics(run)} for run in (before, after)]
    found = {}
    for key in KEYS:
        common = [s for s in traces[0] if s in traces[1] and all(key in t[s] for t in traces)]
        gaps = {s: _gap(traces[0][s][key], traces[1][s][key]) for s in common}
        if gaps:
            worst = max(gaps, key=lambda step: gaps[step])
            found[key] = (len(gaps), gaps[worst], worst)
    return found


def _gap(a: float | None, b: float | None) -> float:
    """Two losses that are not numbers agree."""
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    return abs(a - b)


def main() -> int:
    """Print the comparison; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.0)
    arguments = parser.parse_args()
    found = differences(arguments.before, arguments.after)
    if not found:
        print("no step was logged by both runs")
        return 1
    for key, (count, gap, step) in found.items():
        print(f"{key}: {count} steps compared, largest difference {gap:.3g} at step {step}")
    return int(any(gap > arguments.tolerance for _, gap, _ in found.values()))


if __name__ == "__main__":
    sys.exit(main())
