"""Synthetic waveforms: a dipole model of the heart, projected on 8 leads, and added noise.

The heart vector has Frank's axes: x to the left, y down, z to the back; times in seconds from the R
peak, amplitudes in mV. Sources: McSharry et al. 2003 (waves as Gaussians), Dower et al. 1980
(projection). Weak systolic function widens and notches the QRS, turns it to the back (poor R
progression), flattens and delays T, lengthens P. A case differs from a control by 2.2 standard
deviations of one hidden severity: a QRS wider by 14 timesteps of 2 ms, an R wave by 4, a T wave
later by 10 and a third as high. Patients differ by half as much anyway.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LOW_EF = 40.0  # percent; below it, left ventricular systolic dysfunction
DURATION_S = 10.0
NUM_INDEPENDENT = 8  # leads I, II, V1..V6; the other four follow from I and II
FloatArray = NDArray[np.float32]

# Dower, Machado & Osborne 1980: rows I, II, V1..V6; columns x, y, z.
DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)

# wave: centre, width (both s), x, y, z (mV). Two Gaussians each for P (right, left atrium) and T.
_WAVES = np.array(
    [
        [-0.160, 0.018, 0.035, 0.085, -0.045],  # P, right atrium
        [-0.128, 0.020, 0.060, 0.045, 0.030],  # P, left atrium
        [-0.022, 0.008, -0.150, -0.040, -0.220],  # Q: septum
        [0.000, 0.0105, 1.000, 0.720, 0.400],  # R: left ventricle
        [0.024, 0.009, -0.100, -0.220, 0.480],  # S: base
        [0.013, 0.005, 0.300, 0.100, 0.250],  # notch, present with a weak ventricle
        [0.235, 0.052, 0.130, 0.090, -0.090],  # T, rising
        [0.290, 0.030, 0.190, 0.150, -0.110],  # T, falling
        [0.010, 0.034, -0.900, 0.900, 0.500],  # ventricular extrasystole
        [0.300, 0.060, 0.320, -0.320, -0.180],  # and its T
    ]
)
_P, _QRS, _NOTCH, _T, _ECTOPIC = slice(0, 2), slice(2, 6), 5, slice(6, 8), slice(8, 10)
_FIRST_ECTOPIC = 8
_ATRIUM = np.array([0.0, 0.012, -0.05])  # fibrillation, seen best in V1
_WANDER_HZ = (0.12, 0.27, 0.46)


class Noise(NamedTuple):
    """Typical noise of a hospital's machines, and their low-pass.

    Attributes:
        mains_hz: 50 or 60.
        mains_mv: amplitude of mains hum.
        muscle_mv: standard deviation of muscle noise.
        wander_mv: amplitude of baseline wander; small where the machine filters it.
        smoothing_passes: passes of a (1, 2, 1) / 4 low-pass, as muscle filters do.
    """

    mains_hz: float
    mains_mv: float
    muscle_mv: float
    wander_mv: float
    smoothing_passes: int


@dataclass(frozen=True, kw_only=True)
class Heart:
    """One record's wave table and rhythm.

    Attributes:
        waves: (10, 5) float64, rows as `_WAVES`.
        projection: (8, 3) float64, Dower's with this patient's electrode positions.
        r_peaks_s: (K,) float64, the first before 0, the last after `DURATION_S`.
        ectopic: (K,) bool, ventricular extrasystoles.
        fibrillation_hz: of the atria, or 0.
    """

    waves: NDArray[np.float64]
    projection: NDArray[np.float64]
    r_peaks_s: NDArray[np.float64]
    ectopic: NDArray[np.bool_]
    fibrillation_hz: float


def draw_heart(
    ejection_fraction: float,
    age: int,
    anatomy: np.random.Generator,
    now: np.random.Generator,
    *,
    label_signal: float = 1.0,
) -> Heart:
    """Draw the heart of one record.

    Args:
        ejection_fraction: percent; shifts the means of many parameters.
        age: years; raises the chance of atrial fibrillation.
        anatomy: random stream of the patient, the same for all records.
        now: random stream of the record.
        label_signal: what the ejection fraction does to the signal, times; 0 for nothing.
    """
    weakness = 1.0 / (1.0 + np.exp((ejection_fraction - LOW_EF - 3.0) / 3.0))  # 0..1
    # One hidden severity, of unit variance among the healthy: it bounds what any model can reach.
    shift = 2.2 * label_signal * weakness
    severity = float(shift + anatomy.normal() * 0.95 + now.normal() * 0.3)
    waves = _shape(severity, anatomy, now)
    projection = DOWER * (1.0 + 0.10 * anatomy.normal(size=DOWER.shape))
    projection += 0.05 * now.normal(size=DOWER.shape) * np.linalg.norm(DOWER, axis=1)[:, None]
    fibrillates = anatomy.random() < 0.03 + 0.001 * max(age - 50, 0)
    if fibrillates:
        waves[_P, 2:] = 0.0
    r_peaks, ectopic = _rhythm(severity, fibrillates, anatomy, now)
    return Heart(
        waves=waves,
        projection=projection,
        r_peaks_s=r_peaks,
        ectopic=ectopic,
        fibrillation_hz=float(now.uniform(5.0, 7.5)) if fibrillates else 0.0,
    )


def _shape(
    severity: float, anatomy: np.random.Generator, now: np.random.Generator
) -> NDArray[np.float64]:
    """Return this heart's wave table."""
    waves = _WAVES.copy()
    normal = anatomy.normal(size=8)
    size = np.exp(0.22 * normal[0])
    qrs_width = np.clip(1.0 + 0.16 * severity + 0.06 * normal[1], 0.7, 2.2)
    waves[_QRS, :2] *= qrs_width
    waves[_NOTCH, 2:] *= np.clip(0.25 * severity + 0.45 * normal[2], -0.5, 2.0)
    waves[_P, 0] += 0.020 * normal[3] - 0.03 * (qrs_width - 1.0)  # PR interval
    waves[_P, 1] *= np.clip(1.0 + 0.05 * severity, 0.8, 1.4)
    waves[_P, 2:] *= np.exp(0.25 * normal[4])
    waves[_T, :2] *= np.clip(1.0 + 0.03 * severity + 0.03 * normal[5], 0.85, 1.3)  # QT
    waves[_T, 2:] *= np.clip(1.0 - 0.30 * severity + 0.30 * normal[6], -0.6, 2.0)
    _turn(waves[2:8], (2, 3), 24.0 * normal[7])  # electrical axis, frontal plane
    _turn(waves[2:6], (2, 4), 8.0 * severity + 14.0 * anatomy.normal())  # R progression
    _turn(waves[_T], (2, 4), 16.0 * anatomy.normal())
    _turn(waves[_ECTOPIC], (2, 3), 80.0 * now.normal())
    waves[:, 2:] *= size * (1.0 + 0.04 * now.normal())
    return waves


def _turn(waves: NDArray[np.float64], plane: tuple[int, int], degrees: float) -> None:
    """Rotate the vectors of some waves in place, in the plane of two columns."""
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    first, second = waves[:, plane[0]].copy(), waves[:, plane[1]].copy()
    waves[:, plane[0]] = cosine * first - sine * second
    waves[:, plane[1]] = sine * first + cosine * second


def _rhythm(
    severity: float, fibrillates: bool, anatomy: np.random.Generator, now: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return R peaks in seconds and which of them are extrasystoles."""
    rate = float(np.clip(anatomy.normal(71.0, 11.0) + now.normal(0, 4.0) + severity, 46, 108))
    mean_rr = 60.0 / rate
    count = int(np.ceil(DURATION_S / mean_rr * 1.25)) + 6
    beat = np.arange(count)
    variation = 0.16 if fibrillates else 0.012
    breath = 0.0 if fibrillates else now.uniform(0.01, 0.05)
    rr = mean_rr * (
        1.0
        + variation * now.normal(size=count)
        + breath * np.sin(2 * np.pi * beat * mean_rr * now.uniform(0.2, 0.3) + now.uniform(0, 6.3))
    )
    rr = np.maximum(rr, 0.5)
    ectopic = np.zeros(count, bool)
    if mean_rr > 0.68 and now.random() < np.clip(0.08 + 0.02 * severity, 0.0, 0.2):
        ectopic[1:-1] = now.random(count - 2) < 0.12
        ectopic[2:] &= ~ectopic[1:-1]  # never two in a row
        rr[ectopic] *= 0.68
        rr[1:][ectopic[:-1]] *= 1.28  # compensatory pause
    peaks = np.cumsum(rr) - rr[0] - now.uniform(0.0, mean_rr) - 0.5 * mean_rr
    return peaks, ectopic


def heart_signal(heart: Heart, sampling_rate_hz: int) -> FloatArray:
    """Render a heart on the 8 independent leads.

    Args:
        heart: of `draw_heart`.
        sampling_rate_hz: timesteps per second.
    Returns:
        (8, T) float32 mV, rows I, II, V1..V6, `DURATION_S` long, free of noise.
    """
    num_timesteps = int(DURATION_S * sampling_rate_hz)
    since_r, stretch, ectopic = _beat_clock(heart, sampling_rate_hz, num_timesteps)
    active = _FIRST_ECTOPIC if ectopic is None else len(heart.waves)
    table = heart.waves[:active].astype(np.float32)
    inverse = (np.sqrt(0.5) / table[:, 1]).astype(np.float32)
    argument = (since_r - table[:, :1]) * inverse[:, None]
    # T follows the length of the cycle (Bazett): its clock runs slower after a long one.
    argument[_T] = (since_r * stretch - table[_T, :1]) * inverse[_T, None]
    np.multiply(argument, argument, out=argument)
    np.negative(argument, out=argument)
    activity = np.exp(argument, out=argument)  # (G, T)
    if ectopic is not None:
        activity[:_FIRST_ECTOPIC, ectopic] = 0.0
        activity[_ECTOPIC, ~ectopic] = 0.0
    mixing = (heart.projection @ heart.waves[:active, 2:].T).astype(np.float32)  # (8, G)
    signal: FloatArray = mixing @ activity
    if heart.fibrillation_hz:
        signal += _fibrillation(heart, sampling_rate_hz, num_timesteps)
    return signal


def _beat_clock(
    heart: Heart, sampling_rate_hz: int, num_timesteps: int
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_] | None]:
    """Return, for each timestep, seconds since its beat's R peak, T's stretch, and ectopy.

    A beat begins where the previous T has ended: 0.24 s before R, 0.1 s for an extrasystole (no P).
    """
    peaks = heart.r_peaks_s
    begins = peaks - np.where(heart.ectopic, 0.10, 0.24)
    first = np.clip(np.ceil(begins * sampling_rate_hz), 0, num_timesteps).astype(np.int64)
    first[0] = 0
    lengths = np.diff(first, append=num_timesteps)
    previous_rr = np.diff(peaks, prepend=peaks[0] - (peaks[1] - peaks[0]))
    stretch = 1.0 / np.sqrt(np.clip(previous_rr, 0.5, 1.4))
    clock = np.arange(num_timesteps) / sampling_rate_hz - np.repeat(peaks, lengths)
    per_timestep = np.repeat(stretch.astype(np.float32), lengths)
    ectopic = np.repeat(heart.ectopic, lengths) if heart.ectopic.any() else None
    return clock.astype(np.float32), per_timestep, ectopic


def _fibrillation(heart: Heart, sampling_rate_hz: int, num_timesteps: int) -> FloatArray:
    """Return (8, T) fibrillatory waves: an uneven oscillation of the atria."""
    time = np.arange(num_timesteps, dtype=np.float32) / np.float32(sampling_rate_hz)
    phase = np.float32(2 * np.pi * heart.fibrillation_hz) * time
    wave = np.sin(phase + 1.5 * np.sin(np.float32(2 * np.pi * 0.7) * time)) + 0.5 * np.sin(
        1.7 * phase
    )
    waves: FloatArray = np.outer(heart.projection @ _ATRIUM, wave).astype(np.float32)
    return waves


def add_noise(signal_8T: FloatArray, noise: Noise, rng: np.random.Generator) -> None:
    """Add what electrodes pick up besides the heart, then apply the machine's low-pass, in place.

    Args:
        signal_8T: (8, T) float32 mV, rows I, II, V1..V6.
        noise: typical amplitudes, varied for this record.
        rng: random stream of the record.
    """
    num_timesteps = signal_8T.shape[1]
    factors = np.exp(0.45 * rng.normal(size=3))  # of muscle, mains, wander in this record
    muscle = rng.standard_normal((NUM_INDEPENDENT, num_timesteps), dtype=np.float32)
    each = noise.muscle_mv * factors[0] * rng.uniform(0.6, 1.4, NUM_INDEPENDENT)
    muscle *= each.astype(np.float32)[:, None]
    signal_8T += muscle
    signal_8T += _slow(noise, factors, rng, num_timesteps)
    for _ in range(noise.smoothing_passes):
        middle = signal_8T[:, :-2] + signal_8T[:, 2:]
        middle *= np.float32(0.25)
        signal_8T[:, 1:-1] *= np.float32(0.5)
        signal_8T[:, 1:-1] += middle


def _slow(
    noise: Noise, factors: NDArray[np.float64], rng: np.random.Generator, num_timesteps: int
) -> FloatArray:
    """Return (8, T): mains hum, respiration and drift, and at times an electrode that moves."""
    time = np.linspace(0.0, 10.0, num_timesteps, endpoint=False, dtype=np.float32)
    waves = np.empty((len(_WANDER_HZ) + 2, num_timesteps), np.float32)
    for row, frequency in enumerate(_WANDER_HZ):
        omega = 2 * np.pi * frequency * rng.uniform(0.8, 1.2)
        np.sin(np.float32(omega) * time + np.float32(rng.uniform(0, 6.28)), out=waves[row])
    np.sin(
        np.float32(2 * np.pi * noise.mains_hz) * time + np.float32(rng.uniform(0, 6.28)),
        out=waves[-2],
    )
    moved = rng.random() < 0.12
    at, over = rng.uniform(0.5, 9.5), rng.uniform(0.05, 0.25)
    waves[-1] = np.tanh((time - np.float32(at)) / np.float32(over)) if moved else 0.0
    weights = rng.normal(size=(NUM_INDEPENDENT, len(waves)))
    weights[:, : len(_WANDER_HZ)] *= noise.wander_mv * factors[2] * np.array([1.0, 0.7, 0.3])
    weights[:, -2] *= noise.mains_mv * factors[1]
    weights[:, -1] *= np.where(np.arange(NUM_INDEPENDENT) == rng.integers(NUM_INDEPENDENT), 0.25, 0)
    slow: FloatArray = weights.astype(np.float32) @ waves
    return slow
