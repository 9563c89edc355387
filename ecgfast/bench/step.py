"""The ViT-L pretraining step on one device: ours beside the plain reference, in one process."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ecgfast import log
from ecgfast.bench.reference_mae import block_provider
from ecgfast.bench.rows import Row, make_row
from ecgfast.bench.step_variants import Reference, Step, Variant, build_step
from ecgfast.bench.timing import per_second, time_interleaved
from ecgfast.config import Config
from ecgfast.errors import ConfigError
from ecgfast.model.mae import flops_per_record
from ecgfast.train.distributed import Ranks, join
from ecgfast.train.metrics import peak_tflops

_STEPS_PER_CALL = {"cuda": 4, "cpu": 1}  # in a row, so that launches overlap as in training

EAGER = Reference(name=f"reference-eager-{block_provider()}", compiled=False)
COMPILED = Reference(name=f"reference-compiled-{block_provider()}", compiled=True)
REPLAYED = Reference(name=f"reference-compiled-{block_provider()}-graph", compiled=True, graph=True)
VARIANTS: tuple[Variant | Reference, ...] = (
    Variant(name="ecgfast-graph", graph=True),
    Variant(name="ecgfast-adamw-graph", graph=True, one_pass=True),
    Variant(name="ecgfast-fused-graph", attention="triton", fused="separate", graph=True),
    Variant(name="ecgfast-epilogue-graph", attention="triton", fused="triton", graph=True),
    Variant(name="ecgfast-quack-graph", attention="triton", fused="quack", graph=True),
    COMPILED,
    REPLAYED,
    EAGER,
    Variant(name="ecgfast-kernels-reference", kernels="reference"),
    Variant(name="ecgfast-fsdp", parallel="fsdp"),
    Variant(name="ecgfast-fsdp-graph", parallel="fsdp", graph=True),
    Variant(name="ecgfast-replicas-graph", parallel="replicas", graph=True),
    Variant(name="ecgfast-fused", attention="triton", fused="separate"),
    Variant(name="ecgfast-fused-eager", attention="triton", fused="separate", compiled=False),
    Variant(name="ecgfast-eager", compiled=False),
    Variant(name="ecgfast-sdpa-flash", attention="sdpa_flash"),
    Variant(name="ecgfast-xformers", attention="xformers"),
    Variant(name="ecgfast-sdpa-cudnn", attention="sdpa_cudnn"),
    Variant(name="ecgfast-sdpa-efficient", attention="sdpa_efficient"),
    Variant(name="ecgfast-triton-attention", attention="triton"),
)
# Measured on a GPU unless others are named: what a graph brings, what the AdamW and the fused
# kernels, the peers, and what our kernels bring, in this order should time run out. Some 170 s on
# an H100 by its first log, 60 of them for compiling the reference, which `REPLAYED` needs at up to
# three microbatches more; all variants took more than 240.
DECISIVE = tuple(variant.name for variant in VARIANTS[:9])


def variant_names() -> list[str]:
    """Names that `measure_step` takes besides "ecgfast", which is always measured."""
    return [variant.name for variant in VARIANTS]


@dataclass(frozen=True, kw_only=True)
class _Built:
    """A step that has run once, its records, and the memory that it needs."""

    step: Step
    microbatch: int
    memory_gib: float


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
        names: variants beside "ecgfast"; by default the eager reference on a CPU, `DECISIVE` on a
            GPU, none on several ranks.
        repeats: timed calls of several steps; each variant takes turns with ours.
    Yields:
        For each variant, as soon as measured, rows of time, throughput, (on a GPU) MFU and
        memory, and its time per record relative to ours in the same turns.
    Raises:
        ConfigError: an unknown variant.
    """
    # Every variant compiles the same block code anew; the limit of 8 is for runaway guards.
    with join(device, mesh_of_one=True) as ranks, torch._dynamo.config.patch(recompile_limit=64):
        wanted = _check_names(names, ranks)
        runner = _Runner(config, ranks, microbatch, repeats)
        yield from runner.measure_ours()
        for variant in VARIANTS:  # one at a time: each holds weights, moments and activations
            if variant.name in wanted:
                yield from runner.compare(variant)


def _check_names(names: Sequence[str] | None, ranks: Ranks) -> set[str]:
    if names is None and ranks.world_size > 1:
        return set()
    if names is None:
        return set(DECISIVE) if ranks.device.type == "cuda" else {EAGER.name}
    shared = {v.name for v in VARIANTS if isinstance(v, Variant)}
    allowed = [n for n in variant_names() if ranks.world_size == 1 or n in shared]
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        raise ConfigError(
            f"unknown variant {unknown[0]!r} of the step on {ranks.world_size} ranks; allowed: "
            f"{', '.join(allowed)}"
        )
    return set(names)


class _Runner:
    """Keeps our step alive while others take turns with it."""

    def __init__(self, config: Config, ranks: Ranks, microbatch: int, repeats: int) -> None:
        self._config = config
        self._ranks = ranks
        self._device = ranks.device.type
        self._microbatch = microbatch
        self._repeats = repeats
        # as the trainer's train.compile = "auto" does
        self._ours = self._build(Variant(compiled=self._device == "cuda"), microbatch)

    def measure_ours(self) -> list[Row]:
        """Time our step alone."""
        times = self._take_turns({"ecgfast": self._ours.step})
        return self._rows("ecgfast", times["ecgfast"], self._ours)

    def compare(self, variant: Variant | Reference) -> list[Row]:
        """Time a variant in turns with ours; one that fails is said aloud and has no rows."""
        try:
            built = self._build(variant, self._best_microbatch(variant))
        except (RuntimeError, ConfigError) as error:  # no memory, no such kernel, no graph here
            reason = str(error).strip().partition("\n")[0]
            log.warning(f"{variant.name} was not measured: {reason}")
            return []
        times = self._take_turns({"ecgfast": self._ours.step, variant.name: built.step})
        pairs = zip(times[variant.name], times["ecgfast"], strict=True)
        share = self._microbatch / built.microbatch
        ratios = [share * theirs / ours for theirs, ours in pairs]
        rows = self._rows(variant.name, times[variant.name], built)
        ratio = self._row(variant.name, "relative_time", "x ecgfast", ratios, built.microbatch)
        return [*rows, ratio]

    def _best_microbatch(self, variant: Variant | Reference) -> int:
        """Ours; for a peer that is given its best, that of its highest rate."""
        if not (isinstance(variant, Reference) and variant.graph and self._device == "cuda"):
            return self._microbatch
        rates: dict[int, float] = {}
        for microbatch in (self._microbatch // 2, self._microbatch, 2 * self._microbatch):
            try:
                built = self._build(variant, microbatch)
            except RuntimeError as error:  # no memory
                reason = str(error).strip().partition("\n")[0]
                log.info(f"{variant.name}: not with {microbatch} records: {reason}")
                continue
            (ms,) = time_interleaved({"": built.step}, device=self._device, repeats=3).values()
            rates[microbatch] = microbatch / min(ms)
            log.info(f"{variant.name}: {1e3 * rates[microbatch]:.0f} records/s with {microbatch}")
            del built
        if not rates:
            raise RuntimeError("it fits at no microbatch")
        return max(rates, key=lambda microbatch: rates[microbatch])

    def _take_turns(self, steps: dict[str, Step]) -> dict[str, list[float]]:
        """Milliseconds per step of each, several steps per call."""
        calls = {name: self._repeated(step) for name, step in steps.items()}
        times = time_interleaved(calls, device=self._device, repeats=self._repeats, warmup=1)
        return {name: [t / self._num_steps for t in ms] for name, ms in times.items()}

    @property
    def _num_steps(self) -> int:
        return _STEPS_PER_CALL[self._device]

    def _repeated(self, step: Step) -> Step:
        def call() -> torch.Tensor:
            for _ in range(self._num_steps - 1):
                step()
            return step()

        return call

    def _build(self, variant: Variant | Reference, microbatch: int) -> _Built:
        """Build a step and run it twice: compiled, allocated, and finite."""
        self._release()
        on_gpu = self._device == "cuda"
        before = torch.cuda.memory_allocated() if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        step = build_step(variant, self._config, self._ranks, microbatch=microbatch)
        step()
        loss = step().item()
        if not loss < float("inf"):
            raise RuntimeError(f"loss of {variant.name} is {loss}")
        peak = torch.cuda.max_memory_allocated() if on_gpu else 0
        log.info(f"{variant.name}: built, loss {loss:.4f}")
        return _Built(step=step, microbatch=microbatch, memory_gib=(peak - before) / 2**30)

    def _release(self) -> None:
        gc.collect()
        if self._device == "cuda":
            from torch._inductor.cudagraph_trees import reset_cudagraph_trees

            reset_cudagraph_trees()  # those of "reduce-overhead" outlive their model
            torch.cuda.empty_cache()

    def _rows(self, name: str, times_ms: list[float], built: _Built) -> list[Row]:
        world_size = self._ranks.world_size
        records_per_s = per_second(times_ms, built.microbatch * world_size)
        flops = flops_per_record(self._config.model, self._config.mask.ratio)
        peak = peak_tflops(self._ranks.device)
        numbers = [("time", "ms", times_ms), ("throughput", "records/s", records_per_s)]
        if peak is not None:
            full = peak * 1e12 * world_size
            mfu = [100 * rate * flops / full for rate in records_per_s]
            numbers += [("mfu", "%", mfu), ("memory", "GiB", [built.memory_gib])]
        return [self._row(name, *number, built.microbatch) for number in numbers]

    def _row(self, name: str, metric: str, unit: str, values: list[float], microbatch: int) -> Row:
        dtype = "bf16" if self._device == "cuda" else "fp32"
        return make_row(
            case="step",
            provider=name,
            preset=self._config.preset,
            shape=f"{microbatch} records {dtype}" + self._several_ranks(),
            metric=metric,
            unit=unit,
            values=values,
            device=self._device,
        )

    def _several_ranks(self) -> str:
        world_size = self._ranks.world_size
        return f" on each of {world_size} ranks" if world_size > 1 else ""
