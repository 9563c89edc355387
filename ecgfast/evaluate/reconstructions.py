"""What pretraining runs fill in: the error of records that they never read, and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.evaluate.views import View
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.records import LEADS
from ecgfast.runs.ecg_paper import draw, draw_overlaid
from ecgfast.runs.inference import Reconstruction, fill_in
from ecgfast.runs.loading import LoadedRun, load_run
from ecgfast.runs.located import located
from ecgfast.runs.register import seen
from ecgfast.store.format import refuse_inside_store, refuse_to_replace
from ecgfast.store.reader import StoreReader, open_store

NUM_SAMPLED = 64  # records whose error is measured
_SHARES = {  # of the sampled records that have a smaller error than the one that is drawn
    "best decile": 0.1,
    "median": 0.5,
    "worst decile": 0.9,
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a pretraining run fills in, over some records of a store.

    Attributes:
        source: which records these are, in words.
        results: of each, by ascending error.
    """

    source: str
    results: list[Reconstruction]

    @property
    def error(self) -> float:
        """Mean `Reconstruction.loss`."""
        return float(np.mean([result.loss for result in self.results]))

    def at(self, share: float) -> Reconstruction:
        """The record than which a share of the others has a smaller error."""
        return self.results[round(share * (len(self.results) - 1))]


def reconstruction(run: LoadedRun, store: StoreReader) -> View:
    """What a pretraining run fills in: the mean error of some records, and pictures of three."""
    sample = sample_of(run, store)
    middle = sample.at(0.5)
    return {
        "name": run.name,
        "num_records": len(sample.results),
        "source": sample.source,
        "error": sample.error,
        "overlaid": [
            {
                "kind": kind,
                "error": sample.at(share).loss,
                "figure": draw_overlaid(store, sample.at(share)),
            }
            for kind, share in _SHARES.items()
        ],
        "two_leads": draw(store, middle, ("II", "V5")),
        "all_leads": draw(store, middle),
    }


def sample_of(run: LoadedRun, store: StoreReader) -> Sample:
    """Reconstruct up to `NUM_SAMPLED` records, of patients new to the run where there are any."""
    model = run.model()
    assert isinstance(model, MaskedAutoencoder)
    pool, source = unread_records(run, store)
    step = max(1, len(pool) // NUM_SAMPLED)
    rows = pool[::step][:NUM_SAMPLED]
    normalisation = run.meta.preprocessing.normalisation
    with log.progress(f"reconstruct with {run.name}", total=len(rows)) as advance:
        results = fill_in(model, run.config, normalisation, store, rows)
        advance(len(rows))
    return Sample(source=source, results=sorted(results, key=lambda result: result.loss))


def unread_records(run: LoadedRun, store: StoreReader) -> tuple[NDArray[np.int64], str]:
    """Rows whose patients pretraining has not read, where there are any, and what they are."""
    everything = np.arange(len(store))
    if run.register is None:
        return everything, "of which nobody knows whether pretraining read them"
    known = seen(run.register, store)
    never = (
        "of patients whom pretraining never read"
        if known.by_patient
        else "of a store under another key or kind of patient ids, none of them an ECG that it read"
    )
    for rows, words in (
        (np.flatnonzero(~known.read & ~known.heldout), never),
        (np.flatnonzero(known.heldout & ~known.read), "that were held out of pretraining"),
    ):
        if len(rows):
            return rows, words
    return everything, "all of patients whom pretraining read"


def reconstruct(
    run: str | Path,
    store: str | Path,
    *,
    record_id: str,
    out: str | Path,
    leads: Sequence[str] = LEADS,
) -> Path:
    """Draw one record as original, masked and reconstructed.

    Args:
        run: folder of a pretraining run.
        store: path of a store.
        record_id: as records.parquet has it, or the beginning of one alone, as pictures show it.
        out: PNG to write.
        leads: names of the leads to draw.
    Returns:
        `out`.
    Raises:
        ConfigError: no such record, several of them, a run without a decoder, or `out` is a file
            that is no picture.
    """
    out = Path(out)
    refuse_inside_store(out, "--out")
    refuse_to_replace(out, "--out", b"\x89PNG", "picture")
    reader = open_store(store)
    row = row_of(reader, record_id)
    loaded = load_run(located(run), reader)
    model = loaded.model()
    if not isinstance(model, MaskedAutoencoder):
        raise ConfigError(f"{run} must be a pretraining run, got a classifier: it has no decoder")
    normalisation = loaded.meta.preprocessing.normalisation
    (result,) = fill_in(model, loaded.config, normalisation, reader, np.array([row]))
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(reader, result, leads).savefig(out, format="png")
    return out


def row_of(store: StoreReader, record_id: str) -> int:
    """Return the row of a record by its id, or by a beginning that no other id has.

    Raises:
        ConfigError: no such record, or several.
    """
    names: list[str] = store.records["record_id"].to_pylist()
    if record_id in names:
        return names.index(record_id)
    rows = [row for row, name in enumerate(names) if name.startswith(record_id)]
    if not rows:
        raise ConfigError(
            f"no record {record_id!r} in {store.path}; allowed: the record_id column of "
            "records.parquet"
        )
    if len(rows) > 1:
        raise ConfigError(
            f"{len(rows)} records of {store.path} begin with {record_id!r}, such as "
            f"{names[rows[0]]} and {names[rows[1]]}; give more of one"
        )
    return rows[0]
