"""What pretraining runs fill in: the error of records that they never read, and pictures."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.evaluate.views import View
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.runs.ecg_paper import draw, draw_overlaid
from ecgfast.runs.inference import Reconstruction, fill_in
from ecgfast.runs.loading import LoadedRun
from ecgfast.runs.register import seen
from ecgfast.store.reader import StoreReader

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
