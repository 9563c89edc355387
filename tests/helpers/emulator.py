"""Compiles warp_emulator.cpp and calls it: the CUDA decoder's logic on a CPU, lane by lane."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]


class WarpFaultError(AssertionError):
    """A lane left its buffers, stored unaligned, or missed a shuffle that others took."""


def aligned(num_bytes: int) -> NDArray[np.uint8]:
    """Exactly so many bytes, the first at a multiple of 16; filled with 0xA5, not with zeros."""
    buffer = np.full(num_bytes + 16, 0xA5, np.uint8)
    start = -buffer.ctypes.data % 16
    return buffer[start : start + num_bytes]


def pack(chunks: list[bytes], *, gap: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Chunks one after another, `gap` bytes before each; returns the buffer and the offsets."""
    lengths = np.array([len(chunk) for chunk in chunks], np.int64)
    offsets = np.cumsum(lengths + gap) - lengths
    buffer = aligned(int((lengths + gap).sum()))
    for start, chunk in zip(offsets.tolist(), chunks, strict=True):
        buffer[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
    return buffer, offsets


class Emulator:
    """The kernels of codec_cuda.h with NumPy arrays in place of device memory."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("decode", "decode_patches", "gather_patches"):
            getattr(self._library, f"emulate_{name}").restype = ctypes.c_char_p

    @classmethod
    def build(cls, folder: Path) -> "Emulator":
        """Compile into `folder`; the flags are those of the native codec."""
        compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        assert compiler is not None
        library = folder / "warp_emulator.so"
        flags = "-std=c++17 -O2 -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off"
        source = ROOT / "tests" / "kernels" / "warp_emulator.cpp"
        include = f"-I{ROOT / 'kernels' / 'csrc'}"
        subprocess.run(
            [
                compiler,
                *flags.split(),
                "-shared",
                "-fPIC",
                include,
                str(source),
                "-o",
                str(library),
            ],
            check=True,
        )
        return cls(library)

    def stage_bytes(self, num_leads: int, *, to_signal: bool) -> int:
        """Shared memory of one warp."""
        return int(self._library.emulate_stage_bytes(num_leads, int(to_signal)))

    def decode(
        self,
        buffer: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        shape: tuple[int, int],
        records: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
        """Returns (B, C, T) int16 and (B,) status."""
        rows = len(offsets if records is None else records)
        out = aligned(rows * shape[0] * shape[1] * 2).view(np.int16).reshape(rows, *shape)
        status = np.zeros(rows, np.int32)
        arguments = _chunks(buffer, offsets, lengths, records)
        self._run("decode", *arguments, *shape, _pointer(out), _pointer(status))
        return out, status

    def decode_patches(
        self,
        buffer: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        shape: tuple[int, int],
        mean: NDArray[np.float32],
        rstd: NDArray[np.float32],
        records: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """Returns (B, N, 256) fp16 and (B,) status."""
        rows = len(offsets if records is None else records)
        out, status = _patches(rows, shape), np.zeros(rows, np.int32)
        moments = (_pointer(mean), _pointer(rstd))
        arguments = _chunks(buffer, offsets, lengths, records)
        target = (_pointer(out), _pointer(status))
        self._run("decode_patches", *arguments, *moments, *shape, *target)
        return out, status

    def gather_patches(
        self,
        signal: NDArray[np.int16],
        records: NDArray[np.int64],
        mean: NDArray[np.float32],
        rstd: NDArray[np.float32],
    ) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """Returns (B, N, 256) fp16 and (B,) status."""
        shape = (signal.shape[1], signal.shape[2])
        out, status = _patches(len(records), shape), np.zeros(len(records), np.int32)
        counts = (ctypes.c_int64(len(signal)), ctypes.c_int64(len(records)))
        inputs = (_pointer(signal), _pointer(records), *counts, _pointer(mean), _pointer(rstd))
        self._run("gather_patches", *inputs, *shape, _pointer(out), _pointer(status))
        return out, status

    def _run(self, name: str, *arguments: object) -> None:
        fault = getattr(self._library, f"emulate_{name}")(*arguments)
        if fault is not None:
            raise WarpFaultError(fault.decode())


def _patches(rows: int, shape: tuple[int, int]) -> NDArray[np.float16]:
    patches = shape[0] * shape[1] // 250
    return aligned(rows * patches * 512).view(np.float16).reshape(rows, patches, 256)


def _chunks(
    buffer: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    records: NDArray[np.int64] | None,
) -> tuple[object, ...]:
    rows = len(offsets if records is None else records)
    return (
        _pointer(buffer),
        ctypes.c_int64(len(buffer)),
        _pointer(offsets),
        _pointer(lengths),
        None if records is None else _pointer(records),
        ctypes.c_int64(len(offsets)),
        ctypes.c_int64(rows),
    )


def _pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
