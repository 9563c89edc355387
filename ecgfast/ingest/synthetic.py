"""The synthetic cohort: sites -> persons -> WFDB files and labels.csv, the same for a seed."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.ingest.leads import limb_lead
from ecgfast.ingest.synthetic_model import Noise, add_noise, draw_heart, heart_signal
from ecgfast.records import LEADS, NUM_LEADS

_PREVALENCE = 0.2  # share of patients with an ejection fraction below 40 %
_EF_RANGE = (12.0, 78.0)
_FIRST_DAY = date(2015, 1, 1)
_COLUMNS = (
    "record_id", "patient_id", "site", "age", "sex", "ecg_date", "ejection_fraction",
    "label_date", "synthetic",
)  # fmt: skip


class Site(NamedTuple):
    """What a hospital's machines and patients have in common.

    Attributes:
        name: "1", "2", ...
        sampling_rate_hz: of its ECG machines.
        gain: ADC units per mV.
        prevalence: share of patients with an ejection fraction below 40 %, relative to the cohort.
        mean_age: years.
        noise: of its machines.
    """

    name: str
    sampling_rate_hz: int
    gain: float
    prevalence: float
    mean_age: float
    noise: Noise


@dataclass(frozen=True, kw_only=True)
class Person:
    """One record's row of `labels.csv`, and what the waveform model needs to know.

    Attributes:
        index: of the record in the cohort; selects its random stream.
        record_id: path relative to the cohort's folder, without suffix.
        patient_id: unique across sites.
        site: of the record.
        age: years.
        sex: "female" or "male".
        ecg_date: of the recording.
        ejection_fraction: percent.
        label_date: of the echocardiography, within 45 days of the ECG.
        patient_stream: number that selects the random stream of the patient's anatomy.
    """

    index: int
    record_id: str
    patient_id: str
    site: Site
    age: int
    sex: str
    ecg_date: date
    ejection_fraction: float
    label_date: date
    patient_stream: int


# sampling rate, gain, prevalence, mean age, noise
_MACHINES = (
    (500, 1000.0, 1.0, 62.0, Noise(50.0, 0.004, 0.008, 0.06, 0)),
    (250, 200.0, 1.25, 66.0, Noise(60.0, 0.006, 0.012, 0.03, 1)),
    (1000, 800.0, 0.75, 57.0, Noise(50.0, 0.010, 0.016, 0.10, 2)),
    (500, 204.9, 0.9, 64.0, Noise(60.0, 0.002, 0.006, 0.02, 2)),
    (500, 400.0, 1.1, 70.0, Noise(50.0, 0.012, 0.020, 0.08, 1)),
    (400, 1000.0, 0.6, 53.0, Noise(60.0, 0.003, 0.010, 0.12, 0)),
    (250, 204.9, 0.8, 60.0, Noise(50.0, 0.008, 0.014, 0.05, 0)),
    (1000, 400.0, 1.2, 67.0, Noise(60.0, 0.005, 0.009, 0.04, 3)),
)


def sites(num_sites: int) -> list[Site]:
    """Return the first `num_sites` hospitals; beyond eight, the machines repeat.

    Raises:
        ConfigError: fewer than one.
    """
    if num_sites < 1:
        raise ConfigError(f"sites must be at least 1, got {num_sites}")
    return [Site(str(n + 1), *_MACHINES[n % len(_MACHINES)]) for n in range(num_sites)]


def population(num_records: int, num_sites: int, seed: int, prevalence: float) -> list[Person]:
    """Draw the records of a cohort: site 1 gets two shares, every other site one.

    About a third of the patients have several records; their ejection fractions are close.

    Args:
        num_records: in all sites together.
        num_sites: hospitals.
        seed: of the cohort.
        prevalence: share of patients below 40 %, varied by site.
    Raises:
        ConfigError: a number is out of range.
    """
    if num_records < num_sites + (num_sites > 1):
        raise ConfigError(f"records must be more than the {num_sites} sites, got {num_records}")
    if not 0 < prevalence <= 0.5:
        raise ConfigError(f"prevalence must be in (0, 0.5], got {prevalence}")
    people: list[Person] = []
    hospitals = sites(num_sites)
    bounds = [(number + 1) * num_records // (num_sites + 1) for number in range(num_sites + 1)]
    bounds[0] = 0  # the first two shares are site 1's
    for number, site in enumerate(hospitals):
        rng = np.random.default_rng([seed, 1, number])
        count = bounds[number + 1] - bounds[number]
        people.extend(_site_records(site, count, bounds[number], rng, prevalence))
    return people


def _site_records(
    site: Site, count: int, first: int, rng: np.random.Generator, prevalence: float
) -> list[Person]:
    """Draw the patients of one site until they have `count` records."""
    out: list[Person] = []
    patient = 0
    while len(out) < count:
        patient += 1
        repeats = min(int(rng.geometric(0.72)), 6)
        is_low = rng.random() < prevalence * site.prevalence
        ef = rng.normal(30.0, 6.0) if is_low else rng.normal(60.0, 7.0)
        age = int(np.clip(rng.normal(site.mean_age + (4 if is_low else 0), 13.0), 18, 95))
        sex = "male" if rng.random() < (0.66 if is_low else 0.52) else "female"
        day = _FIRST_DAY + timedelta(days=int(rng.integers(0, 1500)))
        for _ in range(repeats):
            measured = float(np.clip(np.round(ef + rng.normal(0.0, 2.5)), *_EF_RANGE))
            label_day = day + timedelta(days=int(rng.integers(-45, 46)))
            if len(out) == count:
                break
            out.append(
                Person(
                    index=first + len(out),
                    record_id=f"site{site.name}/{len(out):06d}",
                    patient_id=f"{site.name}-{patient:06d}",
                    site=site,
                    age=age,
                    sex=sex,
                    ecg_date=day,
                    ejection_fraction=measured,
                    label_date=label_day,
                    patient_stream=first + patient,
                )
            )
            day += timedelta(days=int(rng.integers(1, 400)))
    return out


def render(person: Person, seed: int, sampling_rate_hz: int) -> NDArray[np.int16]:
    """Return one record, which depends on nothing but the arguments.

    Args:
        person: of `population`.
        seed: of the cohort.
        sampling_rate_hz: timesteps per second; the record is 10 s long.
    Returns:
        (12, T) int16 ADC units of 1 / site.gain mV.
    """
    anatomy = np.random.Generator(np.random.SFC64([seed, 2, person.patient_stream]))
    now = np.random.Generator(np.random.SFC64([seed, 3, person.index]))
    heart = draw_heart(person.ejection_fraction, person.age, anatomy, now)
    signal_8T = heart_signal(heart, sampling_rate_hz)
    add_noise(signal_8T, person.site.noise, now)
    signal_8T *= np.float32(person.site.gain)
    return _twelve_leads(signal_8T)


def _twelve_leads(signal_8T: NDArray[np.float32]) -> NDArray[np.int16]:
    """Add the limb leads that follow from I and II, then round each."""
    out = np.empty((NUM_LEADS, signal_8T.shape[1]), np.float32)
    out[:2], out[6:] = signal_8T[:2], signal_8T[2:]
    for position in range(2, 6):
        out[position] = limb_lead(position, out[0], out[1], np.divide)
    np.rint(out, out=out)
    np.clip(out, -32767, 32767, out=out)
    return out.astype(np.int16)


def write_cohort(
    out: Path,
    *,
    num_records: int,
    num_sites: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a cohort as WFDB format 16, one folder a site, and `labels.csv`.

    Args:
        out: folder, new or empty.
        num_records: in all sites together.
        num_sites: hospitals; they differ in rate, gain, filters, noise and prevalence.
        seed: the same seed gives the same bytes.
        progress: called with (records done, records in all).
    Raises:
        ConfigError: `out` holds something, or a number is out of range.
    """
    people = population(num_records, num_sites, seed, _PREVALENCE)
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
        rows.writerows(
            (
                each.record_id, each.patient_id, each.site.name, each.age, each.sex, each.ecg_date,
                each.ejection_fraction, each.label_date, "true",
            )
            for each in people
        )  # fmt: skip


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
