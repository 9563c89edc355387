"""Recordings that tests write: WFDB files with known digits, and stores made of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfast.convert import ConvertSummary, convert
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
    """Write one record in format 16, 200 digits per mV.

    Args:
        path: of the record, without suffix.
        signal_CT: (C, T) digits.
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
    """`convert` with a fixed key and one worker, unless told otherwise."""
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
