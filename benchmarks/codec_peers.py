"""ecgpack beside other codecs on real records: ratio, encode and decode per core, with a plot.

    python benchmarks/codec_peers.py ../shared/data/ludb ../shared/data/ptbxl/hr_gt
    python benchmarks/codec_peers.py STORE [--records 500]

Each source is a store or a folder of WFDB records of 12 x 5000; each gives a table of its own. Rows
go to benchmarks/results/DEVICE/codec.jsonl, the plot to codec.png beside it.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ecgfast.bench.codec import MEMMAP, measure_signal
from ecgfast.bench.rows import Row, append_rows, device_slug
from ecgfast.ingest import discover, read_record
from ecgfast.store import open_store

RESULTS = Path(__file__).parent / "results"
SHAPE = (12, 5000)


def main() -> None:
    args = _arguments()
    out = RESULTS / device_slug()
    rows: list[Row] = []
    for source in args.sources:
        signal = read_signal(source, args.records)
        print(f"\n{source.name}: {len(signal)} records\n")
        measured = list(measure_signal(signal, source.name, repeats=args.repeats))
        print_table(measured)
        rows += measured
    append_rows(out / "codec.jsonl", rows)
    plot(rows, out / "codec.png")


def read_signal(source: Path, most: int) -> NDArray[np.int16]:
    """Integers of up to `most` records of a store or of a folder of foreign files."""
    if (source / "manifest.json").is_file():
        store = open_store(source)
        return store.read(np.arange(min(most, len(store))))
    records = (read_record(item).signal for item in discover([source])[:most])
    return np.stack([s for s in records if s.shape == SHAPE and s.dtype == np.int16])


def table(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Provider -> metric -> median."""
    out: dict[str, dict[str, float]] = {}
    for row in rows:
        out.setdefault(row.provider, {})[row.metric] = row.p50
    return out


def print_table(rows: list[Row]) -> None:
    print("| codec | ratio | encode records/s | decode records/s |\n|---|---|---|---|")
    for provider, values in table(rows).items():
        ratio = f"{values['ratio']:.2f}" if "ratio" in values else "1.00"
        encode = f"{values['encode']:,.0f}" if "encode" in values else ""
        print(f"| {provider} | {ratio} | {encode} | {values['decode']:,.0f} |")


def plot(rows: list[Row], path: Path) -> None:
    """Decode speed over ratio, one panel per source: up and to the right is better."""
    shapes = list(dict.fromkeys(row.shape for row in rows))
    figure = Figure(figsize=(5.5 * len(shapes), 4.2), layout="constrained")
    for index, shape in enumerate(shapes):
        axes = figure.add_subplot(1, len(shapes), index + 1)
        for provider, values in table([row for row in rows if row.shape == shape]).items():
            ratio = values.get("ratio", 1.0)
            colour = "tab:red" if provider.startswith("ecgfast") else "tab:grey"
            axes.scatter(ratio, values["decode"], color="black" if provider == MEMMAP else colour)
            axes.annotate(
                provider,
                (ratio, values["decode"]),
                fontsize=7,
                xytext=(4, 3),
                textcoords="offset points",
            )
        axes.set(xlabel="compression ratio", ylabel="decoded records/s on one core", yscale="log")
        axes.set_title(shape, fontsize=9)
        axes.grid(alpha=0.3, which="both")
        axes.set_xlim(0.5, axes.get_xlim()[1] + 0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="+", help="stores or folders of WFDB records")
    parser.add_argument("--records", type=int, default=200, help="most records of a source")
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
