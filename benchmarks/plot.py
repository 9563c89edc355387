"""The README's table of headlines, from result rows.

    python benchmarks/plot.py benchmarks/results --readme README.md

Fills the README between its two "measured" marks. Of equal measurements the newest row counts.
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ecgfast.bench.measuring import Row, read_rows

RESULTS = Path(__file__).parent / "results"


def newest(rows: Iterable[Row]) -> list[Row]:
    """Keep the last row of each measurement, in the order of first appearance."""
    kept: dict[tuple[str, ...], Row] = {}
    for row in sorted(rows, key=lambda r: r.date):
        key = (row.device, row.case, row.preset, row.shape, row.metric, row.provider)
        kept[key] = row
    return list(kept.values())


class Headline(NamedTuple):
    """A row of the README: what is compared with which peer, in words a reader knows."""

    words: str
    case: str
    shape: str  # how the shape begins
    metric: str
    unit: str
    ours: str
    peer: str


_BLOSC2, _RATE = "blosc2-zstd-bitshuffle", "records/s"
HEADLINES = (
    Headline("store size, 200 LUDB records", "codec", "ludb", "ratio", "x", "ecgfast", _BLOSC2),
    Headline("decode to int16, one core", "codec", "ludb", "decode", _RATE, "ecgfast", _BLOSC2),
    Headline("encode, one core", "codec", "ludb", "encode", _RATE, "ecgfast", "zstd-3"),
    Headline(
        "random reads from a store, one core, checks on",
        "codec", "ludb", "decode", _RATE, "ecgfast-store-read", _BLOSC2,
    ),
    Headline(
        "convert WFDB, one core",
        "convert", "hr_gt", "throughput", _RATE, "ecgfast", "wfdb-rdsamp-loop",
    ),
    Headline(
        "the same on two cores",
        "convert", "hr_gt", "throughput", _RATE, "ecgfast-2-workers", "ecgfast",
    ),
    Headline(
        "decode to normalised patches on the GPU",
        "decode_patches", "1024", "throughput", _RATE, "ecgfast", "raw int16, torch.compile",
    ),
)  # fmt: skip


def summary(rows: Iterable[Row]) -> str:
    """Render the headlines, ours beside the peer of the same device; each must have rows."""
    lines = ["| what | ecgfast | peer | ratio | device |", "|---|---|---|---|---|"]
    found = {(r.device, r.shape, r.case, r.metric, r.unit, r.provider): r.p50 for r in rows}
    for line in HEADLINES:
        before = len(lines)
        for (device, shape, *what), ours in found.items():
            peer = found.get((device, shape, line.case, line.metric, line.unit, line.peer))
            wanted = what == [line.case, line.metric, line.unit, line.ours]
            if wanted and shape.startswith(line.shape) and peer is not None:
                lines.append(
                    f"| {line.words} | {number(ours)} {line.unit} | {line.peer} {number(peer)} | "
                    f"{ours / peer:.2f} x | {device} |"
                )
        if len(lines) == before:
            raise SystemExit(f"no rows of {line.ours} and {line.peer} for {line.words!r}")
    return "\n".join(lines) + "\n"


def fill(text: str, content: str) -> str:
    """Replace what stands between the marks of `text`, which keeps its marks."""
    marks = re.compile(r"(<!-- measured: begin[^>]*-->\n).*?(<!-- measured: end -->)", re.DOTALL)
    filled, count = marks.subn(lambda m: m.group(1) + content + m.group(2), text)
    if count != 1:
        raise SystemExit(f"the file must hold the two measured marks once, got {count} pairs")
    return filled


def number(value: float) -> str:
    """Three digits or more, with separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main() -> None:
    """Parse the command line and fill the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, help=".jsonl file, or a folder of them")
    parser.add_argument("--readme", type=Path, required=True, help="file with the measured marks")
    args = parser.parse_args()
    text = fill(args.readme.read_text("utf-8"), summary(newest(read_rows(args.results))))
    args.readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
