"""Records for the codec tests, from flat lines to noise, and chunks that are damaged."""

import numpy as np
from ecgfast_kernels import codec
from ecgfast_kernels.codec import native
from ecgfast_kernels.codec.format import COLUMN_TIMESTEPS
from ecgfast_kernels.codec.reference import decode_chunk
from hypothesis import strategies as st
from numpy.typing import NDArray

NATIVE = native.load() is not None


def native_backends() -> list[str]:
    """Every backend of the native library that this CPU can run."""
    found = [name for name in native.BACKENDS if name != "numpy" and native.choose(name)]
    native.choose("")
    return found


def set_backend(name: str) -> None:
    """Make the native library use one backend; "" for the fastest."""
    assert native.choose(name)


def _walk(rng: np.random.Generator, shape: tuple[int, int], steps: int) -> NDArray[np.float64]:
    return np.cumsum(rng.integers(-steps, steps + 1, shape), axis=1).astype(np.float64)


def _limb_leads(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """III, aVR, aVL and aVF follow from I and II but for one unit; V leads resemble each other."""
    x = _walk(rng, shape, 30) + rng.integers(-1, 2, shape)
    if shape[0] >= 6:
        one, two = x[0], x[1]
        x[2:6] = [two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    for lead in range(7, min(shape[0], 12)):
        x[lead] = x[lead - 1] + rng.integers(-2, 3, shape[1])
    return x


KINDS = {
    "noise": lambda rng, s: rng.integers(-32768, 32768, s),
    "loud": lambda rng, s: rng.integers(-3000, 3000, s),
    "zeros": lambda rng, s: np.zeros(s),
    "constant": lambda rng, s: np.full(s, rng.integers(-32768, 32768)),
    "extremes": lambda rng, s: rng.choice([-32768, 32767], s),
    "invalid": lambda rng, s: np.where(rng.random(s) < 0.1, -32768, _walk(rng, s, 9)),
    "walk": lambda rng, s: _walk(rng, s, 9),
    "smooth": lambda rng, s: np.cumsum(_walk(rng, s, 2), axis=1),
    "wrapping": lambda rng, s: _walk(rng, s, 9000),
    "limb": _limb_leads,
    "rounded": lambda rng, s: np.round(4.88 * _walk(rng, s, 5)),
    "cut": lambda rng, s: np.trunc(4.88 * _walk(rng, s, 5)),
    "mixed grid": lambda rng, s: np.round(rng.choice([2.44, 2.5, 4.8828125]) * _walk(rng, s, 5)),
    "gains": lambda rng, s: rng.integers(2, 40) * _walk(rng, s, 5),
    "spikes": lambda rng, s: np.where(rng.random(s) < 0.01, rng.integers(-32768, 32768, s), 7),
}


def make(kind: str, num_leads: int, num_timesteps: int, seed: int = 0) -> NDArray[np.int16]:
    """One record (C, T) int16; what leaves the range wraps."""
    rng = np.random.default_rng(seed)
    values = np.asarray(KINDS[kind](rng, (num_leads, num_timesteps)))
    return values.astype(np.int64).astype(np.int16)


def records(max_timesteps: int = 20_000) -> st.SearchStrategy[NDArray[np.int16]]:
    """Any kind, 1 to 16 leads, 250 to 20,000 timesteps."""
    columns = max_timesteps // COLUMN_TIMESTEPS
    return st.builds(
        make,
        st.sampled_from(sorted(KINDS)),
        st.integers(1, 16),
        st.one_of(st.integers(1, 4), st.integers(1, columns)).map(lambda j: j * COLUMN_TIMESTEPS),
        st.integers(0, 2**32),
    )


CORNERS = ("ecg", "noise", "flat", "square", "ramp", "rounded", "truncated", "spikes")


def signal_of(kind: str, num_leads: int, num_timesteps: int) -> NDArray[np.int16]:
    """(C, T) int16 that leads the encoder into one corner of the format."""
    from ecgfast.bench.codec import ecg_like  # loads torch, which `make` does without

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
    """The reference's error on a chunk when the checksum is not compared."""
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
