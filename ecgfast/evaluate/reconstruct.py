"""What a masked autoencoder fills in, back in millivolt.

Shapes: B records, N patches, P patch length, C leads, T timesteps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ecgfast_kernels.ops.mask import random_mask
from ecgfast_kernels.ops.reference import TARGET_EPS
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ecgfast import log
from ecgfast.config import Config
from ecgfast.data.loader import build_loader
from ecgfast.data.normalise import CohortStatistics, mean_and_rstd
from ecgfast.errors import ConfigError
from ecgfast.evaluate import ecg_paper
from ecgfast.evaluate.cohort import is_synthetic
from ecgfast.evaluate.runs import LoadedRun, load_run
from ecgfast.model.mae import EVALUATION_EPOCH, MaskedAutoencoder
from ecgfast.model.vit import unpatchify
from ecgfast.records import LEADS
from ecgfast.runs.seen import seen
from ecgfast.store.format import refuse_to_replace
from ecgfast.store.reader import StoreReader, open_store

NUM_SAMPLED = 64  # records whose error is measured


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """One record, as it was and as the model filled it in.

    Attributes:
        row: of the record in the store.
        original_mv: (C, T) float32, millivolt.
        filled_mv: (C, T) float32, millivolt, every patch as predicted.
        mask: (C, T) bool, True = removed.
        loss: mean squared error over the removed patches; 1.0 = each patch's mean, when targets
            are normalised.
    """

    row: int
    original_mv: NDArray[np.float32]
    filled_mv: NDArray[np.float32]
    mask: NDArray[np.bool_]
    loss: float


def reconstruct(
    run: Path, store: Path, *, record_id: str, out: Path, leads: Sequence[str] = LEADS
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
    refuse_to_replace(out, "--out", b"\x89PNG", "picture")
    reader = open_store(store)
    row = row_of(reader, record_id)
    loaded = load_run(run, reader)
    if not isinstance(loaded.model, MaskedAutoencoder):
        raise ConfigError(f"{run} must be a pretraining run, got a classifier: it has no decoder")
    result = fill_in(loaded.model, loaded.config, loaded.cohort, reader, np.array([row]))[0]
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


def draw(store: StoreReader, result: Reconstruction, leads: Sequence[str] = LEADS) -> Figure:
    """Draw a record as original, masked and reconstructed.

    The title names its pseudonym and loss and, where it is so, that the data are synthetic. Of a
    store that keeps readable ids it names the row instead.

    Args:
        store: of the record.
        result: what the model made of it.
        leads: names of the leads to draw.
    """
    is_readable = store.manifest["identifiers"] == "kept"
    record_id = str(store.records["record_id"][result.row].as_py())
    name = f"in row {result.row}" if is_readable else record_id[:16]
    mark = "SYNTHETIC   " if is_synthetic(store) else ""
    share = result.mask.mean()
    return ecg_paper.reconstruction(
        result.original_mv,
        result.filled_mv,
        result.mask,
        title=f"{mark}record {name}   {share:.0%} masked, error {result.loss:.2f}",
        leads=leads,
    )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a pretraining run fills in, over some records of a store.

    Attributes:
        num_records: whose error was measured.
        source: which records these are, in words.
        error: their mean `Reconstruction.loss`.
        middle: the record with the middle error, neither the best nor the worst.
    """

    num_records: int
    source: str
    error: float
    middle: Reconstruction


def sample_of(run: LoadedRun, store: StoreReader) -> Sample:
    """Reconstruct up to `NUM_SAMPLED` records, of patients new to the run where there are any."""
    assert isinstance(run.model, MaskedAutoencoder)
    pool, source = unread_records(run, store)
    step = max(1, len(pool) // NUM_SAMPLED)
    rows = pool[::step][:NUM_SAMPLED]
    with log.progress(f"reconstruct with {run.name}", total=len(rows)) as advance:
        results = fill_in(run.model, run.config, run.cohort, store, rows)
        advance(len(rows))
    return Sample(
        num_records=len(rows),
        source=source,
        error=float(np.mean([result.loss for result in results])),
        middle=sorted(results, key=lambda result: result.loss)[len(results) // 2],
    )


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


def fill_in(
    model: MaskedAutoencoder,
    config: Config,
    cohort: CohortStatistics | None,
    store: StoreReader,
    rows_B: NDArray[np.int64],
) -> list[Reconstruction]:
    """Mask and reconstruct records of a store.

    Args:
        model: in evaluation mode.
        config: of its run.
        cohort: statistics that the run was normalised with, where its mode needs any.
        store: an open store.
        rows_B: (B,) int64 rows.
    """
    store.check_digests(rows_B)
    mode = config.data.normalise
    loader = build_loader(
        store, batch_size=min(32, len(rows_B)), engine="cpu", select=rows_B, shuffle=False,
        drop_last=False, normalise=mode, cohort=cohort,
    )  # fmt: skip
    results = []
    for batch in loader:
        patches_BNP = batch.patches.float()
        ids_keep, ids_restore, mask_BN = random_mask(
            batch.record_index, seed=config.train.seed, epoch=EVALUATION_EPOCH,
            num_patches=model.num_patches, num_keep=model.num_keep(config.mask.ratio),
        )  # fmt: skip
        with torch.inference_mode():
            _, pred_BNP = model(patches_BNP, ids_keep, ids_restore, mask_BN)
        results += in_millivolt(
            store, batch.record_index, patches_BNP, pred_BNP, mask_BN,
            normalise=mode, cohort=cohort, norm_patch=model.norm_patch_loss,
        )  # fmt: skip
    return results


def in_millivolt(
    store: StoreReader,
    record_index_B: Tensor,
    patches_BNP: Tensor,
    pred_BNP: Tensor,
    mask_BN: Tensor,
    *,
    normalise: str,
    cohort: CohortStatistics | None,
    norm_patch: bool,
) -> list[Reconstruction]:
    """Bring what a model saw and predicted back to the units of its records.

    Where the model predicts normalised patches, each patch gets back its own mean and standard
    deviation, as in the figures of He et al. 2022: shape is what the model predicts.

    Args:
        store: of the records.
        record_index_B: (B,) int64 rows; this and the other tensors on any device.
        patches_BNP: (B, N, 256) any float, normalised as `normalise` says.
        pred_BNP: (B, N, 250) any float, the model's output.
        mask_BN: (B, N) bool, True = removed.
        normalise: mode that made the patches.
        cohort: its statistics, where the mode needs any.
        norm_patch: whether the model predicts normalised patches.
    """
    rows_B = record_index_B.cpu().numpy()
    pred_BNP, mask_BN = pred_BNP.float().cpu(), mask_BN.cpu()
    target_BNP = patches_BNP[..., : pred_BNP.shape[-1]].float().cpu()
    losses, filled_BNP = _denormalise(pred_BNP, target_BNP, mask_BN, norm_patch)
    filled_BCT = unpatchify(filled_BNP, num_leads=store.num_leads).numpy()
    mask_BCT = unpatchify(mask_BN[..., None].expand_as(target_BNP), num_leads=store.num_leads)
    adc_BCT = store.read(rows_B)
    mean_NC, rstd_NC = mean_and_rstd(store, normalise, cohort)
    results = []
    for n, row in enumerate(rows_B.tolist()):
        scale, offset = store.scale_uv[row][:, None], store.offset_adc[row][:, None]
        factor = rstd_NC[row][:, None]
        z = filled_BCT[n]
        adc = np.divide(z, factor, out=np.zeros_like(z), where=factor != 0)
        filled = (adc + mean_NC[row][:, None] - offset) * scale / 1000
        results.append(
            Reconstruction(
                row=row,
                original_mv=((adc_BCT[n] - offset) * scale / 1000).astype(np.float32),
                filled_mv=filled.astype(np.float32),
                mask=mask_BCT[n].numpy(),
                loss=float(losses[n]),
            )
        )
    return results


def _denormalise(
    pred_BNP: Tensor, target_BNP: Tensor, mask_BN: Tensor, norm_patch: bool
) -> tuple[Tensor, Tensor]:
    """Loss of each record (B,), and predictions in the units of the input."""
    mean, std = torch.zeros(1), torch.ones(1)
    if norm_patch:
        mean = target_BNP.mean(dim=-1, keepdim=True)
        std = (target_BNP.var(dim=-1, keepdim=True) + TARGET_EPS).sqrt()
    error_BN = (pred_BNP - (target_BNP - mean) / std).square().mean(dim=-1)
    num_removed = mask_BN.sum(dim=-1).clamp(min=1)
    return (error_BN * mask_BN).sum(dim=-1) / num_removed, pred_BNP * std + mean
