"""How long pretraining takes and what it needs, from a measured row or else from the FLOP count."""

from collections.abc import Iterable
from dataclasses import dataclass

from ecgfast.bench.measuring import Row
from ecgfast.config import Config
from ecgfast.errors import ConfigError
from ecgfast.model.mae import flops_per_record, num_kept, num_parameters
from ecgfast.train.guards import PEAK_TFLOPS

ASSUMED_MFU = 0.45  # between the best published (A100 50 %, H100 43 %) at ViT-Large's width
ASSUMED_SCALING = 0.95  # of linear, on several GPUs: weights and gradients travel once per step
STUDY_RECORDS = 126_203
_MAX_MICROBATCH = 256  # records per GPU and pass; more no longer raises the rate
# Saved per token and layer, in widths: residual, two norms, qkv, attention, MLP twice; bf16
_ACTIVATION_BYTES = 34
_STATE_BYTES = 16  # fp32 weight, gradient and two moments per parameter, shared by the GPUs
_WORKING_BYTES = 4  # bf16 copy and gradient per parameter, on every GPU
_WIDENED_BYTES = 4  # a microbatch's gradients in fp32, on one GPU that takes several per step


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a whole pretraining run costs, on all GPUs together."""

    hours: float  # wall clock
    gpu_hours: float
    records_per_s: float
    memory_gib: float  # of each GPU, without the store's records
    basis: str  # what the rate rests on, in words
    setting: str  # the run, in words

    def __str__(self) -> str:
        """Lines for people."""
        return (
            f"{self.setting}\n"
            f"{self.hours:,.1f} h, {self.gpu_hours:,.0f} GPU-hours at "
            f"{self.records_per_s:,.0f} records/s; about {self.memory_gib:.0f} GiB per GPU\n"
            f"{self.basis}"
        )


def estimate(
    config: Config,
    *,
    gpu: str = "A100",
    num_gpus: int = 4,
    num_records: int = STUDY_RECORDS,
    rows: Iterable[Row] = (),
) -> Estimate:
    """Estimate a run of `train.epochs` over `num_records` at `train.batch_size`.

    Args:
        config: of kind "vit".
        gpu: part of the device's name, such as "A100" or "H100".
        num_gpus: how many share the batch.
        num_records: in the store.
        rows: measured results; the newest step of this preset on such a GPU is used.
    Raises:
        ConfigError: no row fits and the GPU's peak is unknown, or a count is not positive.
    """
    if num_gpus < 1 or num_records < 1:
        raise ConfigError(f"GPUs and records must be at least 1, got {num_gpus} and {num_records}")
    rate, basis = _rate_of_one(config, gpu, rows)
    if num_gpus > 1:
        rate *= num_gpus * ASSUMED_SCALING
        basis += f"; {num_gpus} GPUs scaled at {ASSUMED_SCALING:.0%} of linear, not measured"
    epochs, batch = config.train.epochs, config.train.batch_size
    # the last batch of an epoch is dropped when it is not full
    hours = epochs * (num_records // batch * batch or num_records) / rate / 3600
    run = f"{config.preset}: {epochs} epochs of {num_records:,} records at batch {batch}"
    return Estimate(
        hours=hours,
        gpu_hours=hours * num_gpus,
        records_per_s=rate,
        memory_gib=memory_gib(config, num_gpus),
        basis=basis,
        setting=f"{run} on {num_gpus} x {gpu}",
    )


def memory_gib(config: Config, num_gpus: int) -> float:
    """Memory of each GPU by formula: sharded state, working copies, activations.

    Of activations what a pass keeps for the backward one, with attention that keeps no scores.
    """
    model, asked = config.model, config.train.microbatch
    share = -(-config.train.batch_size // num_gpus)
    microbatch = min(share, _MAX_MICROBATCH) if asked == "auto" else asked
    widened = _WIDENED_BYTES if num_gpus == 1 and microbatch < share else 0
    state = sum(num_parameters(model)) * (_STATE_BYTES / num_gpus + _WORKING_BYTES + widened)
    kept = 1 + num_kept(model.num_patches, config.mask.ratio)
    encoder = model.encoder_depth * kept * model.encoder_width
    decoder = model.decoder_depth * (1 + model.num_patches) * model.decoder_width
    return (state + microbatch * _ACTIVATION_BYTES * (encoder + decoder)) / 2**30


def _rate_of_one(config: Config, gpu: str, rows: Iterable[Row]) -> tuple[float, str]:
    """Records per second of one GPU, and why."""
    fitting = [
        row
        for row in rows
        if (row.case, row.provider, row.metric) == ("step", "ecgfast", "throughput")
        and row.preset == config.preset
        and gpu.lower() in row.device.lower()
        and "ranks" not in row.shape  # those rows are of several GPUs together
    ]
    if fitting:
        row = max(fitting, key=lambda r: r.date)
        basis = f"measured on {row.device}, {row.shape}, {row.date}, commit {row.commit}"
        return row.p50, basis
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in gpu.upper()), None)
    if peak is None:
        raise ConfigError(
            f"no measured step and no known peak for the GPU {gpu!r}; allowed: "
            f"{', '.join(PEAK_TFLOPS)}, or run ecgfast bench step on it"
        )
    flops = flops_per_record(config.model, config.mask.ratio)
    basis = (
        f"not measured: {flops / 1e9:.1f} GFLOP per record at an assumed {ASSUMED_MFU:.0%} of "
        f"{peak:.0f} TFLOP/s (bf16)"
    )
    return ASSUMED_MFU * peak * 1e12 / flops, basis
