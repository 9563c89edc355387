"""Records that the codec tests share: from flat lines to noise that cannot be compressed."""

import numpy as np
from ecgfast_kernels.codec import native
from ecgfast_kernels.codec.format import COLUMN_TIMESTEPS
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
