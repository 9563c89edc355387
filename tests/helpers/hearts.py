"""Hand-made ECGs of hearts that differ: three dipole directions, beats at given times, noise."""

import numpy as np
from numpy.typing import NDArray

# Of P, two of QRS, T: place in seconds from the R peak, width in seconds.
_WAVES = ((-0.16, 0.02), (0.0, 0.012), (0.03, 0.014), (0.27, 0.05))


def heart(seed: int) -> NDArray[np.float64]:
    """(8, 4) millivolt of each wave in I, II, V1 to V6."""
    rng = np.random.default_rng(seed)
    shape: NDArray[np.float64] = rng.normal(size=(8, 4)) * np.array([0.1, 1.0, 0.6, 0.25])
    return shape


def irregular(seconds: float, seed: int) -> NDArray[np.float64]:
    """Beat times with intervals of 0.75 to 0.95 s."""
    intervals = np.random.default_rng(seed).uniform(0.75, 0.95, int(seconds * 2))
    times: NDArray[np.float64] = 0.4 + np.cumsum(intervals)
    return times[times < seconds]


def recording(
    shape: NDArray[np.float64], beats: NDArray[np.float64], *, seconds: float, seed: int
) -> NDArray[np.int16]:
    """(12, 500 s) digits of 5 microvolt: beats, wander of the baseline, noise of 10 microvolt."""
    time = np.arange(int(seconds * 500)) / 500
    rng = np.random.default_rng(seed)
    millivolt = 0.01 * rng.normal(size=(8, len(time)))
    phase = rng.uniform(0, 6.28, (8, 1))
    millivolt += 0.05 * np.sin(2 * np.pi * rng.uniform(0.15, 0.4) * time + phase)
    for wave, (place, width) in enumerate(_WAVES):
        course = np.exp(-0.5 * ((time - beats[:, None] - place) / width) ** 2).sum(axis=0)
        millivolt += shape[:, wave, None] * course
    digits = np.rint(200 * millivolt)
    one, two = digits[:2]
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.rint(np.stack([*limb, *digits[2:]])).astype(np.int16)
