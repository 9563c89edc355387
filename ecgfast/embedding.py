"""Features that a run's encoder gives the records of a store: `ecgfast embed`."""

# R records, B records of a batch, D features

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgfast import log
from ecgfast.data.loader import build_loader, selected_rows
from ecgfast.errors import ConfigError
from ecgfast.model.classifier import Classifier, num_features, pooled
from ecgfast.model.vit import Encoder
from ecgfast.runs.export import located
from ecgfast.runs.inference import choose_device
from ecgfast.runs.loading import LoadedRun, load_run
from ecgfast.store.durable import explained
from ecgfast.store.format import refuse_inside_store
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.vocabulary import Pool

_BATCH = 64
SUFFIXES = (".parquet", ".npy")

_Part = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Features:
    """What `embed` returns.

    Attributes:
        record_id: (R,) names of the records.
        values: (R, D) float32.
        facts: what they were made with: run, store, pool and layer.
    """

    record_id: list[str]
    values: NDArray[np.float32]
    facts: dict[str, str] = field(default_factory=dict)


def embed(
    run: str | Path,
    store: str | Path,
    *,
    pool: Pool = "mean",
    layer: int | None = None,
    select: str | None = None,
    device: str | None = None,
) -> Features:
    """Return the features of a store's records, in memory.

    Args:
        run: folder of a pretraining, of a finished fine-tuning, or what else
            `ecgfast.load_model` takes.
        store: preprocessed as the run's.
        pool: of a ViT's tokens: the class token, the mean of the patches, or the mean and the
            maximum of each lead's patches.
        layer: block of a ViT whose output is taken, from 1; None: the last, and the norm behind it.
        select: an expression; None takes all records.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.
    Raises:
        ConfigError: no such layer, or the store was preprocessed in another way than the run's.
    """
    work = _Work(located(run), Path(store), pool=pool, layer=layer, select=select, device=device)
    parts = [values for _, values in work.parts()]
    return Features(record_id=work.record_id, values=np.concatenate(parts), facts=work.facts)


def write_features(
    out: str | Path,
    run: str | Path,
    store: str | Path,
    *,
    pool: Pool = "mean",
    layer: int | None = None,
    select: str | None = None,
    device: str | None = None,
) -> tuple[int, int]:
    """Write the features of a store's records, batch by batch.

    Args:
        out: a .parquet file with the columns record_id, row and features, or a .npy file of
            (R, D) float32, beside which OUT.records.csv names the records.
        run: as for `embed`, like the rest.
        store: as for `embed`.
        pool: as for `embed`.
        layer: as for `embed`.
        select: as for `embed`.
        device: as for `embed`.
    Returns:
        R and D.
    Raises:
        ConfigError: as `embed`; or `out` has another suffix, or is there already.
    """
    out = Path(out)
    refuse_inside_store(out, "--out")
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out must end with {' or '.join(SUFFIXES)}, got {str(out)!r}")
    if out.exists():
        raise ConfigError(f"{out} is there already; move it away, or name another file")
    work = _Work(located(run), Path(store), pool=pool, layer=layer, select=select, device=device)
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            write = _write_parquet if out.suffix == ".parquet" else _write_array
            write(partial, work)
            if out.suffix == ".npy":
                names = "".join(f"{name}\n" for name in ("record_id", *work.record_id))
                out.with_name(f"{out.name}.records.csv").write_text(names, encoding="utf-8")
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
    return len(work.rows), work.width


class _Work:
    """A run and the records that it is to see; all mistakes are found before the first batch."""

    def __init__(
        self,
        run: Path,
        store: Path,
        *,
        pool: Pool,
        layer: int | None,
        select: str | None,
        device: str | None,
    ) -> None:
        self._store: StoreReader = open_store(store)
        self._run: LoadedRun = load_run(run, self._store, for_tests=False)
        self.rows = selected_rows(self._store, select)
        if not len(self.rows):
            raise ConfigError(f"select {select!r} has no record; widen it")
        self.record_id: list[str] = self._store.records["record_id"].take(self.rows).to_pylist()
        self._device = choose_device(device)
        self._model = self._run.model()
        self._features, self.width = _reader_of(self._model, pool, layer)
        self.facts = {
            "run": self._run.meta.name,
            "store": self._store.identity,
            "pool": pool,
            "layer": "last" if layer is None else str(layer),
        }

    def parts(self) -> Iterator[_Part]:
        """Yield rows (B,) and features (B, D) of each batch, in the order of `rows`."""
        self._store.check_digests(self.rows)
        loader = build_loader(
            self._store,
            batch_size=_BATCH,
            device=self._device,
            select=self.rows,
            drop_last=False,
            shuffle=False,
            normalise=self._run.meta.preprocessing.normalisation,
        )
        self._model.to(self._device)
        with torch.no_grad(), log.progress("embed", total=len(self.rows)) as advance:
            for batch in loader:
                values = self._features(batch.patches.float()).float().cpu().numpy()
                yield batch.record_index.cpu().numpy(), values
                advance(len(values))


def _reader_of(
    model: nn.Module, pool: Pool, layer: int | None
) -> tuple[Callable[[Tensor], Tensor], int]:
    """What turns patches (B, N, 256) into features (B, D), and D."""
    encoder = model.encoder if isinstance(model, Classifier) else model
    if not isinstance(encoder, Encoder):
        assert isinstance(model, Classifier)
        if layer is not None:
            raise ConfigError(f"--layer counts the blocks of a ViT, got {layer} for a CNN")
        last = next(part for part in model.head if isinstance(part, nn.Linear))
        return model.features, last.in_features
    depth = len(encoder.blocks)
    if layer is not None and not 1 <= layer <= depth:
        raise ConfigError(f"--layer must be in [1, {depth}], got {layer}")
    num_leads = encoder.config.num_leads

    def features(patches_BNP: Tensor) -> Tensor:
        return pooled(encoder.encode(patches_BNP, depth=layer), pool, num_leads)

    return features, num_features(encoder.config, pool)


def _write_parquet(path: Path, work: _Work) -> None:
    kind = pa.list_(pa.float32(), work.width)
    schema = pa.schema({"record_id": pa.string(), "row": pa.int64(), "features": kind})
    with pq.ParquetWriter(path, schema.with_metadata(work.facts)) as writer:
        done = 0
        for rows, values in work.parts():
            names = work.record_id[done : done + len(rows)]
            flat = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), work.width)
            writer.write_table(pa.table([names, pa.array(rows), flat], schema=writer.schema))
            done += len(rows)


def _write_array(path: Path, work: _Work) -> None:
    shape = (len(work.rows), work.width)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    done = 0
    for rows, values in work.parts():
        array[done : done + len(rows)] = values
        done += len(rows)
    array.flush()
