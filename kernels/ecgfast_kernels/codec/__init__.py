"""The ecgpack codec and other native passes over signals; imports neither torch nor triton.

The format is docs/format.md, chapter 2.
"""

from ecgfast_kernels.codec.chunks import (
    crc32c,
    decode,
    decode_patches,
    encode,
    lead_statistics,
    patches_from_int16,
)
from ecgfast_kernels.codec.format import COLUMN_TIMESTEPS, PATCH_WIDTH, CodecError
from ecgfast_kernels.codec.native import backend

__all__ = [
    "COLUMN_TIMESTEPS",
    "PATCH_WIDTH",
    "CodecError",
    "backend",
    "crc32c",
    "decode",
    "decode_patches",
    "encode",
    "lead_statistics",
    "patches_from_int16",
]
