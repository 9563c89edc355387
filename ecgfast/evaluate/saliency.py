"""What a classifier's answer rests on: how it changes where half a second of a lead is flattened.

The same for every network, and without gradients (occlusion, Zeiler and Fergus 2014, section 4.3).
Shapes: R records, C leads, N patches, P padded patch length, K occluded patches, T timesteps.
"""

from collections.abc import Sequence

import numpy as np
import torch
from ecgfast_kernels.codec import COLUMN_TIMESTEPS
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgfast import log
from ecgfast.data.loader import build_loader
from ecgfast.evaluate.results import Results
from ecgfast.evaluate.views import View
from ecgfast.records import NUM_LEADS, NUM_TIMESTEPS
from ecgfast.runs.ecg_paper import name_of, printed, printed_spans
from ecgfast.runs.inference import choose_device, logits, millivolt
from ecgfast.runs.loading import LoadedRun
from ecgfast.store.reader import StoreReader

MOST_RUNS = 4  # of a report; a curve of label efficiency has dozens
_BATCH = 8  # occluded copies of a record: as fast as more on a CPU, or faster
_OF_OTHERS = 2  # kinds of answers that are drawn of runs behind the first
_COLUMNS = NUM_TIMESTEPS // COLUMN_TIMESTEPS

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


def saliencies(runs: Sequence[LoadedRun], results: Results, store: StoreReader) -> list[View]:
    """Draw what the answers of the first classifiers rest on.

    Args:
        runs: of a report.
        results: of the classifiers among them.
        store: that they were tested on.
    """
    first = [run for run in runs if run.name in results.names][:MOST_RUNS]
    views = [saliency(run, results, store) for run in first]
    return [view for view in views if view]


def saliency(run: LoadedRun, results: Results, store: StoreReader) -> View | None:
    """Draw tested records with what the run's answer rests on: four of the first run, else two.

    Args:
        run: a classifier.
        results: of a report that has the run.
        store: that it was tested on.
    Returns:
        None where nothing tests the run.
    """
    tested = {
        name: rows[run.name] for name, rows in results.plan.cohorts.items() if run.name in rows
    }
    cohort = next(
        (name for name in (results.plan.main_cohort, *tested) if len(tested.get(name, ()))), None
    )
    if cohort is None:
        return None
    threshold = results.fixed[run.name].youden
    rows, probability = tested[cohort], results.scores[run.name]
    chosen = middle_records(rows, results.plan.is_case[rows], probability[rows], threshold)
    if run.name != results.names[0]:
        chosen = dict(list(chosen.items())[:_OF_OTHERS])
    if not chosen:
        return None
    weights = _weights(run, store, np.array(list(chosen.values())))
    largest = max(float(np.abs(weight_CT).max()) for weight_CT in weights)
    figures = []
    for (kind, row), weight_CT in zip(chosen.items(), weights, strict=True):
        title = f"{name_of(store, row)}   {kind}, probability {probability[row]:.2f}"
        (signal_mv_CT,) = millivolt(store, np.array([row]))
        weight_CT = weight_CT / largest if largest else weight_CT
        figure = printed(signal_mv_CT, title=title, weight_CT=weight_CT)
        figures.append({"kind": kind, "figure": figure})
    return {
        "name": run.name,
        "cohort": cohort,
        "threshold": threshold,
        "largest": largest,
        "figures": figures,
    }


def middle_records(
    rows: Rows, is_case: NDArray[np.bool_], probability: Floats, threshold: float | None
) -> dict[str, int]:
    """Of each kind of answer the record with the middle probability: neither clear nor close.

    Args:
        rows: (n,) rows of a store.
        is_case: (n,) bool.
        probability: (n,) float64.
        threshold: at and above which an ECG counts as a case; None: cases and controls alone.
    Returns:
        Kind -> row; kinds without a record are left out. Among equal probabilities the first row
        comes first.
    """
    kinds = {"case": is_case, "control": ~is_case}
    if threshold is not None:
        above = probability >= threshold
        kinds = {
            "case above the threshold": is_case & above,
            "control above the threshold": ~is_case & above,
            "case below the threshold": is_case & ~above,
            "control below the threshold": ~is_case & ~above,
        }
    chosen = {}
    for kind, flags in kinds.items():
        of_kind = rows[flags][np.lexsort((rows[flags], probability[flags]))]
        if len(of_kind):
            chosen[kind] = int(of_kind[len(of_kind) // 2])
    return chosen


def _weights(run: LoadedRun, store: StoreReader, rows_R: Rows) -> list[Floats]:
    """(C, T) changes of the log odds of each record, 0 where nothing is drawn."""
    device = run.device or choose_device(None)
    loader = build_loader(
        store, batch_size=1, engine="cpu", device=device, select=rows_R, shuffle=False,
        drop_last=False, normalise=run.meta.preprocessing.normalisation,
    )  # fmt: skip
    model, weights = run.model().to(device), []
    taken = run.meta.preprocessing.normalisation.lead_numbers
    drawn = [number for number in drawn_patches() if number // _COLUMNS in taken]
    places = [taken.index(n // _COLUMNS) * _COLUMNS + n % _COLUMNS for n in drawn]
    with log.progress(f"occlude for {run.name}", total=len(rows_R)) as advance:
        for batch in loader:
            weight_N = np.zeros(NUM_LEADS * _COLUMNS)
            weight_N[drawn] = occlusion(model, batch.patches[0].float(), places)
            by_patch_CW = weight_N.reshape(NUM_LEADS, _COLUMNS)
            weights.append(np.repeat(by_patch_CW, COLUMN_TIMESTEPS, axis=1))
            advance(1)
    return weights


def drawn_patches() -> list[int]:
    """Numbers of the patches that a printed ECG shows, ascending."""
    return sorted(
        {
            lead * _COLUMNS + column
            for spans in printed_spans(NUM_TIMESTEPS)
            for lead, part in spans
            for column in range(part.start // COLUMN_TIMESTEPS, part.stop // COLUMN_TIMESTEPS)
        }
    )


def occlusion(model: nn.Module, patches_NP: Tensor, places: Sequence[int]) -> Floats:
    """How much the log odds of a record fall where one patch is flattened.

    A flattened patch is the straight line from its first to its last value: no step arises that a
    network could take for a QRS complex.

    Args:
        model: a classifier.
        patches_NP: (N, 256) float32, normalised, on the model's device.
        places: numbers of the K patches, flattened one at a time.
    Returns:
        (K,) float64; positive where the patch speaks for a case.
    """
    first, last = patches_NP[:, :1], patches_NP[:, COLUMN_TIMESTEPS - 1 : COLUMN_TIMESTEPS]
    share = torch.linspace(0, 1, COLUMN_TIMESTEPS, device=patches_NP.device)
    lines_NP = patches_NP.clone()
    lines_NP[:, :COLUMN_TIMESTEPS] = first + (last - first) * share
    copies_KNP = patches_NP.repeat(len(places), 1, 1)
    number_K = torch.arange(len(places))
    copies_KNP[number_K, list(places)] = lines_NP[list(places)]
    batches = [patches_NP[None], *copies_KNP.split(_BATCH)]
    whole, *occluded = (part.double().cpu().numpy() for part in logits(model, batches))
    return np.concatenate([whole[0] - part for part in occluded])
