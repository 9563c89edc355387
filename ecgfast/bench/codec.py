"""The `codec` case: ratio and rates beside other codecs; and `decode`: to a batch on a GPU.

Decode rates count decoded int16 bytes, so that every way to the same batch has the same numerator.
Shapes: R records held, B records of a batch, C leads, T timesteps.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from ecgfast_kernels import codec
from ecgfast_kernels.codec import cuda as codec_cuda
from ecgfast_kernels.codec import native
from numpy.typing import NDArray
from torch import Tensor

from ecgfast import log
from ecgfast.bench import Call, Row, make_rows, peers_module, per_second, time_interleaved

if TYPE_CHECKING:
    from ecgfast.store import StoreReader

STORE_READ = "ecgfast-store-read"
_BATCH = 256  # as in training
_INDEX_BYTES = 16  # a chunk's entry in the shard index
_LEADS, _TIMESTEPS = 12, 5000
_HELD, _BATCHES = 8192, (256, 1024)
_SETS = 16  # of record numbers in turn, so that no cache holds the next batch

Int16 = NDArray[np.int16]
IndexCall = Callable[[Tensor], object]  # of record numbers (B,) on the GPU


class Codec(NamedTuple):
    """One codec: records (n, C, T) int16 to chunks and back, on the calling thread."""

    name: str
    encode: Callable[[Int16], Sequence[Any]]
    decode: Callable[[Sequence[Any], tuple[int, ...]], Int16]


def measure_codec(_device: str) -> Iterator[Row]:
    """Measure on synthetic records, on any device; benchmarks/codec_peers.py takes real ones."""
    from ecgfast.convert import convert  # decoding is measured where these cannot be imported
    from ecgfast.ingest.synthetic import write_cohort
    from ecgfast.store import open_store

    with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder:
        cohort = Path(folder) / "cohort"
        log.info("codec: making 128 synthetic records")
        write_cohort(cohort, num_records=128, num_sites=1, seed=0)
        store = open_store(convert([cohort], Path(folder) / "store", workers=1).store)
        yield from measure_store(store, "synthetic")


def measure_store(
    store: "StoreReader", name: str, *, most: int = 200, repeats: int = 7
) -> Iterator[Row]:
    """Measure every codec on the same records of a store, warm, on one thread.

    Args:
        store: an ecgpack store.
        name: of the data, for the rows.
        most: records to take.
        repeats: timed rounds; codecs take turns in each.
    Yields:
        For each codec rows of "ratio" (shard index counted), "encode" and "decode" in records/s;
        the same of `store.read` of random records, files and checks included.
    """
    signal_NCT = store.read(np.arange(min(most, len(store))))
    chosen = np.random.default_rng(0).permutation(len(signal_NCT))[:_BATCH]
    batch = np.ascontiguousarray(signal_NCT[chosen])
    shape = f"{name}, {' x '.join(map(str, signal_NCT.shape))} int16"
    rows = partial(make_rows, case="codec", shape=shape)
    ratio = len(store) * signal_NCT[0].nbytes / store.num_bytes  # of its files, indices and all
    yield from rows({("ratio", "x"): [ratio]}, provider=STORE_READ)
    encode: dict[str, Call] = {}
    decode: dict[str, Call] = {STORE_READ: partial(store.read, chosen)}
    for each in codecs():
        stored = sum(len(chunk) + _INDEX_BYTES for chunk in each.encode(signal_NCT))
        yield from rows({("ratio", "x"): [signal_NCT.nbytes / stored]}, provider=each.name)
        chunks = each.encode(batch)
        if not np.array_equal(each.decode(chunks, batch.shape[1:]), batch):
            raise AssertionError(f"{each.name} does not give its input back")
        encode[each.name] = partial(each.encode, batch)
        decode[each.name] = partial(each.decode, chunks, batch.shape[1:])
    for metric, calls in (("encode", encode), ("decode", decode)):
        for provider, ms in time_interleaved(calls, repeats=repeats, warmup=1).items():
            rates = {(metric, "records/s"): per_second(ms, len(batch))}
            yield from rows(rates, provider=provider)


def codecs() -> list[Codec]:
    """Ours, named by its instruction set where one was asked for, and every installed peer."""
    name = "ecgfast"
    if native.BACKEND_VARIABLE in os.environ or codec.backend() == "numpy":
        name = f"ecgfast-{codec.backend()}"
    peers = peers_module("codec_peers")
    others: list[Codec] = [] if peers is None else peers.installed()
    return [Codec(name, codec.encode, _decode), *others]


def _decode(chunks: Sequence[bytes], shape: tuple[int, ...]) -> Int16:
    lengths = np.array([len(chunk) for chunk in chunks])
    where = (b"".join(chunks), np.cumsum(lengths) - lengths, lengths)
    return codec.decode(*where, num_leads=shape[0], num_timesteps=shape[1])


class Held(NamedTuple):
    """Records in GPU memory: (R, C, T) int16, encoded, and (R, C) fp32 that normalises them."""

    signal: Tensor
    chunks: codec_cuda.ResidentChunks
    mean: Tensor
    rstd: Tensor


def measure_decode(device: str, *, repeats: int = 30) -> Iterator[Row]:
    """Measure every way from records in memory of a GPU, "cuda", to a batch."""
    held = hold(ecg_like(_HELD, seed=1))
    ratio = held.signal.nbytes / held.chunks.bytes.nbytes
    peers = peers_module("codec_peers")
    for size in _BATCHES:
        rng = np.random.default_rng(0)
        sets = [rng.choice(_HELD, size, replace=False) for _ in range(_SETS)]
        numbers = cycle([torch.from_numpy(each).cuda() for each in sets])
        ways = _our_ways(held, size)
        if peers is not None:
            ways |= peers.ways_to_a_batch(held, size)
        calls = {name: partial(_of_next, way, numbers) for name, way in ways.items()}
        shape = f"{size} of {_HELD}, ratio {ratio:.1f}"
        for name, ms in time_interleaved(calls, device=device, repeats=repeats).items():
            case, _, provider = name.partition("/")
            moved = held.signal[0].nbytes * size / 1e9
            rates = {"GB/s": per_second(ms, moved), "records/s": per_second(ms, size)}
            rows = {("throughput", unit): values for unit, values in rates.items()}
            yield from make_rows(rows, case=case, provider=provider, shape=shape, device=device)


def _of_next(way: IndexCall, numbers: Iterator[Tensor]) -> object:
    return way(next(numbers))


def hold(signal_RCT: Int16) -> Held:
    """Encode records, compute their statistics, and copy all to the GPU."""
    chunks = codec.encode(signal_RCT)
    lengths = np.array([len(chunk) for chunk in chunks], np.int64)
    mean, std = codec.lead_statistics(signal_RCT)
    rstd = np.divide(1, std, out=np.zeros_like(std), where=std > 0)
    buffer = np.frombuffer(bytearray(b"".join(chunks)), np.uint8)
    parts = {"bytes": buffer, "offsets": np.cumsum(lengths) - lengths, "lengths": lengths}
    resident = codec_cuda.ResidentChunks(
        **{name: torch.from_numpy(part).cuda() for name, part in parts.items()},
        num_leads=_LEADS,
        num_timesteps=_TIMESTEPS,
    )
    signal, *statistics = (torch.from_numpy(x).cuda() for x in (signal_RCT, mean, rstd))
    return Held(signal, resident, *statistics)


def ecg_like(num_records: int, *, seed: int, num_timesteps: int = _TIMESTEPS) -> Int16:
    """(N, 12, T) int16, 5 microvolt a step: beats, baseline wander, noise; limb leads that add up.

    The noise is chosen so that the codec's ratio is about that of real hospital records (4.5).
    """
    rng = np.random.default_rng(seed)
    time = np.arange(num_timesteps, dtype=np.float32)
    # at, width, gain
    waves = ((-80, 18, 20), (-8, 4, -25), (0, 5, 220), (9, 4, -60), (120, 28, 45))
    out = np.empty((num_records, _LEADS, num_timesteps), np.int16)
    for record in range(num_records):
        phase = (time + rng.integers(0, 400)) % rng.integers(300, 520) - 150
        beat = np.stack([np.exp(-(((phase - at) / width) ** 2)) for at, width, _ in waves])
        gains = np.array([gain for *_, gain in waves]) * rng.uniform(0.3, 1.5, (_LEADS, len(waves)))
        wander = rng.uniform(5, 30, (_LEADS, 1)) * np.sin(time / rng.uniform(300, 900))
        noise = rng.standard_normal((_LEADS, num_timesteps), np.float32) * 4
        out[record] = np.rint(gains.astype(np.float32) @ beat + wander + noise)
    one, two = out[:, 0], out[:, 1]
    out[:, 2], out[:, 3] = two - one, -((one + two) >> 1)
    out[:, 4], out[:, 5] = one - (two >> 1), two - (one >> 1)
    return out


def _our_ways(held: Held, size: int) -> dict[str, IndexCall]:
    signal, chunks, mean, rstd = held
    status = torch.zeros(size, dtype=torch.int32, device="cuda")
    patches = torch.empty((size, 240, 256), dtype=torch.float16, device="cuda")
    decoded = torch.empty((size, _LEADS, _TIMESTEPS), dtype=torch.int16, device="cuda")
    return {
        "decode_patches/ecgfast": lambda index: codec_cuda.decode_patches(
            chunks, index, mean, rstd, out=patches, status=status
        ),
        "decode_patches/raw int16, own kernel": lambda index: codec_cuda.gather_patches(
            signal, index, mean, rstd, out=patches, status=status
        ),
        "decode_int16/ecgfast": lambda index: codec_cuda.decode(
            chunks, index, out=decoded, status=status
        ),
    }
