"""Models of runs on records: probabilities of a classifier, patches that an autoencoder fills in.

Shapes: R records, B records of a batch, N patches, P patch length, C leads, T timesteps.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ecgfast_kernels.ops.masking import random_mask
from ecgfast_kernels.ops.reference import TARGET_EPS
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgfast import log
from ecgfast.config import Config
from ecgfast.data.loader import build_loader
from ecgfast.data.normalise import LeadStatistics, Normalisation
from ecgfast.errors import BackendUnavailableError, ConfigError
from ecgfast.model.mae import EVALUATION_EPOCH, MaskedAutoencoder, num_kept
from ecgfast.model.vit import unpatchify
from ecgfast.store.reader import StoreReader
from ecgfast.vocabulary import EngineName

_BATCH = 64


def choose_device(device: str | None) -> torch.device:
    """Resolve a device by its name, and make it PyTorch's current one.

    Args:
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.
    Raises:
        ConfigError: no such device.
        BackendUnavailableError: a GPU was asked for and there is none.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdecimal() or name == kind):
        raise ConfigError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            "device 'cuda' was asked for and this PyTorch sees no GPU; use device 'cpu', or "
            "install a CUDA build of torch and check nvidia-smi"
        )
    index = int(number or os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"device cuda:{index} was asked for, there are {torch.cuda.device_count()}; start one "
            "process per GPU"
        )
    chosen = torch.device("cuda", index)
    torch.cuda.set_device(chosen)
    return chosen


def check_weights(model: nn.Module, run: Path) -> None:
    """Refuse a model that gives no numbers.

    Args:
        model: the loaded one.
        run: its folder, named in the error.
    Raises:
        ConfigError: a weight is NaN or infinite.
    """
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise ConfigError(
            f"{run} has weights that are not finite (NaN or infinite), allowed numbers; take "
            "another run, or train this one again"
        )


@torch.no_grad()
def logits(model: nn.Module, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Score batches of records; the model is left in evaluation mode.

    Args:
        model: a classifier.
        batches: (B, N, P) patches each, on the model's device.
    Yields:
        (B,) fp32 logits of each batch, or (B, K) of several outputs.
    """
    model.eval()
    for patches_BNP in batches:
        yield model(patches_BNP).float()


Meaning = Callable[[Tensor], Tensor]  # of logits, in their shape; `Task.predictions`


def predictions(
    model: nn.Module, batches: Iterable[Tensor], meaning: Meaning
) -> Iterator[NDArray[np.float64]]:
    """Score batches of records; see `logits`.

    Yields:
        float64 of each batch, what its logits mean.
    """
    for logits_B in logits(model, batches):
        yield meaning(logits_B).cpu().numpy()


def score_rows(
    model: nn.Module,
    store: StoreReader,
    rows: NDArray[np.int64],
    normalisation: Normalisation,
    *,
    meaning: Meaning,
    name: str,
    device: torch.device | None = None,
) -> NDArray[np.float64]:
    """Score records of a store.

    Args:
        model: a classifier of a finished run, in fp32.
        store: an open store.
        rows: (R,) int64 rows.
        normalisation: of the run.
        meaning: of its logits.
        name: of the run, for the progress bar.
        device: None takes a GPU where there is one.
    Returns:
        (R,) float64, or (R, K) of several outputs; (0,) without rows.
    """
    if not len(rows):
        return np.zeros(0)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = patches_of(store, rows, normalisation, what=f"score {name}", device=device)
    return np.concatenate([*predictions(model.to(device), batches, meaning)])


def patches_of(
    store: StoreReader,
    rows: NDArray[np.int64],
    normalisation: Normalisation,
    *,
    what: str,
    device: torch.device,
    engine: EngineName = "cpu",
) -> Iterator[Tensor]:
    """Read records of a store for a model in fp32, ahead of their use.

    Args:
        store: an open store, whose digests are checked first.
        rows: (R,) int64 rows, one at least.
        normalisation: of the run.
        what: is done with them, for the progress bar.
        device: where batches go.
        engine: as for `build_loader`.
    Yields:
        (B, N, P) fp32 patches, in the order of the rows.
    """
    store.check_digests(rows)
    loader = build_loader(
        store,
        batch_size=_BATCH,
        engine=engine,
        device=device,
        select=rows,
        drop_last=False,
        shuffle=False,
        normalise=normalisation,
    )
    with log.progress(what, total=len(rows)) as advance:
        for batch in loader:
            yield batch.patches.float()
            advance(len(batch.record_index))


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """One record, as it was and as the model filled it in.

    Attributes:
        row: of the record in the store.
        original_mv: (C, T) float32, millivolt.
        filled_mv: (C, T) float32, millivolt, every patch as predicted; leads that the model does
            not take are at their mean.
        mask: (C, T) bool, True = removed.
        loss: mean squared error over the removed patches; 1.0 = each patch's mean, when targets
            are normalised.
    """

    row: int
    original_mv: NDArray[np.float32]
    filled_mv: NDArray[np.float32]
    mask: NDArray[np.bool_]
    loss: float


def fill_in(
    model: MaskedAutoencoder,
    config: Config,
    normalisation: Normalisation,
    store: StoreReader,
    rows_B: NDArray[np.int64],
) -> list[Reconstruction]:
    """Mask and reconstruct records of a store.

    Args:
        model: in evaluation mode.
        config: of its run.
        normalisation: of its run.
        store: an open store.
        rows_B: (B,) int64 rows.
    """
    store.check_digests(rows_B)
    loader = build_loader(
        store, batch_size=min(32, len(rows_B)), engine="cpu", select=rows_B, shuffle=False,
        drop_last=False, normalise=normalisation,
    )  # fmt: skip
    results = []
    for batch in loader:
        patches_BNP = batch.patches.float()
        ids_keep, ids_restore, mask_BN = random_mask(
            batch.record_index, seed=config.train.seed, epoch=EVALUATION_EPOCH,
            num_patches=model.num_patches, num_keep=num_kept(model.num_patches, config.mask.ratio),
        )  # fmt: skip
        with torch.inference_mode():
            _, pred_BNP = model(patches_BNP, ids_keep, ids_restore, mask_BN)
        results += in_millivolt(
            store, batch.record_index, patches_BNP, pred_BNP, mask_BN,
            normalisation=normalisation, norm_patch=model.norm_patch_loss,
        )  # fmt: skip
    return results


def in_millivolt(
    store: StoreReader,
    record_index_B: Tensor,
    patches_BNP: Tensor,
    pred_BNP: Tensor,
    mask_BN: Tensor,
    *,
    normalisation: Normalisation,
    norm_patch: bool,
) -> list[Reconstruction]:
    """Bring what a model saw and predicted back to the units of its records.

    Where the model predicts normalised patches, each patch gets back its own mean and standard
    deviation, as in the figures of He et al. 2022: shape is what the model predicts.

    Args:
        store: of the records.
        record_index_B: (B,) int64 rows; this and the other tensors on any device.
        patches_BNP: (B, N, 256) any float, normalised.
        pred_BNP: (B, N, 250) any float, the model's output.
        mask_BN: (B, N) bool, True = removed.
        normalisation: that made the patches.
        norm_patch: whether the model predicts normalised patches.
    """
    rows_B = record_index_B.cpu().numpy()
    pred_BNP, mask_BN = pred_BNP.float().cpu(), mask_BN.cpu()
    target_BNP = patches_BNP[..., : pred_BNP.shape[-1]].float().cpu()
    losses, filled_BNP = _denormalise(pred_BNP, target_BNP, mask_BN, norm_patch)
    filled_BCT, mask_BCT = (
        _on_all_leads(each, normalisation, store.num_leads)
        for each in (filled_BNP, mask_BN[..., None].expand_as(target_BNP))
    )
    leads = LeadStatistics.of(store, rows_B)
    mean_BC, rstd_BC = normalisation.mean_and_rstd(leads)
    original_BCT, losses_B = millivolt(store, rows_B), losses.tolist()
    results = []
    for n, row in enumerate(rows_B.tolist()):
        scale, offset = leads.scale_uv[n][:, None], leads.offset_adc[n][:, None]
        factor = rstd_BC[n][:, None]
        z = filled_BCT[n].numpy()
        adc = np.divide(z, factor, out=np.zeros_like(z), where=factor != 0)
        filled = (adc + mean_BC[n][:, None] - offset) * scale / 1000
        results.append(
            Reconstruction(
                row=row,
                original_mv=original_BCT[n],
                filled_mv=filled.astype(np.float32),
                mask=mask_BCT[n].numpy(),
                loss=losses_B[n],
            )
        )
    return results


def _on_all_leads(patches_BNP: Tensor, normalisation: Normalisation, num_leads: int) -> Tensor:
    """(B, 12, T) signals of the leads that a model took, 0 in the others."""
    taken = normalisation.lead_numbers if normalisation.leads else range(num_leads)
    signal_BCT = unpatchify(patches_BNP, num_leads=len(taken))
    whole_BCT = signal_BCT.new_zeros(len(signal_BCT), num_leads, signal_BCT.shape[-1])
    whole_BCT[:, list(taken)] = signal_BCT
    return whole_BCT


def millivolt(store: StoreReader, rows_B: NDArray[np.int64]) -> NDArray[np.float32]:
    """(B, C, T) float32 millivolt of some rows of a store."""
    scale_BC, offset_BC = store.scale_uv[rows_B], store.offset_adc[rows_B]
    signal_BCT = (store.read(rows_B) - offset_BC[..., None]) * scale_BC[..., None] / 1000
    return signal_BCT.astype(np.float32)


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
