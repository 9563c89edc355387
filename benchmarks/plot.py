"""The README's table of headlines, from result rows.

    python benchmarks/plot.py benchmarks/results --readme README.md

Fills the README between its two "measured" marks. Of equal measurements the newest row counts.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from ecgfast.bench import Row, read_rows

RESULTS = Path(__file__).parent / "results"


def newest(rows: Iterable[Row]) -> list[Row]:
    """Keep the last row of each measurement, in the order of first appearance."""
    kept = {
        (row.device, row.case, row.preset, row.shape, row.metric, row.provider): row
        for row in sorted(rows, key=lambda row: row.date)
    }
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


_BLOSC2, _RATE, _LUDB = "blosc2-zstd-bitshuffle", "records/s", ("codec", "ludb")
_CONVERT = ("convert", "hr_gt", "throughput", _RATE)
HEADLINES = (
    Headline("store size, 200 LUDB records", *_LUDB, "ratio", "x", "ecgfast", _BLOSC2),
    Headline("decode to int16, one core", *_LUDB, "decode", _RATE, "ecgfast", _BLOSC2),
    Headline("encode, one core", *_LUDB, "encode", _RATE, "ecgfast", "zstd-3"),
    Headline(
        "random reads from a store, one core, checks on",
        *_LUDB, "decode", _RATE, "ecgfast-store-read", _BLOSC2,
    ),
    Headline("convert WFDB, one core", *_CONVERT, "ecgfast", "wfdb-rdsamp-loop"),
    Headline("the same on two cores", *_CONVERT, "ecgfast-2-workers", "ecgfast"),
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


def main(results: Path, readme: Annotated[Path, typer.Option()]) -> None:
    """Fill a page between its marks from rows: a .jsonl file, or a folder of them."""
    text = fill(readme.read_text("utf-8"), summary(newest(read_rows(results))))
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
