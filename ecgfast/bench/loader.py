"""The `loader` case: every engine that runs here, draining shuffled epochs of a synthetic store."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ecgfast import log
from ecgfast.bench.meter import Epoch, Use, measure
from ecgfast.bench.rows import Row, make_row
from ecgfast.convert import convert
from ecgfast.data.dali import build as dali_build
from ecgfast.data.loader import Loader, build_loader
from ecgfast.errors import BackendUnavailableError
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store import open_store
from ecgfast.store.reader import StoreReader
from ecgfast.vocabulary import EngineName

CASE = "loader"


def measure_loader(
    device: str, *, num_records: int = 2048, batch_size: int = 256, seconds: float = 2.0
) -> Iterator[Row]:
    """Measure our engines on a store made for the purpose, warm page cache.

    Args:
        device: "cpu" or "cuda".
        num_records: of the synthetic store; 2,048 are 246 MB of int16.
        batch_size: records.
        seconds: of each timed round.
    Yields:
        For each engine, number of threads and codec, rows of throughput, cores, memory and bytes
        read; for each codec the stored bytes of a record.
    """
    with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder:
        cohort = Path(folder) / "cohort"
        log.info(f"loader: making a store of {num_records} synthetic records")
        write_cohort(cohort, num_records=num_records, num_sites=1, seed=0)
        packed = convert([cohort], Path(folder) / "ecgpack", workers=1).store
        raw = convert([packed], Path(folder) / "none", codec="none", workers=1).store
        for path in (packed, raw):
            store = open_store(path)
            yield bytes_row("ecgfast", store.codec, store_bytes(store))
            for engine, threads in _variants(device):
                yield from _engine_rows(store, engine, threads, device, batch_size, seconds)


def _variants(device: str) -> list[tuple[EngineName, int]]:
    """Engines to try, with their decoding threads."""
    variants: list[tuple[EngineName, int]] = [("cpu", 1), ("cpu", 2)]
    if dali_build.is_installed():
        variants += [("dali", 1), ("dali", 2)]
    if device.startswith("cuda"):
        variants += [("cpu", 8), ("resident", 1)]
    return variants


def _engine_rows(
    store: StoreReader,
    engine: EngineName,
    threads: int,
    device: str,
    batch_size: int,
    seconds: float,
) -> Iterator[Row]:
    """Rows of one engine, or a warning when it cannot run here."""
    try:
        loader = build_loader(
            store, batch_size=batch_size, engine=engine, device=device, num_threads=threads
        )
        use = measure(epoch_of(loader), device=device, seconds=seconds)
    except BackendUnavailableError as error:
        log.warning(f"loader: {engine} left out: {error}")
        return
    shape = f"{store.codec}, {threads} threads, batch {batch_size}, warm"
    yield from use_rows(provider(engine, device), shape, use, device)


def provider(engine: EngineName, device: str) -> str:
    """Name of an engine in rows: plainly "ecgfast" for the one that `auto` takes."""
    chosen = "resident" if device.startswith("cuda") else "cpu"
    return "ecgfast" if engine == chosen else f"ecgfast-{engine}"


def epoch_of(loader: Loader) -> Epoch:
    """Adapt a loader to the meter."""

    def epoch() -> Iterator[int]:
        for batch in loader:
            yield len(batch.record_index)

    return epoch


def use_rows(provider: str, shape: str, use: Use, device: str) -> Iterator[Row]:
    """Rows of what one provider used; what could not be measured has none."""
    columns = {
        ("throughput", "records/s"): use.records_per_s,
        ("cores", "cores"): (use.cores,),
        ("memory", "GiB"): (use.memory_gib,),
        ("read", "B/record"): (use.read_bytes,),
    }
    for (metric, unit), values in columns.items():
        if not any(math.isnan(value) for value in values):
            yield make_row(
                case=CASE,
                provider=provider,
                shape=shape,
                metric=metric,
                unit=unit,
                values=values,
                device=device,
            )


def bytes_row(provider: str, shape: str, num_bytes: float) -> Row:
    """A row of the bytes that one record takes on disk."""
    return make_row(
        case=CASE,
        provider=provider,
        shape=shape,
        metric="storage",
        unit="B/record",
        values=[num_bytes],
    )


def store_bytes(store: StoreReader) -> float:
    """Encoded bytes of a record, on average over the store."""
    _, _, lengths = store.load_chunks()
    return float(lengths.mean())
