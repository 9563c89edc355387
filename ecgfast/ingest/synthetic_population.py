"""Who is in the synthetic cohort: hospitals, their carts, and persons with an ejection fraction.

What is planted, so that a study of generalisation can find it: the signal of `synthetic_model`
in every hospital; and in hospital 1 alone a cart that predicts the label, as where the sick are
recorded at the bedside. There 80 % of cases and 20 % of controls are recorded with the portable
cart, elsewhere half of each. Its trace has three times the muscle noise and no filter. A model of
hospital 1 that learns the noise looks good there and fails elsewhere.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from ecgfast.errors import ConfigError
from ecgfast.ingest.synthetic_model import LOW_EF, Noise

_PORTABLE_NOISE = 3.0  # muscle noise of the portable cart, times that of the hospital's other
_PORTABLE_TIE = 0.30  # of the cart to the label at site 1: 50 % +- this
_EF_RANGE = (12.0, 78.0)
_FIRST_DAY = date(2015, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is planted in a cohort.

    Attributes:
        prevalence: share of patients with an ejection fraction below 40 %, varied by site.
        label_signal: effect of the ejection fraction on the heart's waves, times; 0 for none.
        site_shift: from 0, one kind of hospital with two carts that have nothing to do with the
            label, to 1, hospitals as different as `_MACHINES` has them and the tie of site 1.
        shuffled_labels: labels.csv permutes the ejection fractions of each site, so that nothing
            predicts them.
        unlabelled: names of the sites of which labels.csv has no ejection fraction.
        shares: of each site in the records; by default site 1 has two, every other one.
    """

    prevalence: float = 0.2
    label_signal: float = 1.0
    site_shift: float = 1.0
    shuffled_labels: bool = False
    unlabelled: tuple[str, ...] = ()
    shares: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.prevalence <= 0.5:
            raise ConfigError(f"prevalence must be in (0, 0.5], got {self.prevalence}")
        if not 0 <= self.label_signal <= 10:
            raise ConfigError(f"label_signal must be in [0, 10], got {self.label_signal}")
        if not 0 <= self.site_shift <= 1:
            raise ConfigError(f"site_shift must be in [0, 1], got {self.site_shift}")


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
        is_portable: whether the noisy cart recorded it.
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
    is_portable: bool
    label_date: date
    patient_stream: int

    @property
    def device(self) -> str:
        """Name of the cart that recorded it."""
        return f"{self.site.name}-{'portable' if self.is_portable else 'laboratory'}"

    @property
    def noise(self) -> Noise:
        """What that cart adds to the signal."""
        own = self.site.noise
        if not self.is_portable:
            return own
        return own._replace(muscle_mv=own.muscle_mv * _PORTABLE_NOISE, smoothing_passes=0)


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


def sites(num_sites: int, shift: float = 1.0) -> list[Site]:
    """Return the first `num_sites` hospitals; beyond eight, the machines repeat.

    Args:
        num_sites: hospitals.
        shift: `Design.site_shift`; rates, gains and mains differ at 0 too.
    Raises:
        ConfigError: fewer than one.
    """
    if num_sites < 1:
        raise ConfigError(f"sites must be at least 1, got {num_sites}")
    return [_site(n + 1, shift) for n in range(num_sites)]


def _site(number: int, shift: float) -> Site:
    """A hospital that lies between the first and its own `_MACHINES`."""
    *_, prevalence, age, noise = _MACHINES[0]
    rate, gain, own_prevalence, own_age, own = _MACHINES[(number - 1) % len(_MACHINES)]

    def between(first: float, last: float) -> float:
        return first + shift * (last - first)

    return Site(
        name=str(number),
        sampling_rate_hz=rate,
        gain=gain,
        prevalence=between(prevalence, own_prevalence),
        mean_age=between(age, own_age),
        noise=Noise(
            mains_hz=own.mains_hz,
            mains_mv=between(noise.mains_mv, own.mains_mv),
            muscle_mv=between(noise.muscle_mv, own.muscle_mv),
            wander_mv=between(noise.wander_mv, own.wander_mv),
            smoothing_passes=round(between(noise.smoothing_passes, own.smoothing_passes)),
        ),
    )


def population(num_records: int, num_sites: int, seed: int, design: Design) -> list[Person]:
    """Draw the records of a cohort.

    About a third of the patients have several records; their ejection fractions are close.

    Args:
        num_records: in all sites together.
        num_sites: hospitals.
        seed: of the cohort.
        design: what is planted.
    Raises:
        ConfigError: a number is out of range.
    """
    hospitals = sites(num_sites, design.site_shift)
    shares = design.shares or (2, *[1] * (num_sites - 1))
    if len(shares) != num_sites:
        raise ConfigError(f"shares must be one for each of {num_sites} sites, got {len(shares)}")
    bounds = [total * num_records // sum(shares) for total in accumulate(shares, initial=0)]
    if any(end <= begin for begin, end in pairwise(bounds)):
        raise ConfigError(
            f"records must give each of {num_sites} sites with shares {shares} one or more, got "
            f"{num_records}"
        )
    people: list[Person] = []
    for number, site in enumerate(hospitals):
        rng = np.random.default_rng([seed, 1, number])
        count = bounds[number + 1] - bounds[number]
        people.extend(_site_records(site, count, bounds[number], rng, design))
    return people


def _site_records(
    site: Site, count: int, first: int, rng: np.random.Generator, design: Design
) -> list[Person]:
    """Draw the patients of one site until they have `count` records."""
    tie = _PORTABLE_TIE * design.site_shift if site.name == "1" else 0.0
    out: list[Person] = []
    patient = 0
    while len(out) < count:
        patient += 1
        repeats = min(int(rng.geometric(0.72)), 6)
        is_low = rng.random() < design.prevalence * site.prevalence
        ef = rng.normal(30.0, 6.0) if is_low else rng.normal(60.0, 7.0)
        age = int(np.clip(rng.normal(site.mean_age + (4 if is_low else 0), 13.0), 18, 95))
        sex = "male" if rng.random() < (0.66 if is_low else 0.52) else "female"
        day = _FIRST_DAY + timedelta(days=int(rng.integers(0, 1500)))
        for _ in range(repeats):
            measured = float(np.clip(np.round(ef + rng.normal(0.0, 2.5)), *_EF_RANGE))
            label_day = day + timedelta(days=int(rng.integers(-45, 46)))
            is_portable = rng.random() < (0.5 + tie if measured < LOW_EF else 0.5 - tie)
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
                    is_portable=bool(is_portable),
                    label_date=label_day,
                    patient_stream=first + patient,
                )
            )
            day += timedelta(days=int(rng.integers(1, 400)))
    return out
