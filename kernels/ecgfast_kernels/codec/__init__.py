"""The ecgpack codec and other native passes over signals; imports neither torch nor triton.

The format is docs/format.md, chapter 2.
"""

from ecgfast_kernels.codec.chunks import (
    check_crcs,
    crc32c,
    decode,
    decode_patches,
    encode,
    patches_from_int16,
    raw_chunks,
)
from ecgfast_kernels.codec.format import COLUMN_TIMESTEPS, PATCH_WIDTH, CodecError
from ecgfast_kernels.codec.native import backend
from ecgfast_kernels.codec.signals import lead_statistics

__all__ = [
    "COLUMN_TIMESTEPS",
    "PATCH_WIDTH",
    "CodecError",
    "backend",
    "check_crcs",
    "crc32c",
    "decode",
    "decode_patches",
    "encode",
    "lead_statistics",
    "patches_from_int16",
    "raw_chunks",
]
