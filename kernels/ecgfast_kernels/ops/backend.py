"""Which implementation of the ops runs: the Triton kernels or the PyTorch reference."""

import importlib.util
import logging
import os
from typing import Literal

import torch

Backend = Literal["triton", "reference"]

HAS_TRITON = importlib.util.find_spec("triton") is not None
# Triton decides this when a kernel is decorated, so it holds for the whole process.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

_logger = logging.getLogger("ecgfast")


class BackendError(RuntimeError):
    """The requested kernels cannot run on this device."""


def resolve(kernels: str, device: torch.device | str) -> Backend:
    """Resolve the setting `kernels` for a device; call it once and pass the answer to the ops.

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
