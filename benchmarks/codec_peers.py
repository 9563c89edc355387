"""Other codecs and other ways to a batch, beside ecgpack; on real records, with a plot.

    python benchmarks/codec_peers.py ../shared/data/ludb ../shared/data/ptbxl/hr_gt
    python benchmarks/codec_peers.py STORE [--records 500]

Each source is a store or a folder of recordings; each gives a table of its own. Rows go to
benchmarks/results/DEVICE/codec.jsonl, the plot to codec.png beside it. `ecgfast bench codec` and
`decode` measure the same peers on synthetic records.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfast import log
from ecgfast.bench.rows import Row, append_rows, device_slug

if TYPE_CHECKING:
    from ecgfast.bench.codec import Held

RESULTS = Path(__file__).parent / "results"
Int16 = NDArray[np.int16]


def installed() -> list[dict[str, Any]]:
    """Name, encode and decode of general codecs, tuned for int16 where they can be."""
    found = [_zstd("zstd-3", delta=False), _zstd("delta+zstd-3", delta=True)]
    for package, make in (("blosc2", _blosc2), ("pcodec", _pcodec)):
        if find_spec(package) is None:
            log.warning(f"codec: {package} is left out; pip install {package}")
        else:
            found.append(make())
    return found


def _by_record(
    name: str, encode: Callable[[Int16], Any], decode: Callable[[Any, Int16], None]
) -> dict[str, Any]:
    """A codec of one record at a time; `decode` writes into the array that it is given."""

    def decode_all(chunks: list[Any], shape: tuple[int, ...]) -> Int16:
        out = np.empty((len(chunks), *shape), np.int16)
        for chunk, row in zip(chunks, out, strict=True):
            decode(chunk, row)
        return out

    def encode_all(signal: Int16) -> list[Any]:
        return [encode(row) for row in signal]

    return {"name": name, "encode": encode_all, "decode": decode_all}


def _zstd(name: str, *, delta: bool) -> dict[str, Any]:
    import pyarrow as pa

    zstd = pa.Codec("zstd", compression_level=3)

    def encode(row: Int16) -> bytes:
        values = np.diff(row, axis=1, prepend=np.int16(0)) if delta else row
        return zstd.compress(values.tobytes(), asbytes=True)

    def decode(chunk: bytes, row: Int16) -> None:
        values = np.frombuffer(zstd.decompress(chunk, row.nbytes), np.int16).reshape(row.shape)
        if delta:
            np.cumsum(values, axis=1, dtype=np.int16, out=row)
        else:
            row[...] = values

    return _by_record(name, encode, decode)


def _blosc2() -> dict[str, Any]:
    import blosc2

    settings = {"codec": blosc2.Codec.ZSTD, "clevel": 3, "typesize": 2, "nthreads": 1}
    settings["filters"] = [blosc2.Filter.BITSHUFFLE]
    return _by_record(
        "blosc2-zstd-bitshuffle",
        lambda row: blosc2.compress2(row, **settings),
        lambda chunk, row: blosc2.decompress2(chunk, dst=row, nthreads=1),
    )


def _pcodec() -> dict[str, Any]:
    from pcodec import ChunkConfig, standalone

    def decode(chunk: bytes, row: Int16) -> None:
        row[...] = standalone.simple_decompress(chunk).reshape(row.shape)

    config = ChunkConfig()
    return _by_record("pcodec", lambda row: standalone.simple_compress(row.ravel(), config), decode)


def ways_to_a_batch(
    held: "Held", numbers: Iterator[Any], size: int, device: str
) -> dict[str, Callable[[], Any]]:
    """Ways from raw int16 to (B, 240, 256) fp16 patches as users of NumPy or PyTorch write them.

    Args:
        held: `signal` (R, C, T) int16, `mean` and `rstd` (R, C).
        numbers: record numbers of the next batch, on the device.
        size: records of a batch.
        device: "cpu" or "cuda".
    """
    if device != "cuda":
        patches = np.zeros((size, 240, 256), np.float16)

        def with_numpy() -> None:
            index = next(numbers)
            x = held.signal[index].astype(np.float32)
            z = (x - held.mean[index][..., None]) * held.rstd[index][..., None]
            patches[..., :250] = z.reshape(size, 240, 250)

        return {"decode_patches/raw int16, numpy": with_numpy}
    raw = [torch.from_numpy(array).cuda() for array in (held.signal, held.mean, held.rstd)]
    compiled = torch.compile(normalise_with_torch, fullgraph=True, dynamic=False)
    return {
        "decode_patches/raw int16, torch": lambda: normalise_with_torch(next(numbers), *raw),
        "decode_patches/raw int16, torch.compile": lambda: compiled(next(numbers), *raw),
        "decode_int16/raw int16, torch": lambda: raw[0].index_select(0, next(numbers)),
    }


def normalise_with_torch(
    records_B: Tensor, signal_RCT: Tensor, mean_RC: Tensor, rstd_RC: Tensor
) -> Tensor:
    """(B, N, 256) fp16 patches, the bits of our kernels."""
    x_BCT = signal_RCT[records_B].float()
    z_BCT = (x_BCT - mean_RC[records_B][..., None]) * rstd_RC[records_B][..., None]
    return torch.nn.functional.pad(z_BCT.half().view(len(records_B), -1, 250), (0, 6))


def table(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Provider -> metric -> median."""
    out: dict[str, dict[str, float]] = {}
    for row in rows:
        out.setdefault(row.provider, {})[row.metric] = row.p50
    return out


def plot(rows: list[Row], path: Path) -> None:
    """Decode speed over ratio, one panel per source: up and to the right is better."""
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys(row.shape for row in rows))
    figure = Figure(figsize=(5.5 * len(shapes), 4.2), layout="constrained")
    for index, shape in enumerate(shapes):
        axes = figure.add_subplot(1, len(shapes), index + 1)
        for provider, values in table([row for row in rows if row.shape == shape]).items():
            at = (values.get("ratio", 1.0), values["decode"])
            colour = "tab:red" if provider.startswith("ecgfast") else "tab:grey"
            axes.scatter(*at, color="black" if provider == "memmap-int16" else colour)
            axes.annotate(provider, at, fontsize=7, xytext=(4, 3), textcoords="offset points")
        axes.set(xlabel="compression ratio", ylabel="decoded records/s on one core", yscale="log")
        axes.set_title(shape, fontsize=9)
        axes.grid(alpha=0.3, which="both")
        axes.set_xlim(0.5, axes.get_xlim()[1] + 0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    from ecgfast.bench.codec import measure_store
    from ecgfast.convert import convert
    from ecgfast.store import open_store

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="+", help="stores or folders of WFDB records")
    parser.add_argument("--records", type=int, default=200, help="most records of a source")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    rows: list[Row] = []
    for source in args.sources:
        with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder:
            path = source
            if not (source / "manifest.json").is_file():
                path = convert([source], Path(folder) / "store", workers=1).store
            store = open_store(path)
            print(f"\n{source.name}: {len(store)} records, {args.records} at most\n")
            options = {"most": args.records, "repeats": args.repeats}
            measured = list(measure_store(store, source.name, **options))
        print("| codec | ratio | encode records/s | decode records/s |\n|---|---|---|---|")
        for provider, values in table(measured).items():
            encode = f"{values['encode']:,.0f}" if "encode" in values else ""
            ratio = values.get("ratio", 1.0)
            print(f"| {provider} | {ratio:.2f} | {encode} | {values['decode']:,.0f} |")
        rows += measured
    out = RESULTS / device_slug()
    append_rows(out / "codec.jsonl", rows)
    plot(rows, out / "codec.png")


if __name__ == "__main__":
    main()
