"""The synthetic cohort: persons -> waveforms -> WFDB files and labels.csv, the same for a seed."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.ingest.synthetic_model import draw_heart, heart_signal
from ecgfast.ingest.synthetic_noise import add_noise
from ecgfast.ingest.synthetic_population import Person, population
from ecgfast.records import LEADS, NUM_LEADS

DEFAULT_PREVALENCE = 0.2
_COLUMNS = (
    "record_id", "patient_id", "site", "age", "sex", "ecg_date", "ejection_fraction",
    "label_date", "synthetic",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SyntheticCohort:
    """A cohort in memory.

    Attributes:
        signal: (N, 12, 5000) int16 digits at 500 Hz.
        scale_uv: (N,) float32 microvolt per digit.
        people: the labels, one per record.
    """

    signal: NDArray[np.int16]
    scale_uv: NDArray[np.float32]
    people: list[Person]


def render(person: Person, seed: int, sampling_rate_hz: int) -> NDArray[np.int16]:
    """Return one record's digits, which depend on nothing but the arguments.

    Args:
        person: of `population`.
        seed: of the cohort.
        sampling_rate_hz: timesteps per second; the record is 10 s long.
    Returns:
        (12, T) int16, in units of 1 / site.gain mV.
    """
    anatomy = np.random.Generator(np.random.SFC64([seed, 2, person.patient_stream]))
    now = np.random.Generator(np.random.SFC64([seed, 3, person.index]))
    signal_8T = heart_signal(draw_heart(person, anatomy, now), sampling_rate_hz)
    add_noise(signal_8T, person.site, now)
    signal_8T *= np.float32(person.site.gain)
    return _twelve_leads(signal_8T)


def _twelve_leads(signal_8T: NDArray[np.float32]) -> NDArray[np.int16]:
    """Add the limb leads that follow from I and II (Einthoven, Goldberger), then round each."""
    out = np.empty((NUM_LEADS, signal_8T.shape[1]), np.float32)
    lead_i, lead_ii = signal_8T[0], signal_8T[1]
    out[0], out[1] = lead_i, lead_ii
    out[2] = lead_ii - lead_i
    out[3] = (lead_i + lead_ii) * np.float32(-0.5)
    out[4] = lead_i - lead_ii * np.float32(0.5)
    out[5] = lead_ii - lead_i * np.float32(0.5)
    out[6:] = signal_8T[2:]
    np.rint(out, out=out)
    np.clip(out, -32767, 32767, out=out)
    return out.astype(np.int16)


def synthesise(
    num_records: int, *, num_sites: int = 1, seed: int = 0, prevalence: float = DEFAULT_PREVALENCE
) -> SyntheticCohort:
    """Make a cohort in memory, every record at 500 Hz whatever its site.

    Args:
        num_records: in all sites together.
        num_sites: hospitals.
        seed: the same seed gives the same bits.
        prevalence: share of patients with an ejection fraction below 40 %, varied by site.
    """
    people = population(num_records, num_sites, seed, prevalence)
    signal = np.empty((num_records, NUM_LEADS, 5000), np.int16)
    for row, person in enumerate(people):
        signal[row] = render(person, seed, 500)
    scale = np.array([1000.0 / person.site.gain for person in people], np.float32)
    return SyntheticCohort(signal=signal, scale_uv=scale, people=people)


def write_cohort(
    out: Path,
    *,
    num_records: int,
    num_sites: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    prevalence: float = DEFAULT_PREVALENCE,
) -> None:
    """Write a cohort as WFDB format 16, one folder a site, and `labels.csv`.

    Args:
        out: folder, new or empty.
        num_records: in all sites together.
        num_sites: hospitals; they differ in rate, gain, filters, noise and prevalence.
        seed: the same seed gives the same bytes.
        progress: called with (records done, records in all).
        prevalence: share of patients with an ejection fraction below 40 %, varied by site.
    Raises:
        ConfigError: `out` holds something, or a number is out of range.
    """
    people = population(num_records, num_sites, seed, prevalence)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; give a new folder for the synthetic cohort")
    for name in {person.record_id.split("/")[0] for person in people}:
        (out / name).mkdir(parents=True)
    for done, person in enumerate(people, 1):
        rate = person.site.sampling_rate_hz
        _write_record(out, person, render(person, seed, rate), rate)
        if progress is not None:
            progress(done, num_records)
    with open(out / "labels.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(_COLUMNS)
        rows.writerows(_label_row(person) for person in people)


def _write_record(
    out: Path, person: Person, signal_CT: NDArray[np.int16], sampling_rate_hz: int
) -> None:
    """Write NAME.dat and NAME.hea."""
    stem = out / person.record_id
    name, site = stem.name, person.site
    sums = np.add.reduce(signal_CT, axis=1, dtype=np.int16).tolist()
    first = signal_CT[:, 0].tolist()
    when = f"12:00:00 {person.ecg_date:%d/%m/%Y}"
    lines = [f"{name} {NUM_LEADS} {sampling_rate_hz} {signal_CT.shape[1]} {when}"]
    lines += [
        f"{name}.dat 16 {site.gain:g}(0)/mV 16 0 {first[row]} {sums[row]} 0 {lead}"
        for row, lead in enumerate(LEADS)
    ]
    lines += [
        "# synthetic",
        f"# Age: {person.age}",
        f"# Sex: {person.sex}",
        f"# Patient: {person.patient_id}",
        f"# Site: {site.name}",
    ]
    with open(f"{stem}.dat", "wb", buffering=0) as file:
        file.write(np.ascontiguousarray(signal_CT.T, "<i2").data)
    with open(f"{stem}.hea", "wb", buffering=0) as file:
        file.write(("\n".join(lines) + "\n").encode())


def _label_row(person: Person) -> tuple[str | int | float, ...]:
    """Return a row of labels.csv."""
    return (
        person.record_id,
        person.patient_id,
        person.site.name,
        person.age,
        person.sex,
        person.ecg_date.isoformat(),
        person.ejection_fraction,
        person.label_date.isoformat(),
        "true",
    )
