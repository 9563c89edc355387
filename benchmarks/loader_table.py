"""Table and plot of loader rows, for loader_peers.py."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ecgfast.bench.rows import Row

OURS, PEER = "#1b6ca8", "#b0b7bf"
Numbers = dict[tuple[str, str, str, str], Row]  # provider, workers, cache, metric


def numbers(rows: list[Row]) -> Numbers:
    """Rows by what they are about; stored bytes have neither workers nor cache."""
    found: Numbers = {}
    for row in rows:
        parts = row.shape.split(", ")
        workers, cache = (parts[0].split()[0], parts[2]) if len(parts) > 2 else ("", "")
        found[row.provider, workers, cache, row.metric] = row
    return found


def print_table(rows: list[Row]) -> None:
    """Print a Markdown table: one line a provider and number of workers."""
    found = numbers(rows)

    def value(provider: str, workers: str, cache: str, metric: str, digits: int = 0) -> str:
        row = found.get((provider, workers, cache, metric))
        return "" if row is None else f"{row.p50:,.{digits}f}"

    print(
        "| loader | workers | warm records/s | p20 to p80 | cores | records/s a core | GiB "
        "| cold records/s | stored B/record | read B/record, cold |"
    )
    print("|---|" + "---:|" * 9)
    for (provider, workers, cache, metric), row in found.items():
        if (cache, metric) != ("warm", "throughput"):
            continue
        cores = found.get((provider, workers, "warm", "cores"))
        a_core = f"{row.p50 / cores.p50:,.0f}" if cores is not None else ""
        cells = [
            provider,
            workers,
            f"{row.p50:,.0f}",
            f"{row.p20:,.0f} to {row.p80:,.0f}",
            value(provider, workers, "warm", "cores", 2),
            a_core,
            value(provider, workers, "warm", "memory", 2),
            value(provider, workers, "cold", "throughput"),
            value(provider, "", "", "storage"),
            value(provider, workers, "cold", "read"),
        ]
        print(f"| {' | '.join(cells)} |")


def plot(rows: list[Row], path: Path) -> None:
    """Four panels over the same loaders: speed warm and cold, speed of a core, bytes from disk."""
    found = numbers(rows)
    most = max((key[1] for key in found if key[1]), key=int)
    warm = {
        key[0]: key[1]  # with the most workers it has
        for key in sorted(found, key=lambda key: int(key[1] or 0))
        if key[2:] == ("warm", "throughput")
    }
    providers = sorted(warm, key=lambda p: found[p, warm[p], "warm", "throughput"].p50)

    def values(cache: str, metric: str) -> list[float]:
        rows = (found.get((p, warm[p], cache, metric)) for p in providers)
        return [row.p50 if row is not None else math.nan for row in rows]

    rate, cores = values("warm", "throughput"), values("warm", "cores")
    per_core = [a / b for a, b in zip(rate, cores, strict=True)]
    kib = [read / 1024 for read in values("cold", "read")]
    panels = {
        f"records/s, warm, {most} workers (numpy: 1)": rate,
        "records/s a busy core, warm": per_core,
        "records/s, cold page cache": values("cold", "throughput"),
        "KiB read from disk a record, cold": kib,
    }
    figure = Figure(figsize=(15, 1.1 + 0.34 * len(providers)), layout="constrained")
    shape = next(row.shape for row in rows if "warm" in row.shape)
    figure.suptitle(f"{rows[0].device}: {shape.partition(', ')[2].replace(', warm', '')} records")
    for index, (title, lengths) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        _bars(axes, providers, lengths)
        axes.set_title(title, fontsize=9, loc="left")
        if index:
            axes.set_yticklabels([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _bars(axes: Axes, providers: list[str], lengths: list[float]) -> None:
    colours = [OURS if provider.startswith("ecgfast") else PEER for provider in providers]
    bars = axes.barh(providers, lengths, color=colours)
    axes.bar_label(bars, [f" {length:,.0f}" for length in lengths], fontsize=8)
    axes.margins(x=0.2)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
