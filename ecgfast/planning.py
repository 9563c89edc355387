"""Settings of a pretraining, from what a store holds and what this machine has: `ecgfast plan`."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ecgfast import log
from ecgfast.bench import Row, device_name
from ecgfast.bench.step import measure_step
from ecgfast.config import Config, config_to_toml, load_config
from ecgfast.data.engines import resident_bytes
from ecgfast.errors import ConfigError
from ecgfast.estimate import Estimate, Prices, estimate_pretrain, memory_gib
from ecgfast.runs.inference import choose_device
from ecgfast.store.reader import available_cores, open_store
from ecgfast.train.dataset import pretraining_rows
from ecgfast.train.run_folder import CPU_PRESET

PRESETS = ("vit_large", "vit_base", "vit_small", "vit_tiny")  # the larger one is preferred
WEEK = 168.0  # hours
_FILLED = 0.9  # of a GPU's memory: the rest is PyTorch's own, and what its allocator scatters
_RESIDENT = 0.5  # of it, for the records
_FEWEST_UPDATES = 16  # of an epoch
_LARGEST_MICROBATCH = 256  # records; more no longer raises the rate
_SMALLEST_MICROBATCH = 8  # a GPU that cannot hold these is too small for a preset


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What trains.

    Attributes:
        gpu: its name, None for a CPU.
        gpus: how many share a batch.
        memory_gib: of each GPU.
    """

    gpu: str | None
    gpus: int = 1
    memory_gib: float = 0.0

    @classmethod
    def here(cls, device: str | None = None) -> "Machine":
        """This machine, with all GPUs that it shows."""
        chosen = choose_device(device)
        if chosen.type == "cpu":
            return cls(gpu=None)
        total = torch.cuda.get_device_properties(chosen).total_memory
        return cls(
            gpu=device_name("cuda"), gpus=torch.cuda.device_count(), memory_gib=total / 2**30
        )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A pretraining, and what it will take.

    Attributes:
        config: its settings.
        estimate: of it.
        notes: what was decided, and why.
        euros: at the prices of `estimate.Prices`.
    """

    config: Config
    estimate: Estimate
    notes: tuple[str, ...]
    euros: float

    def to_toml(self) -> str:
        """The settings as a preset, under lines that say what they will take."""
        return "".join(f"# {line}\n" for line in self.lines()) + "\n" + config_to_toml(self.config)

    def lines(self) -> list[str]:
        """What it will take, for people."""
        cost = f"about {self.euros:,.2f} EUR at prices that are assumed; scaled, not measured"
        return [*str(self.estimate).splitlines(), cost, *self.notes]


def plan(
    stores: Iterable[str | Path],
    machine: Machine,
    *,
    preset: str | None = None,
    hours: float = WEEK,
    rows: Iterable[Row] = (),
) -> Planned:
    """Choose the largest preset that fits into the memory of a GPU and ends in time.

    Args:
        stores: that are read as one.
        machine: that trains.
        preset: to take whatever it needs; None chooses.
        hours: that a run may take.
        rows: measured results of `ecgfast bench step`; without one that fits, a GPU's rate is
            assumed and a CPU's is measured now.
    Raises:
        ConfigError: the stores have no record to learn from, or the GPU is too small.
    """
    readers = [open_store(store) for store in stores]
    records = sum(len(pretraining_rows(each, None, include_test=False)) for each in readers)
    if not records:
        raise ConfigError("no record to learn from, allowed 1 or more: all are test patients'")
    held_gib = sum(map(resident_bytes, readers)) / 2**30
    rows = list(rows)
    if machine.gpu is None:
        return _on_a_cpu(records, preset or CPU_PRESET, rows)
    found = None
    for name in PRESETS if preset is None else (preset,):
        config = _fitted(name, records, held_gib, machine)
        if config is None:
            continue
        found = _estimated(config, records, machine, rows)
        if found.estimate.hours <= hours:
            return found
    if found is None:
        smallest = preset or PRESETS[-1]
        raise ConfigError(
            f"{smallest} needs more memory than a {machine.gpu} has, got {machine.memory_gib:.0f} "
            "GiB; take a smaller preset, or a larger GPU"
        )
    late = f"it takes longer than {hours:g} h: fewer epochs (--set train.epochs=N), or more GPUs"
    return replace(found, notes=(*found.notes, late))


def planned(stores: Iterable[str | Path], device: str | None) -> Config:
    """The settings of `plan` on this machine, which the log describes."""
    found = plan(stores, Machine.here(device))
    for line in found.lines():
        log.info(line)
    return found.config


def _on_a_cpu(records: int, preset: str, rows: list[Row]) -> Planned:
    name = device_name("cpu")
    if not any(row.preset == preset and name in row.device for row in rows):
        rows = list(measure_step("cpu", preset=preset, variants=(), repeats=2))
    overrides = {"train.batch_size": _batch(preset, records, 1), "data.engine": "cpu"}
    config = load_config(preset, overrides)
    estimate = estimate_pretrain(config, gpu=name, num_gpus=1, num_records=records, rows=rows)
    note = f"no GPU here: {preset}; a vision transformer of the study's size wants one"
    cores = available_cores()
    euros = estimate.hours * cores * Prices().core_hour
    return Planned(config=config, estimate=estimate, notes=(note,), euros=euros)


def _batch(preset: str, records: int, gpus: int) -> int:
    """Records per update: the preset's, or a power of two that gives an epoch some updates."""
    asked = load_config(preset).train.batch_size
    size = 2 ** int(math.log2(max(records // _FEWEST_UPDATES, 1)))
    return asked if size >= asked else max(size // gpus, 1) * gpus


def _fitted(preset: str, records: int, held_gib: float, machine: Machine) -> Config | None:
    """A preset with the batch, microbatch and engine of a machine; None where it does not fit."""
    batch = _batch(preset, records, machine.gpus)
    is_resident = held_gib <= _RESIDENT * machine.memory_gib
    free = _FILLED * machine.memory_gib - (held_gib if is_resident else 0)
    for microbatch in _microbatches(batch // machine.gpus):
        config = load_config(
            preset,
            {
                "train.batch_size": batch,
                "train.microbatch": microbatch,
                "data.engine": "resident" if is_resident else "auto",
            },
        )
        if memory_gib(config, machine.gpus) <= free:
            return config
    return None


def _microbatches(share: int) -> Iterator[int]:
    """Divisors of a rank's records, from the largest that helps to the smallest."""
    fewest = min(share, _SMALLEST_MICROBATCH)
    for size in range(min(share, _LARGEST_MICROBATCH), fewest - 1, -1):
        if share % size == 0:
            yield size


def _estimated(config: Config, records: int, machine: Machine, rows: list[Row]) -> Planned:
    estimate = estimate_pretrain(
        config, gpu=str(machine.gpu), num_gpus=machine.gpus, num_records=records, rows=rows
    )
    settings = f"microbatch {config.train.microbatch}, engine {config.data.engine}"
    euros = estimate.gpu_hours * Prices().gpu_hour
    return Planned(config=config, estimate=estimate, notes=(settings,), euros=euros)
