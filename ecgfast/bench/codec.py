"""The `codec` case: ratio, encode and decode per core, beside other codecs, in one process."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.bench.codec_peers import Peer, peers
from ecgfast.bench.rows import Row, make_row
from ecgfast.bench.timing import per_second, time_interleaved
from ecgfast.convert import convert
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store import StoreReader, open_store

CASE = "codec"
MEMMAP = "memmap-int16"
STORE_READ = "ecgfast-store-read"
_BATCH = 256  # as in training
_INDEX_BYTES = 16  # a chunk's entry in the shard index


def measure_codec(_device: str = "cpu") -> Iterator[Row]:
    """Measure on synthetic records; benchmarks/codec_peers.py takes real ones."""
    with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder:
        cohort = Path(folder) / "cohort"
        log.info("codec: making 128 synthetic records")
        write_cohort(cohort, num_records=128, num_sites=1, seed=0)
        store = open_store(convert([cohort], Path(folder) / "store", workers=1).store)
        yield from measure_store(store, "synthetic")


def measure_store(
    store: StoreReader, name: str, *, most: int = 200, repeats: int = 7
) -> Iterator[Row]:
    """Measure every codec on the records of a store, and `store.read` of random ones beside them.

    Args:
        store: an ecgpack store.
        name: of the data, for the rows.
        most: records to take.
        repeats: timed rounds.
    """
    signal_NCT = store.read(np.arange(min(most, len(store))))
    ratio = len(store) * signal_NCT[0].nbytes / store.num_bytes  # of its files, indices and all
    yield _row(STORE_READ, "ratio", "x", [ratio], _shape(name, signal_NCT))
    yield from measure_signal(signal_NCT, name, repeats=repeats, read=store.read)


def measure_signal(
    signal_NCT: NDArray[np.int16],
    name: str,
    *,
    repeats: int = 7,
    read: Callable[[NDArray[np.int64]], object] | None = None,
) -> Iterator[Row]:
    """Measure every codec on the same records, warm, on one thread.

    Args:
        signal_NCT: (N, C, T) int16.
        name: of the data, for the rows.
        repeats: timed rounds; codecs take turns in each.
        read: reads these records by number from where they are stored, files and checks included.
    Yields:
        For each codec rows of "ratio" (shard index counted), "encode" and "decode" in records/s;
        decode of a raw int16 memmap as the bound, and of `read`.
    """
    chosen = np.random.default_rng(0).permutation(len(signal_NCT))[:_BATCH]
    batch = np.ascontiguousarray(signal_NCT[chosen])
    encode: dict[str, Callable[[], object]] = {}
    decode: dict[str, Callable[[], object]] = {}
    shape = _shape(name, signal_NCT)
    for peer in peers():
        stored = sum(len(chunk) + _INDEX_BYTES for chunk in peer.encode(signal_NCT))
        yield _row(peer.name, "ratio", "x", [signal_NCT.nbytes / stored], shape)
        encode[peer.name], decode[peer.name] = _calls(peer, batch)
    if read is not None:
        decode[STORE_READ] = partial(read, chosen)
    with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder:
        signal_NCT.tofile(Path(folder) / "signal.i2")
        raw = np.memmap(Path(folder) / "signal.i2", np.int16, "r").reshape(signal_NCT.shape)
        decode[MEMMAP] = lambda: raw[chosen]
        for metric, variants in (("encode", encode), ("decode", decode)):
            times = time_interleaved(variants, repeats=repeats, warmup=1)
            for provider, ms in times.items():
                rates = per_second(ms, len(batch))
                yield _row(provider, metric, "records/s", rates, shape)


def _calls(
    peer: Peer, batch: NDArray[np.int16]
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Encode and decode of one batch; no speed is worth a number unless the values come back."""
    chunks = peer.encode(batch)
    if not np.array_equal(peer.decode(chunks, batch.shape[1:]), batch):
        raise AssertionError(f"{peer.name} does not give its input back")
    return lambda: peer.encode(batch), lambda: peer.decode(chunks, batch.shape[1:])


def _shape(name: str, signal_NCT: NDArray[np.int16]) -> str:
    return f"{name}, {' x '.join(map(str, signal_NCT.shape))} int16"


def _row(provider: str, metric: str, unit: str, values: list[float], shape: str) -> Row:
    return make_row(
        case=CASE, provider=provider, metric=metric, unit=unit, values=values, shape=shape
    )
