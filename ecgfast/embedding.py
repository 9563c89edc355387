"""Features that a run's encoder gives records of a store or raw files: `ecgfast embed`."""

# R records, B records of a batch, n windows of a file, D features

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgfast import log
from ecgfast.convert.preprocess import Window, check_source, read_windows
from ecgfast.data.batch import made_ahead
from ecgfast.data.loader import selected_rows
from ecgfast.errors import ConfigError, FormatError, ShapeError
from ecgfast.ingest import InputFile
from ecgfast.ingest.inventory import discover
from ecgfast.model.classifier import Classifier, encoder_state, num_features, pooled
from ecgfast.model.vit import Encoder
from ecgfast.predictor import EcgModel, load_model
from ecgfast.records import LEADS, SAMPLING_RATE_HZ
from ecgfast.runs.features import SUFFIXES, Features, Values, blocks, weights_digest, write
from ecgfast.runs.inference import choose_device, patches_of
from ecgfast.runs.loading import load_run
from ecgfast.runs.located import located
from ecgfast.runs.meta import RunMeta
from ecgfast.store.csv_files import csv_lines
from ecgfast.store.durable import explained, write_durably
from ecgfast.store.format import MANIFEST, SIGNALS, address_of, refuse_inside_store
from ecgfast.store.generations import split_generation
from ecgfast.store.reader import available_cores, open_store
from ecgfast.vocabulary import Pool

_BATCH = 64
REFUSED_COLUMNS = ("file", "reason")

Sources = str | Path | Sequence[str | Path]


class Embedded(NamedTuple):
    """What `write_features` wrote, and how many files were given and have nothing."""

    num_records: int
    width: int
    num_files: int = 0
    num_refused: int = 0


def embed(
    run: str | Path,
    source: Sources,
    *,
    pool: Pool = "mean",
    layer: int | None = None,
    select: str | None = None,
    device: str | None = None,
) -> Features:
    """Return the features of a store's records, or of raw files, in memory.

    Args:
        run: folder of a pretraining, of a finished fine-tuning, or what else
            `ecgfast.load_model` takes.
        source: a store that was preprocessed as the run's; or files and folders of ECGs, which are
            read and prepared as `ecgfast.predict` does it, in windows of ten seconds.
        pool: of a ViT's tokens: the class token, the mean of the patches, or the mean and the
            maximum of each lead's patches.
        layer: block of a ViT whose output is taken, from 1; None: the last, and the norm behind it.
        select: an expression; None takes all records of a store.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.
    Raises:
        ConfigError: no such layer, or the store was preprocessed in another way than the run's.
        FormatError: a file does not exist, or a folder holds no ECG; one that cannot be used is
            among `Features.refused`.
    """
    work = _prepared(run, source, pool=pool, layer=layer, select=select, device=device)
    values = np.concatenate([np.empty((0, work.width), np.float32), *work.batches])
    return Features(names=work.names, values=values, facts=work.facts, refused=work.refused)


def write_features(
    out: str | Path,
    run: str | Path,
    source: Sources,
    *,
    pool: Pool = "mean",
    layer: int | None = None,
    select: str | None = None,
    device: str | None = None,
) -> Embedded:
    """Write the features of a store's records, or of raw files.

    Args:
        out: a .zarr group of arrays features (R, D) float32 and record_id, with what they were made
            with as attributes; a .parquet file with the same columns; or a .npy file, beside which
            OUT.records.csv names the records. Records of a store have their row too, those of files
            file and start_s. OUT.refused.csv lists files without any, where there are some.
        run: as for `embed`, like the rest.
        source: as for `embed`.
        pool: as for `embed`.
        layer: as for `embed`.
        select: as for `embed`.
        device: as for `embed`.
    Raises:
        ConfigError: as `embed`; or `out` has another suffix, or is there already.
        FormatError: as `embed`.
    """
    out = Path(out)
    refuse_inside_store(out, "--out")
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out must end with {', '.join(SUFFIXES)}, got {str(out)!r}")
    if out.exists():
        raise ConfigError(f"{out} is there already; move it away, or name another file")
    work = _prepared(run, source, pool=pool, layer=layer, select=select, device=device)
    with explained(out):
        if len(work.names):
            write(out, work.names, work.width, work.batches, work.facts)
        if work.refused:
            out.parent.mkdir(parents=True, exist_ok=True)
            lines = csv_lines([REFUSED_COLUMNS, *work.refused])
            write_durably(out.with_name(f"{out.name}.refused.csv"), [lines.encode()])
    return Embedded(len(work.names), work.width, work.num_files, work.num_refused)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What is to be written; all mistakes are found before the first batch."""

    names: pa.Table
    width: int
    batches: Iterable[Values]
    facts: dict[str, str]
    refused: list[tuple[str, str]] = field(default_factory=list)
    num_files: int = 0
    num_refused: int = 0


def _prepared(
    run: str | Path,
    source: Sources,
    *,
    pool: Pool,
    layer: int | None,
    select: str | None,
    device: str | None,
) -> _Work:
    paths = [Path(p) for p in ([source] if isinstance(source, str | Path) else source)]
    place, folder = choose_device(device), located(run)
    if len(paths) == 1 and _is_store(paths[0]):
        return _of_store(folder, paths[0], select, pool, layer, place)
    if select is not None:
        raise ConfigError(f"--select is for records of a store, got {select!r} for files; omit it")
    return _of_files(folder, paths, pool, layer, place)


def _is_store(path: Path) -> bool:
    """Whether a path names a store, finished or not, here or at an address."""
    folder, _ = split_generation(path)
    is_one = any((folder / name).exists() for name in (MANIFEST, SIGNALS))
    return is_one or address_of(folder) is not None


def _of_store(
    run: Path, path: Path, select: str | None, pool: Pool, layer: int | None, device: torch.device
) -> _Work:
    store = open_store(path)
    loaded = load_run(run, store, for_tests=False)
    rows = selected_rows(store, select)
    if not len(rows):
        raise ConfigError(f"select {select!r} has no record; widen it")
    model = loaded.model().to(device)
    read, width = _reader_of(model, pool, layer)
    normalisation = loaded.meta.preprocessing.normalisation
    patches = patches_of(store, rows, normalisation, what="embed", device=device, engine="auto")
    names = {"record_id": store.records["record_id"].take(pa.array(rows)), "row": rows}
    return _Work(
        names=pa.table(names),
        width=width,
        batches=_values(read, patches),
        facts={**_facts(loaded.meta, model, pool, layer), "store": store.identity},
    )


def _of_files(
    run: Path, paths: Sequence[Path], pool: Pool, layer: int | None, device: torch.device
) -> _Work:
    model = load_model(run)
    read, width = _reader_of(model.model, pool, layer)
    facts = _facts(model.meta, model.model, pool, layer)
    items, num_refused = discover(paths), 0
    names: list[tuple[str, str, float]] = []
    refused: list[tuple[str, str]] = []

    def patches() -> Iterator[NDArray[np.generic]]:
        nonlocal num_refused
        found = made_ahead(
            partial(_read, model), items, depth=_BATCH, num_threads=available_cores()
        )
        for file in log.track(found, "embed", total=len(items), unit="files"):
            refused.extend((file.path, why) for why in file.reasons)
            num_refused += not file.starts
            names.extend((file.record_id, file.path, start) for start in file.starts)
            if file.starts:
                yield file.patches

    model.to(device)
    batches = (torch.from_numpy(block).to(device).float() for block in blocks(patches(), _BATCH))
    values = [*_values(read, batches)]
    columns = zip(*names, strict=True) if names else ((), (), ())
    kinds = {"record_id": pa.string(), "file": pa.string(), "start_s": pa.float64()}
    arrays = [pa.array(c, kind) for c, kind in zip(columns, kinds.values(), strict=True)]
    return _Work(
        names=pa.table(arrays, names=[*kinds]),
        width=width,
        batches=values,
        facts=facts,
        refused=refused,
        num_files=len(items),
        num_refused=num_refused,
    )


class _File(NamedTuple):
    """What a file gives: patches of its windows, where they begin, and why others are refused."""

    record_id: str
    path: str
    starts: list[float]
    patches: NDArray[np.float16]  # (n, N, P)
    reasons: list[str]


def _read(model: EcgModel, item: InputFile) -> _File:
    """Read and prepare the windows of one file; one that cannot be used says why."""
    made = model.meta.preprocessing.store
    record_id, path = (
        text.encode("utf-8", "backslashreplace").decode()  # of names that are no UTF-8
        for text in (item.record_id, str(item.path))
    )
    nothing = np.empty((0, 0, 0), np.float16)
    try:
        leads = [LEADS.index(lead) for lead in model.leads]
        found = read_windows(item, window=made["window"], short=made["short"], leads=leads)
    except (FormatError, ShapeError) as error:
        check_source(item.source, again="run the same command again")
        return _File(record_id, path, [], nothing, [str(error)])
    windows = [each for each in found.windows if isinstance(each, Window)]
    reasons = [str(each) for each in found.windows if not isinstance(each, Window)]
    if not windows:
        return _File(record_id, path, [], nothing, reasons)
    starts = [window.start / SAMPLING_RATE_HZ for window in windows]
    try:
        patches_nNP = model.prepare(found.samples, windows).numpy()
    except MemoryError as error:
        return _File(record_id, path, [], nothing, [f"cannot be prepared: {error!r}"])
    return _File(record_id, path, starts, patches_nNP, reasons)


def _facts(meta: RunMeta, model: nn.Module, pool: Pool, layer: int | None) -> dict[str, str]:
    """What features are made with, as text."""
    encoder = model.encoder if isinstance(model, Classifier) else model
    return {
        "run": meta.name,
        "weights": weights_digest(encoder_state(encoder.state_dict())),
        "preprocessing": json.dumps(meta.preprocessing.as_facts(), sort_keys=True),
        "pool": pool,
        "layer": "last" if layer is None else str(layer),
    }


@torch.no_grad()
def _values(read: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Iterator[Values]:
    for patches_BNP in batches:
        yield read(patches_BNP).float().cpu().numpy()


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
