"""Recordings that tests make: WFDB files with known samples, stores of them, hearts that differ."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfast.convert import convert
from ecgfast.convert.run import ConvertSummary
from ecgfast.records import LEADS

KEY = "5e" * 32


def ecg_like(
    num_records: int, *, seed: int, num_timesteps: int = 5000, largest: int = 1500
) -> NDArray[np.int16]:
    """(N, 12, T) int16 whose limb leads add up: sharp beats on noise, different in every record.

    Beats are 100 to `largest` units high; as files of 5 microvolt a unit, 500 is that of a heart.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(num_timesteps)
    beat = np.zeros((num_records, 1, num_timesteps))
    for number in range(num_records):  # no two records have their beats at the same times
        for middle in 100 + np.cumsum(rng.integers(300, 600, num_timesteps // 300 + 1)):
            beat[number, 0] += np.exp(-((time - middle) ** 2) / 40.0)
    gain = rng.uniform(100, largest, (num_records, 12, 1))
    noise = rng.normal(0, 4, (num_records, 12, num_timesteps))
    signal = np.rint(gain * beat + noise).astype(np.int16)
    lead_i, lead_ii = signal[:, 0], signal[:, 1]
    signal[:, 2] = lead_ii - lead_i
    signal[:, 3] = -((lead_i + lead_ii) // 2)
    signal[:, 4] = lead_i - lead_ii // 2
    signal[:, 5] = lead_ii - lead_i // 2
    return signal


def write_wfdb(
    path: Path,
    signal_CT: NDArray[np.int16],
    *,
    rate: float = 500,
    leads: Sequence[str] = LEADS,
    comments: Sequence[str] = (),
    date: str = "",
) -> None:
    """Write one record in format 16, 200 ADC units per mV.

    Args:
        path: of the record, without suffix.
        signal_CT: (C, T) ADC units.
        rate: timesteps per second.
        leads: names in the order of the signal.
        comments: comment lines.
        date: "HH:MM:SS DD/MM/YYYY", or nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{path.name} {len(leads)} {rate} {signal_CT.shape[1]} {date}".rstrip()]
    lines += [f"{path.name}.dat 16 200/mV 16 0 0 0 0 {lead}" for lead in leads]
    lines += [f"# {comment}" for comment in comments]
    path.with_suffix(".hea").write_text("\n".join(lines) + "\n")
    path.with_suffix(".dat").write_bytes(np.ascontiguousarray(signal_CT.T).astype("<i2").tobytes())


def write_cohort(folder: Path, num_records: int, *, seed: int = 0) -> NDArray[np.int16]:
    """Write records r00000, r00001 ... of patients p0, p0, p1, p1 ...; returns (N, 12, 5000)."""
    signal = ecg_like(num_records, seed=seed)
    for number, record in enumerate(signal):
        write_wfdb(folder / f"r{number:05d}", record, comments=[f"patient: p{number // 2}"])
    return signal


def make_store(
    tmp_path: Path, num_records: int, *, codec: str = "ecgpack", seed: int = 0
) -> tuple[Path, NDArray[np.int16]]:
    """Convert a cohort; returns the store and what it must hold."""
    signal = write_cohort(tmp_path / "in", num_records, seed=seed)
    convert_quietly([tmp_path / "in"], tmp_path / "store", codec=codec)
    return tmp_path / "store", signal


def convert_quietly(sources: Sequence[Path], out: Path, **options: object) -> ConvertSummary:
    """`convert` with a fixed key and one worker, unless asked otherwise."""
    key = out.with_name(out.name + ".key")
    key.parent.mkdir(parents=True, exist_ok=True)
    if not key.exists():
        key.touch(mode=0o600)
        key.write_text(KEY)
    return convert(sources, out, **{"workers": 1, **options})  # type: ignore[arg-type]  # any of its options


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Of P, two of QRS, T: place in seconds from the R peak, width in seconds.
_WAVES = ((-0.16, 0.02), (0.0, 0.012), (0.03, 0.014), (0.27, 0.05))


def heart(seed: int) -> NDArray[np.float64]:
    """(8, 4) millivolt of each wave in I, II, V1 to V6: a random dipole direction per wave."""
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
    """(12, 500 s) in units of 5 microvolt: beats, wander of the baseline, noise of 10 microvolt."""
    time = np.arange(int(seconds * 500)) / 500
    rng = np.random.default_rng(seed)
    millivolt = 0.01 * rng.normal(size=(8, len(time)))
    phase = rng.uniform(0, 6.28, (8, 1))
    millivolt += 0.05 * np.sin(2 * np.pi * rng.uniform(0.15, 0.4) * time + phase)
    for wave, (place, width) in enumerate(_WAVES):
        course = np.exp(-0.5 * ((time - beats[:, None] - place) / width) ** 2).sum(axis=0)
        millivolt += shape[:, wave, None] * course
    adc = np.rint(200 * millivolt)
    one, two = adc[:2]
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.rint(np.stack([*limb, *adc[2:]])).astype(np.int16)
