"""What a pretraining or a conversion will take, from measured rows or else by assumptions."""

from collections.abc import Iterable
from dataclasses import dataclass

from ecgfast.bench import Row
from ecgfast.config import Config
from ecgfast.errors import ConfigError
from ecgfast.model.mae import flops_per_record, num_kept, num_parameters
from ecgfast.store.format import SHARD_RECORDS
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
ASSUMED_CONVERT_RATE = 2000.0  # records/s on a core, WFDB format 16
ASSUMED_STORED_BYTES = 25_000.0  # of a record of 12 x 5000 timesteps, losslessly packed
SOURCE_BYTES = 12 * 5000 * 2  # of such a record in WFDB format 16
_FILES_PER_RECORD = 2  # header and signals: opened on a share, requested from an object storage
_FILES_PER_SHARD = 6  # the shard, its chunks of four tables, and what became of its inputs


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


@dataclass(frozen=True, kw_only=True)
class Prices:
    """In euros; list prices of a large cloud, rounded, to be replaced by one's own."""

    core_hour: float = 0.05
    gpu_hour: float = 2.5
    terabyte_month: float = 23.0
    million_reads: float = 0.4
    million_writes: float = 5.0


@dataclass(frozen=True, kw_only=True)
class ConvertEstimate:
    """What a conversion costs, and a month of what it writes."""

    core_hours: float
    hours: float  # wall clock
    source_bytes: float
    stored_bytes: float
    reads: int  # files, or requests to an object storage
    writes: int
    euros: float  # once
    euros_per_month: float  # as long as the store is kept
    basis: str
    setting: str

    def __str__(self) -> str:
        """Lines for people."""
        return (
            f"{self.setting}\n"
            f"{self.core_hours:,.1f} core-hours, {self.hours:,.1f} h; reads "
            f"{self.source_bytes / 1e9:,.0f} GB in {self.reads:,} files or requests, writes "
            f"{self.stored_bytes / 1e9:,.0f} GB in {self.writes:,}\n"
            f"{self.euros:,.2f} EUR once, {self.euros_per_month:,.2f} EUR a month for the store, "
            f"at prices that are assumed\n"
            f"{self.basis}"
        )


def estimate_convert(
    *,
    num_records: int = STUDY_RECORDS,
    num_cores: int = 1,
    rows: Iterable[Row] = (),
    prices: Prices = Prices(),
) -> ConvertEstimate:
    """Estimate a conversion of ten-second records in WFDB format 16.

    Args:
        num_records: to convert.
        num_cores: that share the work.
        rows: measured results; the newest conversion and the newest size of a store are used.
        prices: of cores, storage and requests.
    Raises:
        ConfigError: a count is not positive.
    """
    if num_cores < 1 or num_records < 1:
        raise ConfigError(
            f"cores and records must be at least 1, got {num_cores} and {num_records}"
        )
    rows = list(rows)
    rate, why_rate = _newest(rows, ("convert", "throughput"), ASSUMED_CONVERT_RATE)
    size, why_size = _newest(rows, ("loader", "storage"), ASSUMED_STORED_BYTES)
    core_hours, stored = num_records / rate / 3600, num_records * size
    reads = num_records * _FILES_PER_RECORD
    writes = -(-num_records // SHARD_RECORDS) * _FILES_PER_SHARD
    moving = reads * prices.million_reads + writes * prices.million_writes
    return ConvertEstimate(
        core_hours=core_hours,
        hours=core_hours / num_cores,
        source_bytes=num_records * SOURCE_BYTES,
        stored_bytes=stored,
        reads=reads,
        writes=writes,
        euros=core_hours * prices.core_hour + moving / 1e6,
        euros_per_month=stored / 1e12 * prices.terabyte_month,
        basis=f"{rate:,.0f} records/s on a core {why_rate}; {size:,.0f} bytes a record {why_size}; "
        f"scaled to {num_records:,} records and {num_cores:,} cores, not measured",
        setting=f"{num_records:,} records of 12 x 5000 timesteps, WFDB format 16, on "
        f"{num_cores:,} cores",
    )


def _newest(rows: Iterable[Row], what: tuple[str, str], assumed: float) -> tuple[float, str]:
    """A case's number in a metric, and whence it is."""
    fitting = [row for row in rows if (row.case, row.metric) == what and row.provider == "ecgfast"]
    if not fitting:
        return assumed, "assumed"
    row = max(fitting, key=lambda r: r.date)
    return row.p50, f"measured on {row.device}, {row.date}, commit {row.commit}"


def estimate_pretrain(
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
