"""Finds and loads the native codec library (kernels/csrc/codec.h), once per process."""

import ctypes
import logging
import os
import sys
from functools import cache
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from ecgfast_kernels.codec.format import CodecError, check_shape

BACKEND_VARIABLE = "ECGFAST_CODEC_BACKEND"
BACKENDS = ("avx512vbmi", "avx2", "portable", "numpy")

_NAME = "libecgfast_codec" + (".dylib" if sys.platform == "darwin" else ".so")
_logger = logging.getLogger("ecgfast")


class Chunks(ctypes.Structure):
    """`EcgfastChunks` of codec.h."""

    _fields_ = (
        ("buffer", ctypes.c_void_p),
        ("buffer_bytes", ctypes.c_int64),
        ("offsets", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("num_records", ctypes.c_int64),
        ("num_leads", ctypes.c_int32),
        ("num_timesteps", ctypes.c_int32),
    )


def _declare(library: ctypes.CDLL) -> None:
    """Declare every function of codec.h: ctypes would pass addresses as 32 bits otherwise."""
    i32, i64, u32, u64 = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32, ctypes.c_uint64
    pointer, chunks = ctypes.c_void_p, ctypes.POINTER(Chunks)
    signatures = {
        "ecgfast_backend": (ctypes.c_char_p, []),
        "ecgfast_set_backend": (i32, [ctypes.c_char_p]),
        "ecgfast_encode_bound": (i64, [i32, i32]),
        "ecgfast_encode": (i32, [pointer, i64, i32, i32, pointer, i64, pointer, i32]),
        "ecgfast_decode": (i32, [chunks, pointer, i32, i32, pointer]),
        "ecgfast_decode_patches": (i32, [chunks, *[pointer] * 3, i32, i32, pointer]),
        "ecgfast_patches": (None, [pointer, i64, i32, i32, *[pointer] * 3, i32]),
        "ecgfast_lead_statistics": (None, [pointer, pointer, i64, i64, pointer, pointer]),
        "ecgfast_fingerprints": (None, [pointer, i64, i64, i64, pointer, pointer]),
        "ecgfast_lead_measures": (None, [pointer, pointer, i64, i64, i64, *[pointer] * 3]),
        "ecgfast_deinterleave": (None, [pointer, i64, i64, pointer, pointer]),
        "ecgfast_crc32c": (u32, [pointer, i64]),
        "ecgfast_epoch_order": (i32, [u64, u32, i64, pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name, None)
        if function is None:
            raise CodecError(f"{_NAME} is of another version, it lacks {name}; reinstall ecgfast")
        function.restype, function.argtypes = result, arguments


@cache
def load() -> ctypes.CDLL | None:
    """The native library, or None where NumPy has to do its work.

    `ECGFAST_CODEC_BACKEND` names one of `BACKENDS` to use instead of the fastest.

    Raises:
        CodecError: this machine cannot run the backend that the variable names.
    """
    wanted = os.environ.get(BACKEND_VARIABLE, "")
    if wanted and wanted not in BACKENDS:
        raise CodecError(f"{BACKEND_VARIABLE} must be one of {', '.join(BACKENDS)}, got {wanted!r}")
    if wanted == "numpy":
        return None
    resource = files("ecgfast_kernels") / _NAME
    if not resource.is_file():
        if wanted:
            raise CodecError(f"{BACKEND_VARIABLE}={wanted} needs {_NAME}, which was not built")
        _logger.warning(
            "the native codec was not built (no C++ compiler at install time): the NumPy codec is "
            "some hundred times slower; install g++ or clang and reinstall ecgfast"
        )
        return None
    with as_file(resource) as path:
        library = ctypes.CDLL(str(path))
    _declare(library)
    if wanted and library.ecgfast_set_backend(wanted.encode()) != 0:
        raise CodecError(f"{BACKEND_VARIABLE}={wanted}: this CPU cannot run it; unset the variable")
    return library


def choose(name: str) -> bool:
    """Switch the loaded library to one of its backends, for tests and benchmarks.

    Args:
        name: one of `BACKENDS` but "numpy", or "" for the fastest.
    Returns:
        False, and nothing changes, where this machine cannot run it.
    """
    library = load()
    return library is not None and library.ecgfast_set_backend(name.encode()) == 0


def backend() -> str:
    """Which codec runs: one of `BACKENDS`."""
    library = load()
    return "numpy" if library is None else library.ecgfast_backend().decode()


def address(array: NDArray[np.generic]) -> int:
    """Address of an array's first byte; the array must be C-contiguous and outlive the call."""
    return array.ctypes.data


def int16_signal(signal_NCT: NDArray[np.int16]) -> NDArray[np.int16]:
    """A C-contiguous array of records, as the library reads them.

    Raises:
        CodecError: not (N, C, T) int16, or a shape that the format cannot hold.
    """
    if signal_NCT.ndim != 3 or signal_NCT.dtype != np.int16:
        raise CodecError(
            f"signal must be int16 (records, leads, timesteps), got {signal_NCT.dtype} "
            f"{signal_NCT.shape}"
        )
    check_shape(*signal_NCT.shape[1:])
    return np.ascontiguousarray(signal_NCT)
