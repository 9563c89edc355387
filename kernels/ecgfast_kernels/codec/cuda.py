"""The CUDA decoder of ecgpack: from bytes in GPU memory to patches, in one kernel.

Importing this imports no torch. Kernels are queued on PyTorch's current stream and nothing waits.
Shapes: R records held, B records requested, C leads, T timesteps, N = C * T / 250 patches.
"""

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from ecgfast_kernels.codec.format import COLUMN_TIMESTEPS, PATCH_WIDTH

if TYPE_CHECKING:
    from torch import Tensor

_NAME = "libecgfast_cuda" + (".dylib" if sys.platform == "darwin" else ".so")


class CudaCodecError(RuntimeError):
    """The CUDA decoder is missing, was called wrongly, or the driver refused it."""


@dataclass(frozen=True, kw_only=True)
class ResidentChunks:
    """Encoded records in memory that a GPU reads.

    Attributes:
        bytes: (num_bytes,) uint8, on the GPU or in pinned host memory.
        offsets: (R,) int64 on the GPU, first byte of each chunk.
        lengths: (R,) int64 on the GPU, bytes of each chunk.
        num_leads: C, the same for all.
        num_timesteps: T, the same for all.
    """

    bytes: "Tensor"
    offsets: "Tensor"
    lengths: "Tensor"
    num_leads: int
    num_timesteps: int


def is_built() -> bool:
    """Whether the native library was built (an install without nvcc has none)."""
    return (files("ecgfast_kernels") / _NAME).is_file()


def decode_patches(
    chunks: ResidentChunks,
    records_B: "Tensor",
    mean_RC: "Tensor",
    rstd_RC: "Tensor",
    *,
    out: "Tensor",
    status: "Tensor",
) -> None:
    """Decode chunks to z-scored patches: z = (x - mean) * rstd (docs/format.md, 2.6).

    Args:
        chunks: the records held.
        records_B: (B,) int64 on the GPU, which chunk goes into each row.
        mean_RC: (R, C) float32 on the GPU, ADC units.
        rstd_RC: (R, C) float32 on the GPU.
        out: (B, N, 256) float16 on the GPU, filled; columns 250 to 255 are 0.
        status: (B,) int32 on the GPU, zeros; a bad chunk leaves its code (2.4) and rows of zeros.
    Raises:
        CudaCodecError: no library, a tensor of another dtype, shape or place, or a failed launch.
    """
    shape = (len(records_B), *_patch_shape(chunks.num_leads, chunks.num_timesteps))
    _check_chunks(chunks, records_B, status)
    _check_moments(mean_RC, rstd_RC, (len(chunks.offsets), chunks.num_leads))
    _check("out", out, "float16", shape)
    _launch(
        "ecgfast_cuda_decode_patches",
        *_chunk_arguments(chunks, records_B),
        mean_RC.data_ptr(),
        rstd_RC.data_ptr(),
        chunks.num_leads,
        chunks.num_timesteps,
        out=out,
        status=status,
    )


def decode(chunks: ResidentChunks, records_B: "Tensor", *, out: "Tensor", status: "Tensor") -> None:
    """Decode chunks to their integers; as `decode_patches`, but `out` is (B, C, T) int16."""
    _check_chunks(chunks, records_B, status)
    _check("out", out, "int16", (len(records_B), chunks.num_leads, chunks.num_timesteps))
    _launch(
        "ecgfast_cuda_decode",
        *_chunk_arguments(chunks, records_B),
        chunks.num_leads,
        chunks.num_timesteps,
        out=out,
        status=status,
    )


def gather_patches(
    signal_RCT: "Tensor",
    records_B: "Tensor",
    mean_RC: "Tensor",
    rstd_RC: "Tensor",
    *,
    out: "Tensor",
    status: "Tensor",
) -> None:
    """Gather, normalise and cut records that are decoded in GPU memory.

    Args:
        signal_RCT: (R, C, T) int16 on the GPU or in pinned host memory.
        records_B: (B,) int64 on the GPU, which record goes into each row.
        mean_RC: (R, C) float32 on the GPU, ADC units.
        rstd_RC: (R, C) float32 on the GPU.
        out: (B, N, 256) float16 on the GPU, filled; columns 250 to 255 are 0.
        status: (B,) int32 on the GPU, zeros; a number outside [0, R) leaves 100 and rows of zeros.
    Raises:
        CudaCodecError: as `decode_patches`.
    """
    num_held, num_leads, num_timesteps = signal_RCT.shape
    _check("signal", signal_RCT, "int16", (num_held, num_leads, num_timesteps), pinned=True)
    _check("records", records_B, "int64", (len(records_B),))
    _check("status", status, "int32", (len(records_B),))
    _check_moments(mean_RC, rstd_RC, (num_held, num_leads))
    shape = (len(records_B), *_patch_shape(num_leads, num_timesteps))
    _check("out", out, "float16", shape)
    _launch(
        "ecgfast_cuda_gather_patches",
        signal_RCT.data_ptr(),
        records_B.data_ptr(),
        num_held,
        len(records_B),
        mean_RC.data_ptr(),
        rstd_RC.data_ptr(),
        num_leads,
        num_timesteps,
        out=out,
        status=status,
    )


@cache
def _library() -> ctypes.CDLL:
    resource = files("ecgfast_kernels") / _NAME
    if not resource.is_file():
        raise CudaCodecError(
            f"{_NAME} was not built; install nvcc (pip install 'ecgfast[cuda]' brings it) and "
            "reinstall ecgfast, or take engine=cpu"
        )
    with as_file(resource) as path:
        library = ctypes.CDLL(str(path))
    i32, i64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    chunks = [pointer, i64, pointer, pointer, pointer, i64, i64]
    shape_and_target = [i32, i32, pointer, pointer, pointer]
    signatures = {
        "ecgfast_cuda_decode_patches": [*chunks, pointer, pointer, *shape_and_target],
        "ecgfast_cuda_decode": [*chunks, *shape_and_target],
        "ecgfast_cuda_gather_patches": [
            *[pointer] * 2,
            i64,
            i64,
            *[pointer] * 2,
            *shape_and_target,
        ],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_int, arguments
    library.ecgfast_cuda_error.restype = ctypes.c_char_p
    library.ecgfast_cuda_error.argtypes = [ctypes.c_int]
    return library


def _chunk_arguments(chunks: ResidentChunks, records_B: "Tensor") -> tuple[int, ...]:
    return (
        chunks.bytes.data_ptr(),
        chunks.bytes.numel(),
        chunks.offsets.data_ptr(),
        chunks.lengths.data_ptr(),
        records_B.data_ptr(),
        chunks.offsets.numel(),
        records_B.numel(),
    )


def _patch_shape(num_leads: int, num_timesteps: int) -> tuple[int, int]:
    return num_leads * num_timesteps // COLUMN_TIMESTEPS, PATCH_WIDTH


def _check_chunks(chunks: ResidentChunks, records_B: "Tensor", status: "Tensor") -> None:
    _check("bytes", chunks.bytes, "uint8", (chunks.bytes.numel(),), pinned=True)
    _check("offsets", chunks.offsets, "int64", (chunks.offsets.numel(),))
    _check("lengths", chunks.lengths, "int64", (chunks.offsets.numel(),))
    _check("records", records_B, "int64", (records_B.numel(),))
    _check("status", status, "int32", (records_B.numel(),))


def _check_moments(mean_RC: "Tensor", rstd_RC: "Tensor", shape: tuple[int, int]) -> None:
    _check("mean", mean_RC, "float32", shape)
    _check("rstd", rstd_RC, "float32", shape)


def _check(
    name: str, tensor: "Tensor", dtype: str, shape: tuple[int, ...], *, pinned: bool = False
) -> None:
    """Refuse tensors that the kernel, which gets only addresses, would misread."""
    reachable = tensor.is_cuda or (pinned and tensor.is_pinned())
    found = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    if found != (dtype, shape) or not tensor.is_contiguous() or not reachable:
        place = "on the GPU or pinned" if pinned else "on the GPU"
        raise CudaCodecError(
            f"{name} must be contiguous {dtype} {shape} {place}, got {found[0]} {found[1]} "
            f"on {tensor.device}"
        )


def _launch(name: str, *arguments: int, out: "Tensor", status: "Tensor") -> None:
    """Queue a kernel on the current stream of the GPU that holds `out`."""
    import torch

    with torch.cuda.device(out.device):  # a stream takes launches from its own device only
        stream = torch.cuda.current_stream().cuda_stream
        code = getattr(_library(), name)(*arguments, out.data_ptr(), status.data_ptr(), stream)
    if code != 0:
        raise CudaCodecError(
            f"the CUDA decoder failed: {_library().ecgfast_cuda_error(code).decode()}"
        )
