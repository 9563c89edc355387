"""How operators are registered, which implementation runs, and the block sizes of kernels.

define + impl + fake with an `autograd.Function` in front passes `opcheck` and fullgraph compile and
costs 5 us a call, against 10 us for `custom_op` + `register_autograd` (torch 2.11, CPU). Block
sizes come from ``tuning.json``, by architecture, and nothing is tuned at run time:
``tools/tune_kernels.py`` measures and rewrites the table on a GPU.
"""

import functools
import importlib.util
import json
import logging
import os
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from typing import Any, Literal

import torch

from ecgfast_kernels.ops import reference

Backend = Literal["triton", "reference"]

HAS_TRITON = importlib.util.find_spec("triton") is not None
# Triton decides this when a kernel is decorated, so it holds for the whole process.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

_logger = logging.getLogger("ecgfast")
FILE_NAME = "tuning.json"
Implementation = Callable[..., Any]

_LIBRARY: Any = torch.library.Library("ecgfast", "FRAGMENT")


class BackendError(RuntimeError):
    """The requested kernels cannot run on this device."""


def resolve(kernels: str, device: torch.device | str) -> Backend:
    """Resolve the setting `kernels` for a device, as every op does.

    Args:
        kernels: "auto" (Triton where there is a CUDA device), "triton" or "reference".
        device: where the tensors live. On a CPU the Triton kernels run only in Triton's
            interpreter (``TRITON_INTERPRET=1``), for tests.
    Raises:
        ValueError: an unknown name.
        BackendError: "triton" was asked for and cannot run there.
    """
    if kernels == "reference":
        return "reference"
    on_cuda = torch.device(device).type == "cuda"
    if kernels == "auto":
        if on_cuda and not HAS_TRITON:
            _logger.warning(
                "Triton is not installed: slower reference ops run; pip install 'ecgfast[cuda]'"
            )
        return "triton" if on_cuda and HAS_TRITON else "reference"
    if kernels != "triton":
        raise ValueError(f"kernels must be auto, triton or reference, got {kernels!r}")
    if not HAS_TRITON:
        raise BackendError("kernels=triton needs Triton, which is missing; pip install triton")
    if not on_cuda and not INTERPRETED:
        raise BackendError(
            f"kernels=triton needs a CUDA device, got {device}; use kernels=auto, or set "
            "TRITON_INTERPRET=1 before Python starts to test on a CPU"
        )
    return "triton"


def register(
    name: str,
    fake: Implementation,
    *,
    triton: str,
    mutates: tuple[str, ...] = (),
) -> None:
    """Define the operator ``ecgfast::name``: Triton on CUDA, the reference on CPU.

    Args:
        name: of the operator, and of its PyTorch implementation in `reference`, whose annotations
            are the operator's schema.
        fake: returns empty tensors of the right shape, dtype and device, for tracing.
        triton: the function that launches the kernels, as "module.function" of this folder. Triton
            is optional, so that the module is imported by its first call. Under
            ``TRITON_INTERPRET=1`` it serves CPU tensors too.
        mutates: arguments that are written to.
    """

    @functools.cache
    def launcher() -> Implementation:
        module, _, function = triton.partition(".")
        found: Implementation = getattr(import_module(f"{__package__}.{module}"), function)
        return found

    def launch(*arguments: object) -> object:
        return launcher()(*arguments)

    truth: Implementation = getattr(reference, name)
    _LIBRARY.define(name + torch.library.infer_schema(truth, mutates_args=mutates))
    _LIBRARY.impl(name, launch, "CUDA")
    _LIBRARY.impl(name, launch if INTERPRETED else truth, "CPU")
    torch.library.register_fake(f"ecgfast::{name}", fake, lib=_LIBRARY)


def require(condition: bool, message: str) -> None:
    """Raise `ValueError` with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


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
    suffix = f"-{bits}bit"
    known = [int(row[2 : -len(suffix)]) for row in rows if row.endswith(suffix)]
    fitting = [each for each in known if each <= arch]
    if not fitting:
        raise ValueError(
            f"no {bits}-bit block sizes of {op} for sm_{arch}; use kernels=reference, or Ampere or "
            "newer with bf16, fp16 or fp32"
        )
    return dict(rows[f"sm{max(fitting)}-{bits}bit"])


@functools.cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the whole table: op -> row ("interpreter", "sm90-16bit") -> settings."""
    text = (files("ecgfast_kernels.ops") / FILE_NAME).read_text(encoding="utf-8")
    table: dict[str, dict[str, dict[str, Any]]] = json.loads(text)
    return table
