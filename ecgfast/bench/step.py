"""The `step` case: the trainer's own step in its variants, beside the peers, in one process."""

import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from ecgfast_kernels.codec import PATCH_WIDTH
from torch import Tensor

from ecgfast import log
from ecgfast.bench import peers_module
from ecgfast.bench.rows import Row, make_row
from ecgfast.bench.timing import per_second, time_interleaved
from ecgfast.config import Config
from ecgfast.data.batch import Batch
from ecgfast.errors import ConfigError
from ecgfast.model.mae import flops_per_record
from ecgfast.train.distributed import Ranks, join
from ecgfast.train.loop import train_step
from ecgfast.train.metrics import peak_tflops
from ecgfast.train.optim import MasterAdamW
from ecgfast.train.pretrain import build_spread, masked_loss, microbatch_graph

Step = Callable[[], Tensor]  # one update; returns the loss, still on the device
Settings = Mapping[str, Any]  # of a config, those of a section as a dict

LEARNING_RATE = 1e-4
_STEPS_PER_CALL = {"cuda": 4, "cpu": 1}  # in a row, so that launches overlap as in training
_GRAPH, _FUSED = {"train": {"cuda_graph": True}}, {"attention": "triton", "fused": "separate"}

# By the settings that differ from ours. `train.parallel` counts on a single rank too, else nothing
# is spread there. In this order: first what decides on a default, should time run out.
BEFORE_PEERS: dict[str, Settings] = {
    "ecgfast-graph": _GRAPH,
    "ecgfast-adamw-graph": {**_GRAPH, "optim": {"one_pass": True}},
    "ecgfast-fused-graph": {**_GRAPH, **_FUSED},
    "ecgfast-epilogue-graph": {**_GRAPH, "attention": "triton", "fused": "triton"},
    "ecgfast-quack-graph": {**_GRAPH, "attention": "triton", "fused": "quack"},
}
AFTER_PEERS: dict[str, Settings] = {
    "ecgfast-kernels-reference": {"kernels": "reference"},
    "ecgfast-fsdp": {"train": {"parallel": "fsdp"}},
    "ecgfast-fsdp-graph": {"train": {"parallel": "fsdp", "cuda_graph": True}},
    "ecgfast-replicas-graph": {"train": {"parallel": "replicas", "cuda_graph": True}},
    "ecgfast-fused": _FUSED,
    "ecgfast-fused-eager": {**_FUSED, "train": {"compile": False}},
    "ecgfast-eager": {"train": {"compile": False}},
    "ecgfast-sdpa-flash": {"attention": "sdpa_flash"},
    "ecgfast-xformers": {"attention": "xformers"},
    "ecgfast-sdpa-cudnn": {"attention": "sdpa_cudnn"},
    "ecgfast-sdpa-efficient": {"attention": "sdpa_efficient"},
    "ecgfast-triton-attention": {"attention": "triton"},
}
VARIANTS = {"ecgfast": {}, **BEFORE_PEERS, **AFTER_PEERS}


def peer_steps() -> Mapping[str, Any]:
    """By name what builds the step of a peer, from a config, a device and a number of records."""
    module = peers_module("step_peers")
    steps: Mapping[str, Any] = {} if module is None else module.PEERS
    return steps


def variant_names() -> list[str]:
    """Names that `measure_step` takes besides "ecgfast", which is always measured."""
    return [*BEFORE_PEERS, *peer_steps(), *AFTER_PEERS]


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
        return train_step(
            model,
            optimizer,
            loss_of,
            batch,
            microbatch=len(batch.record_index),
            learning_rate=learning_rate,
            graph=graph,
        ).loss

    return train


def random_batch(config: Config, device: torch.device, num_records: int) -> Batch:
    """Records like z-scores, (B, N, 256) fp16 whose padding is zero."""
    patches = torch.randn(num_records, config.model.num_patches, PATCH_WIDTH, device=device)
    patches[..., config.model.patch_timesteps :] = 0
    records = torch.arange(num_records, device=device)
    return Batch(patches=patches.half(), record_index=records, epoch=0)


def build_step(settings: Settings, config: Config, ranks: Ranks, *, microbatch: int) -> Step:
    """Build the trainer's step on random input, with some settings changed.

    Args:
        settings: what differs from the config.
        config: of kind "vit".
        ranks: with a mesh also where there is one rank (`join(..., mesh_of_one=True)`).
        microbatch: records of a step, on each rank.
    """
    if ranks.world_size == 1 and "parallel" not in settings.get("train", {}):
        ranks = replace(ranks, mesh=None, host_mesh=None)
    changes = {
        name: replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in settings.items()
    }
    config = replace(config, **changes)
    train = build_train(config, ranks)
    batch = random_batch(config, ranks.device, microbatch)
    epochs = itertools.count()  # fresh masks for every step, as in training
    return lambda: train(replace(batch, epoch=next(epochs)))


def measure_step(
    config: Config,
    *,
    device: str,
    microbatch: int,
    names: Sequence[str] | None = None,
    repeats: int = 5,
) -> Iterator[Row]:
    """Measure forward, backward and AdamW on random patches.

    Args:
        config: of kind "vit".
        device: "cpu" or "cuda".
        microbatch: records of a step, on each rank.
        names: variants beside "ecgfast"; by default the eager reference on a CPU, what decides
            something on a GPU, none on several ranks.
        repeats: timed calls of several steps; each variant takes turns with ours.
    Yields:
        For each variant, as soon as measured, rows of time, throughput, (on a GPU) MFU and
        memory, and its time per record relative to ours in the same turns.
    Raises:
        ConfigError: an unknown variant.
    """
    # Every variant compiles the same block code anew; the limit of 8 is for runaway guards.
    with join(device, mesh_of_one=True) as ranks, torch._dynamo.config.patch(recompile_limit=64):
        wanted = _resolve_names(names, ranks)
        runner = _Runner(config, ranks, microbatch, repeats)
        yield from runner.measure_ours()
        for name in wanted:  # one at a time: each holds weights, moments and activations
            yield from runner.compare(name)


def _resolve_names(names: Sequence[str] | None, ranks: Ranks) -> list[str]:
    """Names in the order of measuring.

    By default on a GPU: what a graph brings, AdamW and the fused kernels, the peers, and what our
    kernels bring. Some 170 s on an H100, 60 of them for compiling the reference, which the peer
    with graphs needs at up to three microbatches more; all variants took more than 240.
    """
    peers = peer_steps() if ranks.world_size == 1 else {}
    allowed = [*BEFORE_PEERS, *peers, *AFTER_PEERS]
    if names is None and ranks.world_size > 1:
        return []
    if names is None and ranks.device.type == "cuda":
        return [*BEFORE_PEERS, *peers, "ecgfast-kernels-reference"]
    if names is None:
        return [name for name in peers if "eager" in name]
    if unknown := sorted(set(names) - set(allowed)):
        raise ConfigError(
            f"unknown variant {unknown[0]!r} of the step on {ranks.world_size} ranks; allowed: "
            f"{', '.join(allowed)}"
        )
    return [name for name in allowed if name in names]


@dataclass(frozen=True, kw_only=True)
class _Built:
    """A step that has run twice, its records, and the memory that it needs."""

    step: Step
    microbatch: int
    memory_gib: float


class _Runner:
    """Keeps our step alive while others take turns with it."""

    def __init__(self, config: Config, ranks: Ranks, microbatch: int, repeats: int) -> None:
        self._config = config
        self._ranks = ranks
        self._device = ranks.device.type
        self._microbatch = microbatch
        self._repeats = repeats
        self._ours = self._build("ecgfast", microbatch)

    def measure_ours(self) -> list[Row]:
        """Time our step alone."""
        return self._rows("ecgfast", self._take_turns(ecgfast=self._ours)["ecgfast"], self._ours)

    def compare(self, name: str) -> list[Row]:
        """Time a variant in turns with ours; one that fails is logged and has no rows."""
        try:
            built = self._build(name, self._best_microbatch(name))
        except (RuntimeError, ConfigError) as error:  # no memory, no such kernel, no graph here
            log.warning(f"{name} was not measured: {_first_line(error)}")
            return []
        times = self._take_turns(**{"ecgfast": self._ours, name: built})
        share = self._microbatch / built.microbatch
        pairs = zip(times[name], times["ecgfast"], strict=True)
        ratios = [share * theirs / ours for theirs, ours in pairs]
        ratio = self._row(name, "relative_time", "x ecgfast", ratios, built)
        return [*self._rows(name, times[name], built), ratio]

    def _best_microbatch(self, name: str) -> int:
        """Ours; for a peer that is given its best, that of its highest rate."""
        peer = peer_steps().get(name)
        if peer is None or not peer.graph or self._device != "cuda":
            return self._microbatch
        rates: dict[int, float] = {}
        for microbatch in (self._microbatch // 2, self._microbatch, 2 * self._microbatch):
            try:
                built = self._build(name, microbatch)
            except RuntimeError as error:  # no memory
                log.info(f"{name}: not with {microbatch} records: {_first_line(error)}")
                continue
            (ms,) = time_interleaved({"": built.step}, device=self._device, repeats=3).values()
            rates[microbatch] = microbatch / min(ms)
            log.info(f"{name}: {1e3 * rates[microbatch]:.0f} records/s with {microbatch}")
            del built
        if not rates:
            raise RuntimeError("it fits at no microbatch")
        return max(rates, key=lambda microbatch: rates[microbatch])

    def _take_turns(self, **steps: _Built) -> dict[str, list[float]]:
        """Milliseconds per step of each, several steps per call."""
        count = _STEPS_PER_CALL[self._device]

        def repeated(step: Step) -> Callable[[], list[Tensor]]:
            return lambda: [step() for _ in range(count)]

        calls = {name: repeated(built.step) for name, built in steps.items()}
        times = time_interleaved(calls, device=self._device, repeats=self._repeats, warmup=1)
        return {name: [t / count for t in ms] for name, ms in times.items()}

    def _build(self, name: str, microbatch: int) -> _Built:
        """Build a step and run it twice: compiled, allocated, and finite."""
        on_gpu = self._device == "cuda"
        gc.collect()
        if on_gpu:
            from torch._inductor.cudagraph_trees import reset_cudagraph_trees

            reset_cudagraph_trees()  # those of "reduce-overhead" outlive their model
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if on_gpu else 0
        if name in VARIANTS:
            step = build_step(VARIANTS[name], self._config, self._ranks, microbatch=microbatch)
        else:
            step = peer_steps()[name].build(self._config, self._ranks.device, microbatch)
        step()
        loss = step().item()
        if not loss < float("inf"):
            raise RuntimeError(f"loss of {name} is {loss}")
        peak = torch.cuda.max_memory_allocated() if on_gpu else 0
        log.info(f"{name}: built, loss {loss:.4f}")
        return _Built(step=step, microbatch=microbatch, memory_gib=(peak - before) / 2**30)

    def _rows(self, name: str, times_ms: list[float], built: _Built) -> list[Row]:
        world_size = self._ranks.world_size
        records_per_s = per_second(times_ms, built.microbatch * world_size)
        numbers = [("time", "ms", times_ms), ("throughput", "records/s", records_per_s)]
        if (peak := peak_tflops(self._ranks.device)) is not None:
            flops = flops_per_record(self._config.model, self._config.mask.ratio)
            mfu = [100 * rate * flops / (peak * 1e12 * world_size) for rate in records_per_s]
            numbers += [("mfu", "%", mfu), ("memory", "GiB", [built.memory_gib])]
        return [self._row(name, *number, built) for number in numbers]

    def _row(self, name: str, metric: str, unit: str, values: list[float], built: _Built) -> Row:
        world_size = self._ranks.world_size
        dtype = "bf16" if self._device == "cuda" else "fp32"
        ranks = f" on each of {world_size} ranks" if world_size > 1 else ""
        return make_row(
            case="step",
            provider=name,
            preset=self._config.preset,
            shape=f"{built.microbatch} records {dtype}{ranks}",
            metric=metric,
            unit=unit,
            values=values,
            device=self._device,
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
