"""The codecs that ecgpack is measured beside: general ones, tuned for int16 where they can be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
from ecgfast_kernels import codec as ecgpack
from ecgfast_kernels.codec import native
from numpy.typing import NDArray

from ecgfast import log

Int16 = NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One codec: records (n, C, T) int16 to chunks and back, on the calling thread."""

    name: str
    encode: Callable[[Int16], Sequence[Any]]
    decode: Callable[[Sequence[Any], tuple[int, ...]], Int16]


def peers() -> list[Peer]:
    """Ours on each instruction set, and every peer that is installed."""
    found = _ours()
    found += [_zstd("zstd-3", delta=False), _zstd("delta+zstd-3", delta=True)]
    for package, make in (("blosc2", _blosc2), ("pcodec", _pcodec)):
        if find_spec(package) is None:
            log.warning(f"codec: {package} is left out; pip install {package}")
        else:
            found.append(make())
    return found


def _ours() -> list[Peer]:
    fastest = ecgpack.backend()
    if fastest == "numpy":
        return [Peer(name="ecgfast-numpy", encode=ecgpack.encode, decode=_decode_ours)]
    names = [name for name in ("avx2", "portable") if name != fastest and native.choose(name)]
    native.choose("")
    return [
        Peer(name="ecgfast", encode=ecgpack.encode, decode=_decode_ours),
        *(_forced(name) for name in names),
    ]


def _forced(backend: str) -> Peer:
    def forced(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:  # noqa: ANN401 - passes through what it is given
            native.choose(backend)
            try:
                return call(*arguments)
            finally:
                native.choose("")

        return run

    name = f"ecgfast-{backend}"
    return Peer(name=name, encode=forced(ecgpack.encode), decode=forced(_decode_ours))


def _decode_ours(chunks: Sequence[bytes], shape: tuple[int, ...]) -> Int16:
    lengths = np.array([len(chunk) for chunk in chunks])
    offsets = np.cumsum(lengths) - lengths
    return ecgpack.decode(
        b"".join(chunks), offsets, lengths, num_leads=shape[0], num_timesteps=shape[1]
    )


def _zstd(name: str, *, delta: bool) -> Peer:
    zstd = pa.Codec("zstd", compression_level=3)

    def encode(signal: Int16) -> list[bytes]:
        rows = np.diff(signal, axis=2, prepend=np.int16(0)) if delta else signal
        return [zstd.compress(row.tobytes(), asbytes=True) for row in rows]

    def decode(chunks: Sequence[bytes], shape: tuple[int, ...]) -> Int16:
        out = np.empty((len(chunks), *shape), np.int16)
        for row, chunk in zip(out, chunks, strict=True):
            values = np.frombuffer(zstd.decompress(chunk, row.nbytes), np.int16).reshape(shape)
            if delta:
                np.cumsum(values, axis=1, dtype=np.int16, out=row)
            else:
                row[...] = values
        return out

    return Peer(name=name, encode=encode, decode=decode)


def _blosc2() -> Peer:
    import blosc2

    settings = {
        "codec": blosc2.Codec.ZSTD,
        "clevel": 3,
        "typesize": 2,
        "filters": [blosc2.Filter.BITSHUFFLE],
        "nthreads": 1,
    }

    def encode(signal: Int16) -> list[bytes]:
        return [blosc2.compress2(row, **settings) for row in signal]

    def decode(chunks: Sequence[bytes], shape: tuple[int, ...]) -> Int16:
        out = np.empty((len(chunks), *shape), np.int16)
        for row, chunk in zip(out, chunks, strict=True):
            blosc2.decompress2(chunk, dst=row, nthreads=1)
        return out

    return Peer(name="blosc2-zstd-bitshuffle", encode=encode, decode=decode)


def _pcodec() -> Peer:
    from pcodec import ChunkConfig, standalone

    config = ChunkConfig()

    def encode(signal: Int16) -> list[bytes]:
        return [standalone.simple_compress(row.ravel(), config) for row in signal]

    def decode(chunks: Sequence[bytes], shape: tuple[int, ...]) -> Int16:
        out = np.empty((len(chunks), *shape), np.int16)
        for row, chunk in zip(out, chunks, strict=True):
            row[...] = standalone.simple_decompress(chunk).reshape(shape)
        return out

    return Peer(name="pcodec", encode=encode, decode=decode)
