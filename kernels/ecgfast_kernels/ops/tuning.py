"""Block sizes of the kernels per architecture, from ``tuning.json``; nothing is tuned at run time.

``tools/tune_kernels.py`` measures and rewrites the table on a GPU.
"""

import functools
import json
from importlib.resources import files
from typing import Any

import torch

FILE_NAME = "tuning.json"


def block_config(op: str, tensor: torch.Tensor) -> dict[str, Any]:
    """Return the launch settings of an op for a tensor's device and dtype.

    Args:
        op: a key of the table, such as "patch_embed_forward".
        tensor: the device and the element size choose the row.
    Returns:
        Block sizes, `num_warps` and `num_stages`, to pass to the kernel.
    """
    if tensor.device.type == "cpu":
        return dict(table()[op]["interpreter"])  # a copy: callers take settings out of it
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return dict(config_for(op, arch=10 * major + minor, bits=8 * tensor.element_size()))


def config_for(op: str, *, arch: int, bits: int) -> dict[str, Any]:
    """Return the row of the newest architecture that is not newer than `arch`.

    Args:
        op: a key of the table.
        arch: compute capability as 10 * major + minor.
        bits: size of the elements that the kernel works on.
    Raises:
        ValueError: no row fits.
    """
    rows = table()[op]
    fitting = [known for known in _architectures(rows, bits=bits) if known <= arch]
    if not fitting:
        raise ValueError(
            f"no {bits}-bit block sizes of {op} for sm_{arch}; use kernels=reference, or Ampere or "
            "newer with bf16, fp16 or fp32"
        )
    return dict(rows[f"sm{max(fitting)}-{bits}bit"])


def _architectures(rows: dict[str, Any], *, bits: int) -> list[int]:
    suffix = f"-{bits}bit"
    return [int(row[2 : -len(suffix)]) for row in rows if row.endswith(suffix)]


@functools.cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the whole table: op -> row ("interpreter", "sm90-16bit") -> settings."""
    text = (files("ecgfast_kernels.ops") / FILE_NAME).read_text(encoding="utf-8")
    table: dict[str, dict[str, dict[str, Any]]] = json.loads(text)
    return table
