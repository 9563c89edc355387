"""Hand-made features of an ECG: rhythm, amplitudes, areas and samples of the median beat, spectrum.

What a random forest needs to be a serious opponent of a learned encoder. Shapes: C = 12 leads, T
timesteps at 500 Hz, S samples of a beat.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, find_peaks, sosfiltfilt, welch
from scipy.stats import kurtosis

Floats = NDArray[np.float64]

_RATE_HZ = 500
_BEFORE, _AFTER = 150, 250  # timesteps of a beat around its R wave: 0.3 s and 0.5 s
_NEAR = 60  # timesteps around the R wave that hold the QRS complex
_BANDS_HZ = ((0.5, 3), (3, 8), (8, 15), (15, 30), (30, 100))
_SAMPLE_EVERY = 16  # of the median beat: 31 Hz
_SHIFTS = range(-25, 26, 2)  # by which a beat is aligned


def hand_features(signal_uv: NDArray[np.float32]) -> Floats:
    """Describe a record in 547 numbers.

    Args:
        signal_uv: (12, T) microvolt.
    """
    signal = _filtered(signal_uv.astype(np.float64) / 1000, 0.5, "highpass")
    peaks = _r_peaks(signal)
    smooth = _filtered(signal, 40.0, "lowpass")
    beats = _aligned_beats(smooth, peaks)
    beat = np.median(beats, axis=0)
    beat -= np.median(beat[:, _BEFORE - _NEAR : _BEFORE - 35], axis=1, keepdims=True)
    spread = (beats - np.median(beats, axis=0)).std() / (beat.std() + 1e-9)
    begin, end = _qrs(beat)
    parts = [
        _rhythm(peaks),
        np.array([spread]),
        _beat_as_a_whole(beat, begin, end),
        _beat_by_lead(beat, begin, end).ravel(),
        _strip_by_lead(signal).ravel(),
        beat[:, ::_SAMPLE_EVERY].ravel(),
    ]
    return np.nan_to_num(np.concatenate(parts))


def _filtered(signal_CT: Floats, hertz: float | tuple[float, float], kind: str) -> Floats:
    out: Floats = sosfiltfilt(butter(2, hertz, kind, fs=_RATE_HZ, output="sos"), signal_CT)
    return out


def _r_peaks(signal_CT: Floats) -> NDArray[np.int64]:
    """Timesteps of R waves, far enough from both ends for a whole beat; at least one."""
    energy_CT = _filtered(signal_CT, (8.0, 25.0), "bandpass") ** 2
    energy_T = np.sqrt(energy_CT / (energy_CT.mean(axis=1, keepdims=True) + 1e-12)).mean(axis=0)
    energy_T = np.convolve(energy_T, np.ones(50) / 50, "same")
    peaks, _ = find_peaks(
        energy_T, height=0.4 * np.quantile(energy_T, 0.98), distance=int(0.3 * _RATE_HZ)
    )
    length, margin = signal_CT.shape[1], max(_SHIFTS)
    inside = (peaks >= _BEFORE + margin) & (peaks < length - _AFTER - margin)
    return peaks[inside] if inside.any() else np.array([length // 2])


def _aligned_beats(signal_CT: Floats, peaks: NDArray[np.int64]) -> Floats:
    """Beats (n, C, S), each moved to where its QRS complex fits the median one best."""
    beats = np.stack([signal_CT[:, p - _BEFORE : p + _AFTER] for p in peaks])
    near = slice(_BEFORE - _NEAR, _BEFORE + _NEAR)
    model = np.median(beats, axis=0)[:, near]

    def fit(peak: int, shift: int) -> float:
        begin = peak + shift - _NEAR
        return float((signal_CT[:, begin : begin + 2 * _NEAR] * model).sum())

    moved = [p + max(_SHIFTS, key=lambda shift, p=p: fit(p, shift)) for p in peaks.tolist()]
    return np.stack([signal_CT[:, p - _BEFORE : p + _AFTER] for p in moved])


def _qrs(beat_CS: Floats) -> tuple[int, int]:
    """First and last sample of the QRS complex, from the speed of all leads together."""
    speed_S = np.sqrt((np.diff(beat_CS, axis=1) ** 2).sum(axis=0))
    speed_S = np.convolve(speed_S, np.ones(5) / 5, "same")
    fastest = _BEFORE - _NEAR + int(np.argmax(speed_S[_BEFORE - _NEAR : _BEFORE + _NEAR]))
    least = 0.12 * speed_S[fastest]
    begin = end = fastest
    while begin > 4 and speed_S[begin - 4 : begin + 1].max() > least:
        begin -= 1
    while end < len(speed_S) - 5 and speed_S[end : end + 5].max() > least:
        end += 1
    return begin, max(end, begin + 3)


def _rhythm(peaks: NDArray[np.int64]) -> Floats:
    """Heart rate, and how the intervals between beats scatter."""
    rr = np.diff(peaks) / _RATE_HZ if len(peaks) > 1 else np.array([1.0])
    change = np.diff(rr) if len(rr) > 1 else np.zeros(1)
    middle = np.median(rr)
    return np.array(
        [
            *(60 / middle, rr.std(), np.sqrt((change**2).mean()), rr.std() / rr.mean()),
            *(rr.min() / middle, rr.max() / middle, len(peaks)),
        ]
    )


def _beat_as_a_whole(beat_CS: Floats, begin: int, end: int) -> Floats:
    """Durations, axes of QRS and T, and the voltage sums of hypertrophy."""
    size_S = np.sqrt((beat_CS**2).sum(axis=0))
    after = _t_begin(beat_CS, end)
    before_S = size_S[_p_wave(begin)]
    qrs_C, t_C = beat_CS[:, begin:end].sum(axis=1), beat_CS[:, after:].sum(axis=1)
    angle = qrs_C @ t_C / (np.linalg.norm(qrs_C) * np.linalg.norm(t_C) + 1e-9)
    i, avl, avf, v1, v3, v5, v6 = 0, 4, 5, 6, 8, 10, 11
    sokolow = max(beat_CS[v5].max(), beat_CS[v6].max()) - beat_CS[v1].min()
    return np.array(
        [
            *(end - begin, _BEFORE - begin, end - _BEFORE),
            after + np.argmax(size_S[after:]) - begin,
            *(before_S.max(), len(before_S) - np.argmax(before_S)),
            *(np.arctan2(qrs_C[avf], qrs_C[i]), np.arctan2(t_C[avf], t_C[i]), angle),
            *(sokolow, beat_CS[avl].max() - beat_CS[v3].min()),
        ]
    )


def _beat_by_lead(beat_CS: Floats, begin: int, end: int) -> Floats:
    """Amplitudes of the waves of each lead, areas, and the ST level: (C, 11)."""
    after = _t_begin(beat_CS, end)
    rows = []
    for lead_S in beat_CS:
        qrs_S = lead_S[begin:end]
        top = int(np.argmax(qrs_S))
        rows.append(
            [
                *(qrs_S[top], qrs_S.min(), qrs_S[: top + 1].min(), qrs_S[top:].min()),
                *(qrs_S.sum() / _RATE_HZ, lead_S[after:].sum() / _RATE_HZ),
                *(lead_S[min(end + n, len(lead_S) - 1)] for n in (20, 40)),  # J + 40 and 80 ms
                *(lead_S[after:].max(), lead_S[after:].min()),
                np.abs(lead_S[_p_wave(begin)]).max(),
            ]
        )
    return np.array(rows)


def _t_begin(beat_CS: Floats, end: int) -> int:
    return min(end + 30, beat_CS.shape[1] - _NEAR)


def _p_wave(begin: int) -> slice:
    return slice(max(0, begin - 110), max(1, begin - 15))


def _strip_by_lead(signal_CT: Floats) -> Floats:
    """Scatter, range, kurtosis and shares of the spectrum of each lead: (C, 8)."""
    hertz, power_CF = welch(signal_CT, _RATE_HZ, nperseg=1024)
    total_C = power_CF.sum(axis=1) + 1e-12
    low_C, high_C = np.quantile(signal_CT, (0.005, 0.995), axis=1)
    columns = [signal_CT.std(axis=1), high_C - low_C, kurtosis(signal_CT, axis=1)]
    for least, most in _BANDS_HZ:
        band = (hertz >= least) & (hertz < most)
        columns.append(power_CF[:, band].sum(axis=1) / total_C)
    return np.stack(columns, axis=1)
