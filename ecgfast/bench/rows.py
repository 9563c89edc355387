"""Result rows: one JSON object per measured number, appended to a .jsonl file per device."""

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from ecgfast.errors import FormatError

_DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
_COMMIT = ("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number; quantiles are over the `n` repeats, in `unit`."""

    case: str
    provider: str  # "ecgfast" or the peer's name
    preset: str
    shape: str
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


def make_row(
    *,
    case: str,
    provider: str,
    values: Sequence[float],
    metric: str,
    unit: str,
    preset: str = "",
    shape: str = "",
    device: str = "cpu",
) -> Row:
    """Summarise repeats of one measurement as a row of this machine.

    Args:
        case: what was measured, such as "step" or "codec_decode".
        provider: "ecgfast", or the name of the peer.
        values: one number per repeat, in `unit`.
        metric: the kind of number; MFU is "mfu" with the unit "%".
        unit: "ms", "records/s", "%", "GB/s", "GiB" ...
        preset: model preset, or empty.
        shape: sizes in words, such as "256x240x256 bf16".
        device: "cpu" or "cuda": the hardware that the number belongs to.

    Raises:
        ValueError: `values` is empty.
    """
    if len(values) == 0:
        raise ValueError(f"values of {case}/{provider} must hold at least one repeat, got none")
    p20, p50, p80 = (float(q) for q in np.percentile(np.asarray(values, np.float64), (20, 50, 80)))
    measured = {"p20": p20, "p50": p50, "p80": p80, "n": len(values)}
    what = {"case": case, "provider": provider, "preset": preset, "shape": shape}
    return Row(**what, metric=metric, unit=unit, **measured, **_machine(device))  # type: ignore[arg-type]  # of both kinds


def _machine(device: str) -> dict[str, str]:
    on_gpu = device.startswith("cuda")
    return {
        "device": device_name(device),
        "driver": _output(*_DRIVER) if on_gpu else "",
        "cuda": (torch.version.cuda or "") if on_gpu else "",
        "torch": _package_version("torch"),
        "triton": _package_version("triton"),
        "commit": os.environ.get("ECGFAST_COMMIT") or _output(*_COMMIT),  # without .git
        "date": datetime.date.today().isoformat(),
    }


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a .jsonl file, which is created with its folder when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)


def read_rows(path: Path) -> list[Row]:
    """Read the rows of one .jsonl file, or of every one below a folder in name order.

    Raises:
        FormatError: a line is not a row, or the path does not exist; names file and line.
    """
    if not path.exists():
        raise FormatError(f"no results at {path}; write some with ecgfast bench step --json FILE")
    paths = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    return [row for file in paths for row in _read_file(file)]


def render(row: Row) -> str:
    """One row as a line for people."""
    what = f"{row.case} {row.preset} {row.shape}".replace("  ", " ")
    value = f"{row.p50:,.4g}" if row.p50 < 1e4 else f"{row.p50:,.0f}"
    return f"{what:<44} {row.provider:<28} {row.metric:<10} {value:>10} {row.unit}"


def device_name(device: str = "cpu") -> str:
    """Name of the hardware behind "cpu" or "cuda", such as "NVIDIA H100 80GB HBM3"."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores"


def device_slug(device: str = "cpu") -> str:
    """Folder name for `device` below benchmarks/results."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def _read_file(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no file of result rows: it is no UTF-8 text") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse_row(path, number, line)


def _parse_row(path: Path, number: int, line: str) -> Row:
    try:
        tree = json.loads(line)
        row = Row(**{f.name: tree[f.name] for f in fields(Row)})
        for field in fields(Row):
            is_number = isinstance(getattr(row, field.name), int | float)
            if is_number != (field.type is not str):
                raise TypeError(field.name)
        return row
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise FormatError(f"{path}:{number} is not a result row ({error!r})") from error


@cache
def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@cache
def _output(*command: str) -> str:
    """First line that a command prints; empty where the program is missing or refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().split("\n")[0]
