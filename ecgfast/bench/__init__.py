"""Measured rates: `ecgfast bench` runs a case and prints its rows as they come.

Variants are timed in turns. A row is one JSON object, a number with its machine, in a file for each
device.
"""

import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ecgfast import log
from ecgfast.errors import ConfigError, FormatError
from ecgfast.store.format import refuse_inside_store

Call = Callable[[], Any]
Numbers = Mapping[tuple[str, str], Sequence[float]]  # metric and unit -> a number for each repeat

_DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
_COMMIT = ("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")
_COPY_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}
_MATMUL_SIZE = {"cuda": 8192, "cpu": 512}
_FLUSH_BYTES = 256 << 20  # more than any L2 cache sold so far (H100: 50 MB, B200: 126 MB)
CASES = {  # module and function; each imports what it measures, as the decoder needs no model
    "codec": ("codec", "measure_codec"),
    "decode": ("codec", "measure_decode"),
    "kernels": ("kernels", "measure_kernels"),
    "loader": ("loader", "measure_loader"),
    "step": ("step", "measure_step"),
    "embed": ("step", "measure_embed"),
}
_ON_GPUS = ("decode", "kernels")  # these cases have no meaning on a CPU
_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number; quantiles are over the `n` repeats, in `unit`."""

    case: str
    provider: str  # "ecgfast" or the peer's name
    preset: str
    shape: str  # sizes in words, such as "256x240x256 bf16"
    metric: str  # "time", "throughput", "mfu", "memory", "bandwidth" ...
    unit: str
    p20: float
    p50: float
    p80: float
    n: int
    device: str
    driver: str
    cuda: str
    torch: str
    triton: str
    commit: str
    date: str


_ROW = TypeAdapter(Row)


def make_rows(numbers: Numbers, *, device: str = "cpu", **what: str) -> Iterator[Row]:
    """Summarise repeats of each number as a row of this machine.

    Args:
        numbers: by metric and unit, such as ("throughput", "records/s"), one per repeat.
        device: "cpu" or "cuda": the hardware that the numbers belong to.
        what: `case`, `provider`, `preset` and `shape` of the rows.
    Raises:
        ValueError: a number has no repeats.
    """
    on_gpu = device.startswith("cuda")
    texts = {
        "preset": "",
        "shape": "",
        **what,
        "device": device_name(device),
        "driver": _output(*_DRIVER) if on_gpu else "",
        "cuda": (torch.version.cuda or "") if on_gpu else "",
        **{name: version(name) if find_spec(name) else "" for name in ("torch", "triton")},
        "commit": os.environ.get("ECGFAST_COMMIT") or _output(*_COMMIT),  # without .git
        "date": datetime.date.today().isoformat(),
    }
    for (metric, unit), values in numbers.items():
        if len(values) == 0:
            raise ValueError(f"{metric} of {what} must have at least one repeat, got none")
        p20, p50, p80 = np.percentile(np.asarray(values, np.float64), (20, 50, 80)).tolist()
        measured = {"p20": p20, "p50": p50, "p80": p80, "n": len(values)}
        yield Row(metric=metric, unit=unit, **measured, **texts)  # type: ignore[arg-type]  # of both kinds


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a .jsonl file, which is created with its folder when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def read_rows(path: Path) -> list[Row]:
    """Read the rows of one .jsonl file, or of every one below a folder in name order.

    Raises:
        FormatError: a line is not a row, or the path does not exist; names file and line.
    """
    if not path.exists():
        raise FormatError(f"no results at {path}; write some with ecgfast bench step --json FILE")
    paths = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    return [row for file in paths for row in _read_file(file)]


def _read_file(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no file of result rows: it is no UTF-8 text") from error
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                yield _ROW.validate_json(line, strict=True)
        except ValidationError as error:
            wrong = error.errors()[0]
            where = "".join(f"{name}: " for name in wrong["loc"]) + wrong["msg"]
            raise FormatError(f"{path}:{number} is not a result row: {where}") from error


def render(row: Row) -> str:
    """One row as a line for people."""
    what = f"{row.case} {row.preset} {row.shape}".replace("  ", " ")
    value = f"{row.p50:,.4g}" if row.p50 < 1e4 else f"{row.p50:,.0f}"
    return f"{what:<44} {row.provider:<28} {row.metric:<10} {value:>10} {row.unit}"


@cache
def device_name(device: str = "cpu") -> str:
    """Name of the hardware behind "cpu" or "cuda", such as "NVIDIA H100 80GB HBM3"."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    model = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def device_slug(device: str = "cpu") -> str:
    """Folder name for `device` below benchmarks/results."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


@cache
def _output(*command: str) -> str:
    """First line that a command prints; empty where the program is missing or refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().split("\n")[0]


def time_interleaved(
    variants: Mapping[str, Call],
    *,
    device: str = "cpu",
    repeats: int = 20,
    warmup: int = 3,
    flush_cache: bool = False,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, list[float]]:
    """Time each variant `repeats` times, in turns, so that drift hits all of them alike.

    Args:
        variants: name -> callable that takes nothing; its result is dropped.
        device: "cpu" or "cuda", which is timed by its own events.
        repeats: timed rounds; every round calls each variant once.
        warmup: untimed rounds before (compilation, allocator, caches).
        flush_cache: overwrite the GPU's L2 cache before each call, for memory-bound kernels.
        clock: of the CPU, in nanoseconds.
    Returns:
        name -> milliseconds of each repeat.
    """
    on_gpu = device.startswith("cuda")
    scratch = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device) if flush_cache else None
    times_ms: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(warmup + repeats):
        for name, variant in variants.items():
            timed = _time_gpu_ms(variant, scratch) if on_gpu else _time_cpu_ms(variant, clock)
            times_ms[name].append(timed)
    return {name: ms[warmup:] for name, ms in times_ms.items()}


def _time_cpu_ms(call: Call, clock: Callable[[], int]) -> float:
    start_ns = clock()
    call()
    return (clock() - start_ns) / 1e6


def _time_gpu_ms(call: Call, scratch: Tensor | None) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if scratch is not None:
        scratch.fill_(1)  # keeps the GPU busy while the call is queued: no launch latency is timed
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def per_second(times_ms: Iterable[float], count: float) -> list[float]:
    """Turn milliseconds per call into `count` units per second."""
    return [count * 1e3 / ms for ms in times_ms]


def measure_peaks(device: str) -> Iterator[Row]:
    """Measure bf16 matrix product and copy bandwidth on "cpu" or "cuda": limits of the rest."""
    size, num_bytes = _MATMUL_SIZE[device], _COPY_BYTES[device]
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (num_bytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    calls = {"matmul": lambda: a @ b, "copy": lambda: target.copy_(source)}
    times = time_interleaved(calls, device=device)
    rows = partial(make_rows, provider="torch", device=device)
    flops = {("throughput", "TFLOP/s"): per_second(times["matmul"], 2 * size**3 / 1e12)}
    yield from rows(flops, case="matmul_peak", shape=f"{size}x{size}x{size} bf16")
    moved = {("bandwidth", "GB/s"): per_second(times["copy"], 2 * num_bytes / 1e9)}
    shape = f"{num_bytes >> 20} MiB read + written"
    yield from rows(moved, case="copy_bandwidth", shape=shape)


def run(
    case: str, *, json: Path | None = None, device: str | None = None, **of_step: object
) -> list[Row]:
    """Measure one case, or "all" of them, and print each number as soon as it is there.

    Args:
        case: one of `CASES`, or "all".
        json: .jsonl file that rows are appended to, one by one: a run cut short keeps its rows.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        of_step: `preset`, `microbatch` and `variants` of `measure_step`.
    Raises:
        ConfigError: an unknown case, preset or variant.
        FormatError: `json` holds something else than rows.
    """
    if case != "all" and case not in CASES:
        raise ConfigError(f"unknown bench case {case!r}; allowed: {', '.join(CASES)}, all")
    if json is not None:
        refuse_inside_store(json, "--json")
        if json.exists():
            read_rows(json)  # rows behind anything else would damage it
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[Row] = []
    for name in CASES if case == "all" else (case,):
        if name in _ON_GPUS and place != "cuda":
            log.warning(f"{name} was not measured: it needs a GPU")
            continue
        module, function = CASES[name]
        measure = getattr(import_module(f"ecgfast.bench.{module}"), function)
        rows += show(measure(place, **(of_step if name == "step" else {})), json)
    return rows


def show(rows: Iterable[Row], json: Path | None) -> list[Row]:
    """Print rows as they come and append them to a file; under torchrun only on one rank."""
    kept: list[Row] = []
    for row in rows:
        kept.append(row)
        if os.environ.get("RANK", "0") == "0":
            log.console.print(render(row), highlight=False, soft_wrap=True)
            if json is not None:
                append_rows(json, [row])
    return kept


@cache
def peers_module(name: str) -> Any:  # noqa: ANN401 (a module of its own names)
    """Load a module of `benchmarks/` with peers of a case; None where only the package is there.

    The peers are no part of the package: it must not depend on other codecs and other models.
    """
    path = _BENCHMARKS / f"{name}.py"
    spec = spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        log.warning(f"no {path}: the peers are left out; run from a checkout of the source")
        return None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
