"""ecgpack beside other codecs on real records: ratio, encode and decode per core, with a plot.

    python benchmarks/codec_peers.py ../shared/data/ludb ../shared/data/ptbxl/hr_gt
    python benchmarks/codec_peers.py STORE [--records 500]

Each source is a store or a folder of recordings; each gives a table of its own. Rows
go to benchmarks/results/DEVICE/codec.jsonl, the plot to codec.png beside it.
"""

import argparse
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from ecgfast.bench.codec import MEMMAP, measure_store
from ecgfast.bench.rows import Row, append_rows, device_slug
from ecgfast.convert import convert
from ecgfast.store import StoreReader, open_store

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    args = _arguments()
    out = RESULTS / device_slug()
    rows: list[Row] = []
    for source in args.sources:
        with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder:
            store = open_as_store(source, Path(folder))
            print(f"\n{source.name}: {len(store)} records, {args.records} at most\n")
            measured = list(
                measure_store(store, source.name, most=args.records, repeats=args.repeats)
            )
        print_table(measured)
        rows += measured
    append_rows(out / "codec.jsonl", rows)
    plot(rows, out / "codec.png")


def open_as_store(source: Path, folder: Path) -> StoreReader:
    """The store at `source`; a folder of foreign files is converted into `folder` first."""
    if (source / "manifest.json").is_file():
        return open_store(source)
    return open_store(convert([source], folder / "store", workers=1).store)


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
