"""A run's folder: started once, resumed only by the same experiment, with resolved settings."""

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from ecgfast_kernels.ops.library import BackendError, resolve

from ecgfast import log
from ecgfast.config import Config, config_to_toml
from ecgfast.errors import BackendUnavailableError, ResumeError
from ecgfast.log import read_metrics
from ecgfast.model.attention_choice import Choice, Shape, choose_attention, probe
from ecgfast.runs.checkpoint_reader import Checkpoint, checkpoint_steps, newest
from ecgfast.runs.inference import choose_device
from ecgfast.runs.meta import RunMeta, contradictions
from ecgfast.store.durable import RESUME, exclusive, explained, write_durably
from ecgfast.store.reader import StoreReader
from ecgfast.train.checkpoint import remove
from ecgfast.train.dataset import open_matching_store
from ecgfast.train.distributed import Ranks, join, repeatable
from ecgfast.train.guards import StopSignals
from ecgfast.vocabulary import AttentionKernel, Precision

_OF_THE_STORE = ("records (", "labels (")  # what labels and splits alone decide
GPU_PRESET, CPU_PRESET = "vit_large", "demo"  # of runs that name none
LOCK = ".lock"  # held by rank 0 while a run is trained
# Kernels whose gradient is the same every time, in the order of their usual speed.
REPEATABLE: tuple[AttentionKernel, ...] = ("triton", "sdpa_flash", "math")
_PACKAGES = (
    "ecgfast",
    "torch",
    "triton",
    "numpy",
    "xformers",
    "nvidia-dali-cuda130",
    "safetensors",
)


def default_preset(device: str | None) -> str:
    """The preset of a run that names none: on a CPU a small one, and a line that says so."""
    if choose_device(device).type == "cuda":
        return GPU_PRESET
    log.info(
        f"no GPU here and no preset given: {CPU_PRESET}, not {GPU_PRESET}; --preset names another, "
        "ecgfast plan STORE says what this machine can do"
    )
    return CPU_PRESET


def warn_of_a_cpu(preset: str, device: str | None) -> None:
    """Say so where nobody asked for a large model and there is no GPU to train it on."""
    if preset == GPU_PRESET and choose_device(device).type != "cuda":
        log.warning(
            f"no GPU here, where {GPU_PRESET} takes weeks; --preset names a smaller one, ecgfast "
            "plan STORE says what this machine can do"
        )


@dataclass(frozen=True, kw_only=True)
class Session:
    """One process's part in a run, from its lock to its last file.

    Attributes:
        config: resolved settings.
        store: records of the model's shape.
        run: the folder.
        ranks: who shares the run.
        stop: signals that ask for its end.
        checkpoint: to resume from; None for a new run.
    """

    config: Config
    store: StoreReader
    run: Path
    ranks: Ranks
    stop: StopSignals
    checkpoint: Checkpoint | None

    @property
    def before(self) -> RunMeta | None:
        """What the run said about itself in its checkpoint."""
        return None if self.checkpoint is None else self.checkpoint.meta


@contextmanager
def session(
    config: Config,
    store: str | Path | Sequence[str | Path],
    run: Path,
    *,
    resume: bool,
    device: str | None,
    distinct_patients: bool = False,
) -> Iterator[Session]:
    """Join the ranks, open the store and hold the run's folder; end by the signal that came.

    Args:
        config: resolved settings.
        store: of a shape that fits them, or several that are read as one.
        run: as for `enter`, whose errors this raises too.
        resume: as for `enter`.
        device: as for `join`.
        distinct_patients: stores of different keys have no patient in common.
    """
    with (
        repeatable(config.train.deterministic),
        torch.random.fork_rng(devices=[]),  # which layers draw from before `initialise`
        join(device, mesh=config.train.mesh) as ranks,
        StopSignals(ranks) as stop,
    ):
        opened = open_matching_store(store, config, ranks, distinct_patients=distinct_patients)
        with enter(run, ranks, resume=resume) as checkpoint:
            if checkpoint is not None:
                opened = as_of(opened, checkpoint)
            yield Session(
                config=config, store=opened, run=run, ranks=ranks, stop=stop, checkpoint=checkpoint
            )
    stop.pass_on()


def as_of(store: StoreReader, checkpoint: Checkpoint) -> StoreReader:
    """The store as it was when a run began: what was appended since is not in it.

    Raises:
        ResumeError: records of then were erased or replaced.
    """
    found = store.at(checkpoint.facts["identity"]["store"])
    if found.identity != checkpoint.facts["identity"]["store"] and store.generation > 1:
        raise ResumeError(
            f"checkpoint {checkpoint.path} is of no generation of {store.path} that is left: it "
            "was trained on records that were erased or replaced since, or on another store; "
            "train a new run"
        )
    if found.generation != store.generation:
        log.info(
            f"{store.path}: resuming on generation {found.generation}, {len(found):,} records; "
            f"{len(store) - len(found):,} that were appended since are left out"
        )
    return found


def asked_to_resume(resume: bool) -> bool:
    """Whether to resume: asked for, or restarted by torchrun or SLURM."""
    restarts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return resume or any(int(os.environ.get(name, "0")) > 0 for name in restarts)


@contextmanager
def enter(run: Path, ranks: Ranks, *, resume: bool) -> Iterator[Checkpoint | None]:
    """Keep other processes out of a run's folder; yield its checkpoint, None for a new run.

    Args:
        run: created where it does not exist.
        ranks: all of them call this; rank 0 looks, and says what is wrong.
        resume: resume what the folder holds; an empty one starts a new run.
    Raises:
        EcgfastError: another process trains in it, or it cannot be written.
        ResumeError: the folder holds something and `resume` is off, or it is no run's folder.
    """
    with ExitStack() as held:

        def look() -> Checkpoint | None:
            held.enter_context(exclusive(run / LOCK, run))
            return _found(run, resume=asked_to_resume(resume))

        yield ranks.ask_main(look)


def _found(run: Path, *, resume: bool) -> Checkpoint | None:
    entries = {p.name for p in run.iterdir()} - {LOCK}
    found = newest(run)
    if "config.toml" in entries and found is None and not read_metrics(run):
        return None  # a run that failed before its first step left nothing to lose
    if entries and not resume:
        raise ResumeError(
            f"{run} is not empty; add --resume to resume that run, or name another folder"
        )
    if entries and "config.toml" not in entries:
        raise ResumeError(
            f"{run} is not the folder of a run: it has no config.toml; name another folder"
        )
    if found is not None:
        _set_aside(run, found)
    if entries and found is None:
        log.info(f"{run} has no checkpoint yet: starting afresh")
    return found


def _set_aside(run: Path, taken: Checkpoint) -> None:
    """Rename later checkpoints, which are damaged: none may be counted, or come in the way."""
    for step in checkpoint_steps(run):
        if step > taken.step:
            path = run / "checkpoints" / f"step-{step:08d}"
            aside = path.with_name(f"damaged-{path.name}")
            with explained(path):
                remove(aside)
                path.rename(aside)
            log.warning(f"{path} is now {aside.name}; delete it when nothing of it is needed")


def require_same(now: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Refuse to resume another experiment.

    Raises:
        ResumeError: names every setting that differs, with both values.
    """
    facts = checkpoint.facts
    differing = contradictions(now, facts["identity"], kind=facts["kind"])
    if not differing:
        return
    cure = "use the settings of the run's config.toml, or another --out folder"
    if all(text.startswith(_OF_THE_STORE) for text in differing):
        cure = (
            "labels or splits of the store have changed since: join the earlier table again "
            "(ecgfast label, ecgfast splits --import), or name another --out folder"
        )
    raise ResumeError(
        f"checkpoint {checkpoint.path} belongs to another run: {'; '.join(differing)}; {cure}"
    )


def resolve_precision(config: Config, ranks: Ranks) -> Precision:
    """Resolve `train.precision`: bf16 on a GPU, fp32 on a CPU; `kernels` must run there.

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


def resolve_attention(
    config: Config,
    shapes: dict[str, Shape],
    ranks: Ranks,
    before: RunMeta | None,
) -> dict[str, AttentionKernel]:
    """Resolve one attention kernel per part of the model, the same on all ranks.

    Args:
        config: what was asked for.
        shapes: parts of the model, "encoder" and "decoder".
        ranks: rank 0 probes and times for all of them.
        before: of a resumed run, which keeps its kernels; others that are asked for are refused
            later, by `require_same`.
    Returns:
        parts to kernels.
    """
    if before is not None and config.attention == "auto":
        kept: dict[str, AttentionKernel] = before.identity["attention_kernels"]
        if set(kept) == set(shapes):  # else it is another kind of run, which is refused later
            return kept

    def choose() -> dict[str, AttentionKernel]:
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


def open_metrics(
    run: Path, ranks: Ranks, *, resume_step: int
) -> AbstractContextManager[log.MetricsWriter | None]:
    """Open a run's metrics.jsonl on the main rank; see `log.MetricsWriter`."""
    return log.MetricsWriter(run, resume_step=resume_step) if ranks.is_main else nullcontext()


def write_settings(run: Path, config: Config, facts: Mapping[str, Any]) -> None:
    """Write ``config.toml`` and ``versions.json``.

    Args:
        run: exists.
        config: resolved.
        facts: what was chosen at the start, such as the attention kernels.
    """
    write_durably(run / "config.toml", [config_to_toml(config).encode()], again=RESUME)
    versions = {name: found for name in _PACKAGES if (found := _version(name))}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    content = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "cuda": torch.version.cuda,
        "gpu": gpu,
        **facts,
    }
    text = json.dumps(content, indent=1) + "\n"
    write_durably(run / "versions.json", [text.encode()], again=RESUME)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
