"""Records that reach the corners of ecgpack, and chunks that somebody damaged."""

import numpy as np
from ecgfast_kernels import codec
from ecgfast_kernels.codec.reference import decode_chunk
from numpy.typing import NDArray

from ecgfast.bench.decode import ecg_like

__all__ = ["KINDS", "damage", "ecg_like", "signal_of", "status_of"]

KINDS = ("ecg", "noise", "flat", "square", "ramp", "rounded", "truncated", "spikes")


def signal_of(kind: str, num_leads: int, num_timesteps: int) -> NDArray[np.int16]:
    """(C, T) int16 that leads the encoder into one corner of the format."""
    rng = np.random.default_rng(len(kind) + num_leads)
    shape = (num_leads, num_timesteps)
    ecg = ecg_like(1, seed=num_leads, num_timesteps=num_timesteps)[0]
    ecg = np.resize(ecg, (num_leads, num_timesteps)) if num_leads > 12 else ecg[:num_leads]
    steps = np.cumsum(rng.integers(-3, 4, shape), axis=1)
    return {
        "ecg": ecg,
        "noise": rng.integers(-32768, 32768, shape),
        "flat": np.full(shape, -32768),
        "square": np.where(np.arange(num_timesteps) // 7 % 2, 32767, -32768) + np.zeros(shape),
        "ramp": steps + np.arange(num_timesteps) * 40,
        "rounded": np.rint(4.88 * steps),
        "truncated": np.trunc(4.8828125 * steps),
        "spikes": np.where(rng.random(shape) < 0.01, rng.integers(-9000, 9000, shape), 0),
    }[kind].astype(np.int16)


def status_of(chunk: bytes, shape: tuple[int, int]) -> int:
    """What the reference says about a chunk when the checksum is not compared."""
    try:
        decode_chunk(chunk, check=False, shape=shape)
    except codec.CodecError as error:
        return error.code
    return 0


def damage(chunk: bytes, rng: np.random.Generator) -> bytes:
    """Flip, set, cut or append some bytes, mostly in the headers, where it hurts."""
    data = bytearray(chunk)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, min(len(data), 120) if rng.random() < 0.7 else len(data)))
        data[at] = (
            int(rng.integers(0, 256)) if rng.random() < 0.5 else data[at] ^ 1 << rng.integers(8)
        )
    tail = rng.random()
    if tail < 0.1:
        del data[int(rng.integers(0, len(data))) :]
    elif tail < 0.2:
        data += bytes(int(rng.integers(1, 40)))
    return bytes(data)
