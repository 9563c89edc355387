"""What pretraining and fine-tuning resolve before the first step."""

import os
from pathlib import Path

import numpy as np
import torch
from ecgfast_kernels.ops.library import BackendError, resolve
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.config import Config
from ecgfast.data.loader import Loader, build_loader
from ecgfast.data.normalise import Normalisation
from ecgfast.errors import BackendUnavailableError, ConfigError
from ecgfast.model.attention_choice import Choice, Shape, choose_attention, probe
from ecgfast.runs.meta import RunMeta
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.train.distributed import Ranks
from ecgfast.vocabulary import AttentionKernel, Precision

# Kernels whose gradient is the same every time, in the order of their usual speed.
REPEATABLE: tuple[AttentionKernel, ...] = ("triton", "sdpa_flash", "math")


def open_matching_store(path: Path, config: Config) -> StoreReader:
    """Open a store whose records have the model's shape.

    Raises:
        ConfigError: they have another one.
    """
    store = open_store(path)
    model = config.model
    shape, expected = (store.num_leads, store.num_timesteps), (model.num_leads, model.num_timesteps)
    if shape != expected:
        raise ConfigError(
            f"records of {path} have leads x timesteps {shape}, the model takes {expected}; set "
            "model.num_leads and model.num_timesteps, or convert again"
        )
    return store


def make_repeatable(deterministic: bool) -> None:
    """Choose algorithms that give the same bits every time, before the GPU is used.

    Args:
        deterministic: the setting; nothing happens when it is off.
    """
    if not deterministic:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Inductor otherwise times several kernels per reduction, and another one may win next time.
    import torch._inductor.config as inductor

    if hasattr(inductor, "deterministic"):  # absent from older versions, which time fewer kernels
        inductor.deterministic = True
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # missing in the stubs


def rank_share(batch_size: int, ranks: Ranks, *, key: str = "train.batch_size") -> int:
    """Return the records of a global batch that each rank takes.

    Raises:
        ConfigError: the ranks cannot share it equally.
    """
    if batch_size % ranks.world_size:
        raise ConfigError(
            f"{key} must be a multiple of the {ranks.world_size} ranks, got {batch_size}; "
            "change it or the number of processes"
        )
    return batch_size // ranks.world_size


def resolve_precision(config: Config, ranks: Ranks) -> Precision:
    """Resolve `train.precision`: bf16 on a GPU, fp32 on a CPU.

    Raises:
        BackendUnavailableError: `kernels` names what this device cannot run.
    """
    try:
        resolve(config.kernels, ranks.device)
    except BackendError as error:
        raise BackendUnavailableError(str(error)) from error
    asked = config.train.precision
    if asked == "auto":
        return "bf16" if ranks.device.type == "cuda" else "fp32"
    return asked


def resolve_compile(config: Config, ranks: Ranks) -> bool:
    """Resolve `train.compile`: on where there is a GPU."""
    asked = config.train.compile
    return ranks.device.type == "cuda" if asked == "auto" else asked


def settle_attention(
    config: Config,
    shapes: dict[str, Shape],
    ranks: Ranks,
    before: RunMeta | None,
) -> dict[str, str]:
    """Resolve one attention kernel per part of the model, the same on all ranks.

    Args:
        config: what was asked for.
        shapes: parts of the model, "encoder" and "decoder".
        ranks: rank 0 probes and times, the others receive the answer.
        before: of a resumed run, which keeps its kernels unless others are asked for.
    Returns:
        parts to kernels.
    """
    if before is not None and config.attention == "auto":
        kept: dict[str, str] = before.identity["attention_kernels"]
        if set(kept) == set(shapes):  # else it is another kind of run, which is refused later
            return kept

    def choose() -> dict[str, str]:
        choices = {part: _choose(config, shape, ranks.device) for part, shape in shapes.items()}
        for part, choice in choices.items():
            log.info(f"attention of the {part}: {choice.backend} ({choice.reason})")
        return {part: choice.backend for part, choice in choices.items()}

    return ranks.ask_main(choose)


def _choose(config: Config, shape: Shape, device: torch.device) -> Choice:
    if not (config.train.deterministic and config.attention == "auto" and device.type == "cuda"):
        return choose_attention(config.attention, device, shape)
    works = next(backend for backend in REPEATABLE if probe(backend, device, shape) is None)
    return Choice(backend=works, reason="repeatable, as train.deterministic asks")


def open_loader(
    store: StoreReader,
    config: Config,
    ranks: Ranks,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    seed: int,
    normalisation: Normalisation,
    shuffle: bool = True,
    drop_last: bool = True,
) -> Loader:
    """Build a loader with the settings of `config.data`; `batch_size` is one rank's."""
    data = config.data
    return build_loader(
        store,
        batch_size=batch_size,
        seed=seed,
        engine=data.engine,
        device=ranks.device,
        select=rows,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle=shuffle,
        drop_last=drop_last,
        normalise=normalisation,
        num_threads=None if data.num_threads == "auto" else data.num_threads,
        resident_budget_gib=None
        if data.resident_budget_gib == "auto"
        else data.resident_budget_gib,
    )


def check_digests(store: StoreReader, rows: NDArray[np.int64], ranks: Ranks) -> None:
    """See to it, on rank 0, that the records of a run are those that the manifest names.

    Raises:
        CorruptStoreError: a shard is damaged, or was put in another's place.
    """
    ranks.ask_main(lambda: store.check_digests(rows))
