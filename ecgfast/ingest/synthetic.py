"""The synthetic cohort as WFDB files and labels.csv, the same bytes for a seed."""

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.ingest.leads import limb_lead
from ecgfast.ingest.synthetic_model import add_noise, draw_heart, heart_signal
from ecgfast.ingest.synthetic_population import Design, Person, population, sites
from ecgfast.records import LEADS, NUM_LEADS

_COLUMNS = (
    "record_id", "patient_id", "site", "age", "sex", "ecg_date", "ejection_fraction",
    "label_date", "device", "synthetic",
)  # fmt: skip


def render(
    person: Person, seed: int, sampling_rate_hz: int, *, label_signal: float = 1.0
) -> NDArray[np.int16]:
    """Return one record, which depends on nothing but the arguments.

    Args:
        person: of `population`.
        seed: of the cohort.
        sampling_rate_hz: timesteps per second; the record is 10 s long.
        label_signal: `Design.label_signal`.
    Returns:
        (12, T) int16 ADC units of 1 / site.gain mV.
    """
    anatomy = np.random.Generator(np.random.SFC64([seed, 2, person.patient_stream]))
    now = np.random.Generator(np.random.SFC64([seed, 3, person.index]))
    heart = draw_heart(
        person.ejection_fraction, person.age, anatomy, now, label_signal=label_signal
    )
    signal_8T = heart_signal(heart, sampling_rate_hz)
    add_noise(signal_8T, person.noise, now)
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
    out: str | Path,
    *,
    num_records: int = 1000,
    num_sites: int = 4,
    seed: int = 0,
    design: Design | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a cohort as WFDB format 16, one folder a site, and `labels.csv`.

    Args:
        out: folder, new, empty, or of a call that was interrupted, which begins again.
        num_records: in all sites together.
        num_sites: hospitals; they differ in rate, gain, filters, noise and prevalence.
        seed: the same seed gives the same bytes.
        design: what is planted.
        progress: called with (records done, records in all).
    Raises:
        ConfigError: `out` holds something, or a number is out of range.
    """
    out, design = Path(out), design or Design()
    people = population(num_records, num_sites, seed, design)
    known = [site.name for site in sites(num_sites)]
    for name in design.unlabelled:
        if name not in known:
            raise ConfigError(
                f"unlabelled: the cohort has no site {name!r}; allowed: {', '.join(known)}"
            )
    folders = {person.record_id.split("/")[0] for person in people}
    labels = out / ".labels.csv.part"  # there from the first file to the last
    if labels.is_file():
        for name in folders:
            shutil.rmtree(out / name, ignore_errors=True)
        labels.unlink()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; give a new folder for the synthetic cohort")
    out.mkdir(parents=True, exist_ok=True)
    labels.touch()
    for name in folders:
        (out / name).mkdir()
    for done, person in enumerate(people, 1):
        rate = person.site.sampling_rate_hz
        signal = render(person, seed, rate, label_signal=design.label_signal)
        _write_record(out, person, signal, rate)
        if progress is not None:
            progress(done, num_records)
    _write_labels(labels, people, design, seed)
    labels.rename(out / "labels.csv")


def _write_labels(path: Path, people: Sequence[Person], design: Design, seed: int) -> None:
    """Write what is known of each record, ejection fractions as the design has them."""
    fractions = _shuffled(people, seed) if design.shuffled_labels else people
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(_COLUMNS)
        for each, known in zip(people, fractions, strict=True):
            has_label = each.site.name not in design.unlabelled
            rows.writerow(
                (
                    each.record_id, each.patient_id, each.site.name, each.age, each.sex,
                    each.ecg_date, known.ejection_fraction if has_label else "", each.label_date,
                    each.device, "true",
                )
            )  # fmt: skip


def _shuffled(people: Sequence[Person], seed: int) -> list[Person]:
    """For each record another one of its site, whose ejection fraction it is given."""
    rng = np.random.default_rng([seed, 4])
    out = list(people)
    for name in {person.site.name: None for person in people}:
        rows = [row for row, person in enumerate(people) if person.site.name == name]
        for row, other in zip(rows, rng.permutation(rows).tolist(), strict=True):
            out[row] = people[other]
    return out


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
