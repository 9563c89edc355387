"""Other codecs and other ways to a batch, beside ecgpack; on real records.

    python benchmarks/codec_peers.py ../shared/data/ludb ../shared/data/ptbxl/hr_gt
    python benchmarks/codec_peers.py STORE [--records 500]

Each source is a store or a folder of recordings, and has rows of its own, which go to
benchmarks/results/DEVICE/codec.jsonl. `ecgfast bench codec` and `decode` measure the same peers on
synthetic records.
"""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from ecgfast import log
from ecgfast.bench import device_slug, show
from ecgfast.bench.codec import Codec, Held, IndexCall, Int16, measure_store


def installed() -> list[Codec]:
    """General codecs, tuned for int16 where they can be."""
    found = [_zstd()]
    for package, make in (("blosc2", _blosc2), ("pcodec", _pcodec)):
        if find_spec(package) is None:
            log.warning(f"codec: {package} is left out; pip install {package}")
        else:
            found.append(make())
    return found


def _by_record(
    name: str, encode: Callable[[Int16], Any], decode: Callable[[Any, Int16], None]
) -> Codec:
    """A codec of one record at a time; `decode` writes into the array that it is given."""

    def decode_all(chunks: Any, shape: tuple[int, ...]) -> Int16:  # noqa: ANN401 (each codec's own)
        out = np.empty((len(chunks), *shape), np.int16)
        for chunk, row in zip(chunks, out, strict=True):
            decode(chunk, row)
        return out

    return Codec(name, lambda signal: [encode(row) for row in signal], decode_all)


def _zstd() -> Codec:
    import pyarrow as pa  # `decode` runs without it

    zstd = pa.Codec("zstd", compression_level=3)

    def decode(chunk: bytes, row: Int16) -> None:
        row[...] = np.frombuffer(zstd.decompress(chunk, row.nbytes), np.int16).reshape(row.shape)

    return _by_record("zstd-3", lambda row: zstd.compress(row.tobytes(), asbytes=True), decode)


def _blosc2() -> Codec:
    import blosc2

    settings = {"codec": blosc2.Codec.ZSTD, "clevel": 3, "typesize": 2, "nthreads": 1}
    settings["filters"] = [blosc2.Filter.BITSHUFFLE]
    return _by_record(
        "blosc2-zstd-bitshuffle",
        lambda row: blosc2.compress2(row, **settings),
        lambda chunk, row: blosc2.decompress2(chunk, dst=row, nthreads=1),
    )


def _pcodec() -> Codec:
    from pcodec import ChunkConfig, standalone

    def decode(chunk: bytes, row: Int16) -> None:
        row[...] = standalone.simple_decompress(chunk).reshape(row.shape)

    config = ChunkConfig()
    return _by_record("pcodec", lambda row: standalone.simple_compress(row.ravel(), config), decode)


def ways_to_a_batch(held: Held, size: int) -> dict[str, IndexCall]:
    """Ways from raw int16 to (B, 240, 256) fp16 patches as users of PyTorch write them."""
    signal, mean, rstd = held.signal, held.mean, held.rstd

    def with_torch(records_B: torch.Tensor) -> torch.Tensor:  # the bits of our kernels
        z_BCT = signal[records_B].float() - mean[records_B][..., None]
        z_BCT = z_BCT * rstd[records_B][..., None]
        return torch.nn.functional.pad(z_BCT.half().view(size, -1, 250), (0, 6))

    return {
        "decode_patches/raw int16, torch": with_torch,
        "decode_patches/raw int16, torch.compile": torch.compile(
            with_torch, fullgraph=True, dynamic=False
        ),
        "decode_int16/raw int16, torch": lambda index: signal.index_select(0, index),
    }


def main(sources: list[Path], records: int = 200, repeats: int = 7) -> None:
    """Measure on at most so many records of each store or folder of WFDB records."""
    from plot import RESULTS

    from ecgfast.convert import convert
    from ecgfast.store import open_store

    for source in sources:
        with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder:
            path = source
            if not (source / "manifest.json").is_file():
                path = convert([source], Path(folder) / "store", workers=1).store
            rows = measure_store(open_store(path), source.name, most=records, repeats=repeats)
            show(rows, RESULTS / device_slug() / "codec.jsonl")


if __name__ == "__main__":
    typer.run(main)
