"""The `step` case: the trainer's own step in its variants, beside the peers; and `embed`."""

import gc
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ecgfast_kernels.codec import PATCH_WIDTH
from torch import Tensor

from ecgfast import log
from ecgfast.bench import (
    Call,
    Row,
    make_rows,
    measure_peaks,
    peers_module,
    per_second,
    time_interleaved,
)
from ecgfast.config import Config, load_config
from ecgfast.convert import convert
from ecgfast.data.batch import Batch
from ecgfast.embedding import write_features
from ecgfast.errors import ConfigError
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.model.mae import flops_per_record
from ecgfast.predictor import load_model
from ecgfast.train.distributed import Ranks, join
from ecgfast.train.guards import peak_tflops
from ecgfast.train.loop import train_step
from ecgfast.train.optim import MasterAdamW
from ecgfast.train.pretrain import build_spread, masked_loss, microbatch_graph, pretrain

Step = Callable[[], Tensor]  # one update; returns the loss, still on the device

LEARNING_RATE = 1e-4
_STEPS_PER_CALL = {"cuda": 4, "cpu": 1}  # in a row, so that launches overlap as in training
_GRAPH, _TRITON = "train.cuda_graph=true", "attention=triton"

# By the settings that differ from ours. `train.parallel` counts on a single rank too, else nothing
# is spread there.
VARIANTS = {
    "ecgfast": "",
    "ecgfast-graph": _GRAPH,
    "ecgfast-adamw-graph": f"{_GRAPH} optim.one_pass=true",
    "ecgfast-fused-graph": f"{_GRAPH} {_TRITON} fused=separate",
    "ecgfast-epilogue-graph": f"{_GRAPH} {_TRITON} fused=triton",
    "ecgfast-quack-graph": f"{_GRAPH} {_TRITON} fused=quack",
    "ecgfast-kernels-reference": "kernels=reference",
    "ecgfast-fsdp": "train.parallel=fsdp",
    "ecgfast-fsdp-graph": f"train.parallel=fsdp {_GRAPH}",
    "ecgfast-replicas-graph": f"train.parallel=replicas {_GRAPH}",
    "ecgfast-fused": f"{_TRITON} fused=separate",
    "ecgfast-fused-eager": f"{_TRITON} fused=separate train.compile=false",
    "ecgfast-eager": "train.compile=false",
    "ecgfast-sdpa-flash": "attention=sdpa_flash",
    "ecgfast-xformers": "attention=xformers",
    "ecgfast-sdpa-cudnn": "attention=sdpa_cudnn",
    "ecgfast-sdpa-efficient": "attention=sdpa_efficient",
    "ecgfast-triton-attention": _TRITON,
}
_DECIDING = [*VARIANTS][1:6]  # on a default, first what does so most, should time run out


@cache
def peer_steps() -> Mapping[str, Any]:
    """By name what builds the step of a peer, from a config, a device and a number of records."""
    module = peers_module("step_peers")
    steps: Mapping[str, Any] = {} if module is None else module.installed()
    return steps


def build_train(config: Config, ranks: Ranks) -> Callable[..., Tensor]:
    """Build model and optimizer as pretraining does.

    Args:
        config: of kind "vit".
        ranks: who trains.
    Returns:
        one update from a batch, which is one microbatch, and optionally `learning_rate=`; it
        returns the loss.
    """
    model, chosen = build_spread(config, ranks, None)
    kernels = chosen["attention_kernels"]
    if set(kernels.values()) - {config.attention} and config.attention != "auto":  # type: ignore[attr-defined]  # a dict
        raise RuntimeError(f"{config.attention} cannot run here")
    graph = microbatch_graph(model, config, num_pieces=1)
    recorded, clip_norm = config.train.cuda_graph, config.train.clip_norm
    optimizer = MasterAdamW(model, ranks, config.optim, clip_norm=clip_norm, recorded=recorded)
    loss_of = masked_loss(model, config)

    def train(batch: Batch, *, learning_rate: float = LEARNING_RATE) -> Tensor:
        sizes = {"microbatch": len(batch.record_index), "learning_rate": learning_rate}
        return train_step(model, optimizer, loss_of, batch, **sizes, graph=graph).loss  # type: ignore[arg-type]  # of both kinds

    return train


def random_batch(config: Config, device: torch.device, num_records: int) -> Batch:
    """Records like z-scores, (B, N, 256) fp16 whose padding is zero."""
    patches = torch.randn(num_records, config.model.num_patches, PATCH_WIDTH, device=device)
    patches[..., config.model.patch_timesteps :] = 0
    records = torch.arange(num_records, device=device)
    return Batch(patches=patches.half(), record_index=records, epoch=0)


def build_step(settings: str, preset: str, ranks: Ranks, *, microbatch: int) -> Step:
    """Build the trainer's step on random input.

    Args:
        settings: what differs from the preset, as after --set, with spaces between them.
        preset: of kind "vit".
        ranks: with a mesh also where there is one rank (`join(..., mesh_of_one=True)`).
        microbatch: records of a step, on each rank.
    """
    if ranks.world_size == 1 and "parallel" not in settings:
        ranks = replace(ranks, mesh=None, host_mesh=None)
    config = load_config(preset, settings.split())
    train = build_train(config, ranks)
    batch = random_batch(config, ranks.device, microbatch)
    epochs = itertools.count()  # fresh masks for every step, as in training
    return lambda: train(replace(batch, epoch=next(epochs)))


def measure_step(
    device: str,
    *,
    preset: str | None = None,
    microbatch: int | None = None,
    variants: Sequence[str] | None = None,
    repeats: int = 5,
) -> Iterator[Row]:
    """Measure the device's peaks, then forward, backward and AdamW on random patches.

    Args:
        device: "cpu" or "cuda".
        preset: of kind "vit"; by default vit_large on a GPU, demo on a CPU.
        microbatch: records of a step, on each rank; by default 256 on a GPU, 8 on a CPU.
        variants: beside "ecgfast", in this order; by default the eager reference on a CPU, none on
            several ranks, and on a GPU what decides something: what a graph brings, AdamW and the
            fused kernels, the peers, and what our kernels bring. Some 170 s on an H100, 60 of them
            for compiling the reference; all variants took more than 240.
        repeats: timed calls of several steps; each variant takes turns with ours.
    Yields:
        For each variant, as soon as measured, rows of time, throughput, (on a GPU) MFU,
        and its time per record relative to ours in the same turns.
    Raises:
        ConfigError: an unknown preset or variant.
    """
    default, records = ("vit_large", 256) if device == "cuda" else ("demo", 8)
    # Every variant compiles the same block code anew; the limit of 8 is for runaway guards.
    with join(device, mesh_of_one=True) as ranks, torch._dynamo.config.patch(recompile_limit=64):
        wanted = _resolve_names(variants, ranks)
        yield from measure_peaks(device)
        runner = _Runner(preset or default, ranks, microbatch or records, repeats)
        yield from runner.rows(runner.ours, *runner.take_turns(runner.ours))
        for name in wanted:  # one at a time: each holds weights, moments and activations
            for size in runner.sizes(name):
                yield from runner.compare(name, size)


def measure_embed(device: str, *, num_records: int = 2048, turns: int = 3) -> Iterator[Row]:
    """Measure `ecgfast embed` of a store in turns with the forward passes of its model alone.

    Args:
        device: "cpu" or "cuda", whose model is the preset demo or vit_large.
        num_records: synthetic ones, in whole batches.
        turns: of both.
    """
    preset, size = "vit_large" if device == "cuda" else "demo", 64
    config = load_config(preset, {"train.max_steps": 1, "train.batch_size": 8})
    with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder:
        store, run, numbers = Path(folder, "store"), Path(folder, "run"), itertools.count()
        write_cohort(Path(folder, "cohort"), num_records=num_records, num_sites=1, seed=0)
        convert([Path(folder, "cohort")], store)
        pretrain(store, run, preset=config, device=device)
        model = load_model(run).to(device)
        patches = random_batch(config, torch.device(device), size).patches

        def embed() -> None:
            write_features(Path(folder, f"{next(numbers)}.zarr"), run, store, device=device)

        @torch.no_grad()
        def forward() -> None:
            for _ in range(num_records // size):
                model(patches)[:, 1:].mean(dim=1).cpu()

        calls: dict[str, Call] = {"ecgfast": embed, "forward": forward}
        times = time_interleaved(calls, repeats=turns, warmup=1)  # of the clock, on a GPU as well
    shares = [alone / ours for ours, alone in zip(*times.values(), strict=True)]
    shape = f"{num_records} synthetic, batch {size}"
    for name, ms in times.items():
        found = {("throughput", "records/s"): per_second(ms, num_records)}
        found |= {("of_forward", "x"): shares} if name == "ecgfast" else {}
        texts = {"case": "embed", "provider": name, "preset": preset, "shape": shape}
        yield from make_rows(found, **texts, device=device)


def _resolve_names(names: Sequence[str] | None, ranks: Ranks) -> list[str]:
    peers = list(peer_steps()) if ranks.world_size == 1 else []
    if names is None and ranks.device.type == "cuda" and ranks.world_size == 1:
        return [*_DECIDING, *peers, "ecgfast-kernels-reference"]
    if names is None:
        return [name for name in peers if "eager" in name]
    allowed = [*list(VARIANTS)[1:], *peers]
    if unknown := sorted(set(names) - set(allowed)):
        raise ConfigError(
            f"unknown variant {unknown[0]!r} of the step on {ranks.world_size} ranks; allowed: "
            f"{', '.join(allowed)}"
        )
    return list(dict.fromkeys(names))


class _Built(NamedTuple):
    """A step that has run twice, and its records."""

    name: str
    step: Step
    microbatch: int


class _Runner:
    """Keeps our step alive while others take turns with it."""

    def __init__(self, preset: str, ranks: Ranks, microbatch: int, repeats: int) -> None:
        self._config, self._preset = load_config(preset), preset
        self._ranks, self._device, self._repeats = ranks, ranks.device.type, repeats
        self.ours = self._build("ecgfast", microbatch)

    def sizes(self, name: str) -> list[int]:
        """Our microbatch; for a peer with graphs also half and twice that: its best counts."""
        peer, ours = peer_steps().get(name), self.ours.microbatch
        has_best = peer is not None and peer.graph and self._device == "cuda"
        return [ours // 2, ours, 2 * ours] if has_best else [ours]

    def compare(self, name: str, microbatch: int) -> Iterator[Row]:
        """Time a variant in turns with ours; one that fails is logged and has no rows."""
        try:
            built = self._build(name, microbatch)
        except (RuntimeError, ConfigError) as error:  # no memory, no such kernel, no graph here
            reason = str(error).strip().partition("\n")[0]
            log.warning(f"{name} was not measured with {microbatch} records: {reason}")
            return
        ours, theirs = self.take_turns(self.ours, built)
        share = self.ours.microbatch / microbatch
        relative = [share * b / a for a, b in zip(ours, theirs, strict=True)]
        yield from self.rows(built, theirs, relative)

    def take_turns(self, *steps: _Built) -> list[list[float]]:
        """Milliseconds per step of each, several steps per call."""
        count = _STEPS_PER_CALL[self._device]

        def repeated(step: Step) -> Callable[[], list[Tensor]]:
            return lambda: [step() for _ in range(count)]

        calls = {built.name: repeated(built.step) for built in steps}
        times = time_interleaved(calls, device=self._device, repeats=self._repeats, warmup=1)
        return [[ms / count for ms in times[built.name]] for built in steps]

    def _build(self, name: str, microbatch: int) -> _Built:
        """Build a step and run it twice: compiled, allocated, and finite."""
        gc.collect()
        if self._device == "cuda":
            from torch._inductor.cudagraph_trees import reset_cudagraph_trees

            reset_cudagraph_trees()  # those of "reduce-overhead" outlive their model
            torch.cuda.empty_cache()
        if name in VARIANTS:
            step = build_step(VARIANTS[name], self._preset, self._ranks, microbatch=microbatch)
        else:
            step = peer_steps()[name].build(self._config, self._ranks.device, microbatch)
        step()
        loss = step().item()
        if not loss < float("inf"):
            raise RuntimeError(f"loss of {name} is {loss}")
        log.info(f"{name}: built, loss {loss:.4f}")
        return _Built(name, step, microbatch)

    def rows(
        self, built: _Built, times_ms: list[float], relative: list[float] | None = None
    ) -> Iterator[Row]:
        """Rows of a step's times, and of them relative to ours."""
        world_size = self._ranks.world_size
        rates = per_second(times_ms, built.microbatch * world_size)
        numbers = {("time", "ms"): times_ms, ("throughput", "records/s"): rates}
        if (peak := peak_tflops(self._ranks.device)) is not None:
            flops = flops_per_record(self._config.model, self._config.mask.ratio)
            at_peak = peak * 1e12 * world_size / flops
            numbers["mfu", "%"] = [100 * rate / at_peak for rate in rates]
        if relative is not None:
            numbers["relative_time", "x ecgfast"] = relative
        on_each = f" on each of {world_size} ranks" if world_size > 1 else ""
        shape = (
            f"{built.microbatch} records {'bf16' if self._device == 'cuda' else 'fp32'}{on_each}"
        )
        texts = {"preset": self._config.preset, "shape": shape, "device": self._device}
        return make_rows(numbers, case="step", provider=built.name, **texts)
