"""Who is in a synthetic cohort: sites, patients, ejection fractions. No waveforms here."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from ecgfast.errors import ConfigError

LOW_EF = 40.0  # percent; below it, left ventricular systolic dysfunction
_EF_RANGE = (12.0, 78.0)
_FIRST_DAY = date(2015, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a hospital's machines and patients have in common.

    Attributes:
        name: "1", "2", ...
        sampling_rate_hz: of its ECG machines.
        gain: digits per mV.
        mains_hz: 50 or 60.
        mains_mv: typical amplitude of mains hum.
        muscle_mv: typical standard deviation of muscle noise.
        wander_mv: typical amplitude of baseline wander; small where the machine filters it.
        smoothing_passes: passes of a (1, 2, 1) / 4 low-pass, as muscle filters do.
        prevalence: share of patients with an ejection fraction below 40 %, relative to the cohort.
        mean_age: years.
    """

    name: str
    sampling_rate_hz: int
    gain: float
    mains_hz: float
    mains_mv: float
    muscle_mv: float
    wander_mv: float
    smoothing_passes: int
    prevalence: float
    mean_age: float


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


# rate, gain, mains Hz, mains mV, muscle mV, wander mV, passes, prevalence, age
_MACHINES = (
    (500, 1000.0, 50.0, 0.004, 0.008, 0.06, 0, 1.0, 62.0),
    (250, 200.0, 60.0, 0.006, 0.012, 0.03, 1, 1.25, 66.0),
    (1000, 800.0, 50.0, 0.010, 0.016, 0.10, 2, 0.75, 57.0),
    (500, 204.9, 60.0, 0.002, 0.006, 0.02, 2, 0.9, 64.0),
    (500, 400.0, 50.0, 0.012, 0.020, 0.08, 1, 1.1, 70.0),
    (400, 1000.0, 60.0, 0.003, 0.010, 0.12, 0, 0.6, 53.0),
    (250, 204.9, 50.0, 0.008, 0.014, 0.05, 0, 0.8, 60.0),
    (1000, 400.0, 60.0, 0.005, 0.009, 0.04, 3, 1.2, 67.0),
)


def sites(num_sites: int) -> list[Site]:
    """Return the first `num_sites` hospitals; beyond eight, the machines repeat.

    Raises:
        ConfigError: fewer than one.
    """
    if num_sites < 1:
        raise ConfigError(f"sites must be at least 1, got {num_sites}")
    return [
        Site(
            name=str(number + 1),
            sampling_rate_hz=rate,
            gain=gain,
            mains_hz=mains_hz,
            mains_mv=mains_mv,
            muscle_mv=muscle_mv,
            wander_mv=wander_mv,
            smoothing_passes=passes,
            prevalence=prevalence,
            mean_age=age,
        )
        for number, (
            rate, gain, mains_hz, mains_mv, muscle_mv, wander_mv, passes, prevalence, age,
        ) in ((n, _MACHINES[n % len(_MACHINES)]) for n in range(num_sites))
    ]  # fmt: skip


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
