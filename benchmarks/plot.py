"""Tables and pictures from result rows.

    python benchmarks/plot.py benchmarks/results --out benchmarks/figures [--readme README.md]

Writes tables.md, and one picture for each case of two providers or more; fills the
README between its two "measured" marks. Of equal measurements the newest row counts.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ecgfast.bench.rows import Row, read_rows

OURS, PEER = "#1b6ca8", "#b0b7bf"


def newest(rows: Iterable[Row]) -> list[Row]:
    """Keep the last row of each measurement, in the order of first appearance."""
    kept: dict[tuple[str, ...], Row] = {}
    for row in sorted(rows, key=lambda r: r.date):
        key = (row.device, row.case, row.preset, row.shape, row.metric, row.provider)
        kept[key] = row
    return list(kept.values())


def grouped(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], list[Row]]:
    """Group comparable rows: same device, case, shape and metric."""
    groups: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        shape = f"{row.preset} {row.shape}".strip()
        groups[row.device, row.case, shape, row.metric].append(row)
    return groups


def table(rows: Iterable[Row]) -> str:
    """Render rows as a Markdown table; the spread is p20 to p80."""
    lines = [
        "| device | case | what | provider | metric | value | p20 to p80 | commit | date |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.device} | {r.case} | {f'{r.preset} {r.shape}'.strip()} | {r.provider} | {r.metric} "
        f"| {number(r.p50)} {r.unit} | {number(r.p20)} to {number(r.p80)} | {r.commit} | {r.date} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A row of the README: what is compared with which peer, in words a reader knows."""

    words: str
    case: str
    shape: str  # how the shape begins
    metric: str
    unit: str
    ours: str
    peer: str


HEADLINES = (
    Headline(
        words="store size, 200 LUDB records",
        case="codec", shape="ludb", metric="ratio", unit="x",
        ours="ecgfast", peer="blosc2-zstd-bitshuffle",
    ),
    Headline(
        words="decode to int16, one core",
        case="codec", shape="ludb", metric="decode", unit="records/s",
        ours="ecgfast", peer="blosc2-zstd-bitshuffle",
    ),
    Headline(
        words="encode, one core",
        case="codec", shape="ludb", metric="encode", unit="records/s",
        ours="ecgfast", peer="zstd-3",
    ),
    Headline(
        words="random reads from a store, one core, checks on",
        case="codec", shape="ludb", metric="decode", unit="records/s",
        ours="ecgfast-store-read", peer="blosc2-zstd-bitshuffle",
    ),
    Headline(
        words="convert WFDB, one core",
        case="convert", shape="hr_gt", metric="throughput", unit="records/s",
        ours="ecgfast", peer="wfdb-rdsamp-loop",
    ),
    Headline(
        words="the same on two cores",
        case="convert", shape="hr_gt", metric="throughput", unit="records/s",
        ours="ecgfast-2-workers", peer="ecgfast",
    ),
    Headline(
        words="decode to normalised patches on the GPU",
        case="decode_patches", shape="1024", metric="throughput", unit="records/s",
        ours="ecgfast", peer="raw int16, torch.compile",
    ),
)  # fmt: skip


def summary(rows: Iterable[Row]) -> str:
    """Render the headlines, ours beside the peer of the same device; each must have rows."""
    lines = ["| what | ecgfast | peer | ratio | device |", "|---|---|---|---|---|"]
    groups = grouped(rows)
    for line in HEADLINES:
        before = len(lines)
        for (device, case, shape, metric), group in groups.items():
            found = {r.provider: r for r in group if r.unit == line.unit}
            wanted = (line.case, line.metric) == (case, metric) and shape.startswith(line.shape)
            if wanted and line.ours in found and line.peer in found:
                ours, peer = found[line.ours], found[line.peer]
                lines.append(
                    f"| {line.words} | {number(ours.p50)} {ours.unit} | {peer.provider} "
                    f"{number(peer.p50)} | {ours.p50 / peer.p50:.2f} x | {device} |"
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


def pivot(rows: Iterable[Row]) -> str:
    """Render rows as a Markdown table with a line for each shape and provider."""
    columns: dict[str, str] = {}
    lines: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for row in rows:
        columns[row.metric] = f"{row.metric}, {row.unit}"
        lines[row.shape, row.provider][row.metric] = number(row.p50)
    head = (
        f"| what | provider | {' | '.join(columns.values())} |\n|---|---|{'---:|' * len(columns)}"
    )
    body = (
        f"| {shape} | {provider} | {' | '.join(values.get(column, '') for column in columns)} |"
        for (shape, provider), values in lines.items()
    )
    return "\n".join((head, *body))


def draw(rows: list[Row], path: Path) -> None:
    """Draw a row of panels for each shape: p50 and spread of each metric, ours in colour."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[f"{row.preset} {row.shape}".strip(), f"{row.metric} ({row.unit})"].append(row)
    groups = {key: group for key, group in found.items() if len(group) > 1}
    if not groups:
        return
    shapes = list(dict.fromkeys(shape for shape, _ in groups))
    metrics = list(dict.fromkeys(metric for _, metric in groups))
    most = max(map(len, groups.values()))
    size = (6 * len(metrics), (1.2 + 0.32 * most) * len(shapes))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(shapes), len(metrics), squeeze=False)
    for shape, line in zip(shapes, grid, strict=True):
        for metric, axes in zip(metrics, line, strict=True):
            group = sorted(groups.get((shape, metric), []), key=lambda row: row.p50)
            if not group:
                axes.set_visible(False)
                continue
            bars = axes.barh(
                [row.provider for row in group],
                [row.p50 for row in group],
                xerr=([r.p50 - r.p20 for r in group], [r.p80 - r.p50 for r in group]),
                color=[OURS if r.provider.startswith("ecgfast") else PEER for r in group],
                error_kw={"linewidth": 1, "capsize": 2},
            )
            axes.bar_label(bars, [f" {number(row.p50)}" for row in group], fontsize=8)
            axes.set_xlabel(metric)
            axes.set_title(f"{group[0].case}, {shape}, {group[0].device}", fontsize=9, loc="left")
            axes.margins(x=0.15)
            axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Parse the command line and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, help=".jsonl file, or a folder of them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/figures"))
    parser.add_argument("--readme", type=Path, help="file with the measured marks to fill")
    arguments = parser.parse_args()
    rows = newest(read_rows(arguments.results))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tables.md").write_text(table(rows), encoding="utf-8")
    for device, case in dict.fromkeys((row.device, row.case) for row in rows):
        name = re.sub(r"[^a-z0-9]+", "-", f"{device} {case}".lower()).strip("-")
        same = [row for row in rows if (row.device, row.case) == (device, case)]
        draw(same, arguments.out / f"{name}.png")
    if arguments.readme is not None:
        text = arguments.readme.read_text(encoding="utf-8")
        arguments.readme.write_text(fill(text, summary(rows)), encoding="utf-8")
    print(arguments.out / "tables.md")


if __name__ == "__main__":
    main()
