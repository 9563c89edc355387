"""What electrodes add to the heart's signal: muscle, mains, baseline wander, motion."""

import numpy as np
from numpy.typing import NDArray

from ecgfast.ingest.synthetic_population import Site

NUM_INDEPENDENT = 8
_WANDER_HZ = (0.12, 0.27, 0.46)


def add_noise(signal_8T: NDArray[np.float32], site: Site, rng: np.random.Generator) -> None:
    """Add noise in place, then the machine's low-pass.

    Args:
        signal_8T: (8, T) float32 mV, rows I, II, V1..V6.
        site: how loud each kind is; its sampling rate is not used.
        rng: random stream of the record.
    """
    num_timesteps = signal_8T.shape[1]
    loudness = np.exp(0.45 * rng.normal(size=3))  # of muscle, mains, wander in this record
    muscle = rng.standard_normal((NUM_INDEPENDENT, num_timesteps), dtype=np.float32)
    each = site.muscle_mv * loudness[0] * rng.uniform(0.6, 1.4, NUM_INDEPENDENT)
    muscle *= each.astype(np.float32)[:, None]
    signal_8T += muscle
    signal_8T += _slow(site, loudness, rng, num_timesteps)
    for _ in range(site.smoothing_passes):
        middle = signal_8T[:, :-2] + signal_8T[:, 2:]
        middle *= np.float32(0.25)
        signal_8T[:, 1:-1] *= np.float32(0.5)
        signal_8T[:, 1:-1] += middle


def _slow(
    site: Site, loudness: NDArray[np.float64], rng: np.random.Generator, num_timesteps: int
) -> NDArray[np.float32]:
    """Return (8, T): mains hum, respiration and drift, and at times an electrode that moves."""
    time = np.linspace(0.0, 10.0, num_timesteps, endpoint=False, dtype=np.float32)
    waves = np.empty((len(_WANDER_HZ) + 2, num_timesteps), np.float32)
    for row, frequency in enumerate(_WANDER_HZ):
        omega = 2 * np.pi * frequency * rng.uniform(0.8, 1.2)
        np.sin(np.float32(omega) * time + np.float32(rng.uniform(0, 6.28)), out=waves[row])
    np.sin(
        np.float32(2 * np.pi * site.mains_hz) * time + np.float32(rng.uniform(0, 6.28)),
        out=waves[-2],
    )
    moved = rng.random() < 0.12
    at, over = rng.uniform(0.5, 9.5), rng.uniform(0.05, 0.25)
    waves[-1] = np.tanh((time - np.float32(at)) / np.float32(over)) if moved else 0.0
    weights = rng.normal(size=(NUM_INDEPENDENT, len(waves)))
    weights[:, : len(_WANDER_HZ)] *= site.wander_mv * loudness[2] * np.array([1.0, 0.7, 0.3])
    weights[:, -2] *= site.mains_mv * loudness[1]
    weights[:, -1] *= np.where(np.arange(NUM_INDEPENDENT) == rng.integers(NUM_INDEPENDENT), 0.25, 0)
    slow: NDArray[np.float32] = weights.astype(np.float32) @ waves
    return slow
