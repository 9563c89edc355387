"""The synthetic cohort: reproducible, marked, physiological, and neither trivial nor hopeless."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ecgfast.errors import ConfigError
from ecgfast.ingest import read_record
from ecgfast.ingest.inventory import discover
from ecgfast.ingest.synthetic import Person, population, render, sites, write_cohort
from ecgfast.ingest.synthetic_model import LOW_EF


class Cohort(NamedTuple):
    """(N, 12, 5000) int16 ADC units at 500 Hz, (N,) float32 microvolt per ADC unit, N labels."""

    signal: NDArray[np.int16]
    scale_uv: NDArray[np.float32]
    people: list[Person]


def synthesise(num_records: int, *, num_sites: int, seed: int) -> Cohort:
    people = population(num_records, num_sites, seed, 0.2)
    signal = np.stack([render(person, seed, 500) for person in people])
    scale = np.array([1000.0 / person.site.gain for person in people], np.float32)
    return Cohort(signal=signal, scale_uv=scale, people=people)


def _bytes_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_cohort(tmp_path / name, num_records=9, num_sites=3, seed=seed)
    first, again, other = (_bytes_below(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.endswith(".dat"))


def test_a_record_depends_on_nothing_around_it() -> None:
    people = population(12, 2, 7, 0.2)
    backwards = [render(person, 7, 500) for person in reversed(people)][::-1]
    np.testing.assert_array_equal(np.stack(backwards), synthesise(12, num_sites=2, seed=7).signal)


def test_files_come_back_as_rendered_with_their_labels(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    write_cohort(
        tmp_path / "c", num_records=10, num_sites=4, seed=1,
        progress=lambda *now: done.append(now),
    )  # fmt: skip
    assert done == [(n, 10) for n in range(1, 11)]
    people = population(10, 4, 1, 0.2)
    with open(tmp_path / "c/labels.csv", newline="") as file:
        rows = {row["record_id"]: row for row in csv.DictReader(file)}
    items = discover([tmp_path / "c"])
    assert [item.record_id for item in items] == [person.record_id for person in people]
    assert rows.keys() == {person.record_id for person in people}
    for item, person in zip(items, people, strict=True):
        record, row, site = read_record(item), rows[item.record_id], person.site
        np.testing.assert_array_equal(record.signal, render(person, 1, site.sampling_rate_hz))
        assert record.flags == ("synthetic",)
        assert row["synthetic"] == "true"
        assert record.sampling_rate_hz == site.sampling_rate_hz
        assert record.scale_uv[0] == np.float32(1000 / site.gain)
        assert (record.patient_id, record.site) == (row["patient_id"], row["site"])
        assert (record.age, record.sex) == (float(row["age"]), row["sex"])
        assert float(row["ejection_fraction"]) == person.ejection_fraction
        assert record.provenance["recorded"].endswith(person.ecg_date.strftime("%d/%m/%Y"))


def test_limb_leads_obey_einthoven_up_to_rounding() -> None:
    lead_i, lead_ii, lead_iii, avr, avl, avf = (
        synthesise(20, num_sites=4, seed=2).signal[:, :6].transpose(1, 0, 2).astype(np.int32)
    )
    assert np.abs(lead_ii - lead_i - lead_iii).max() <= 1
    assert np.abs(2 * avr + lead_i + lead_ii).max() <= 2
    assert np.abs(2 * avl - 2 * lead_i + lead_ii).max() <= 2
    assert np.abs(2 * avf - 2 * lead_ii + lead_i).max() <= 2


def test_population_repeats_patients_and_varies_prevalence_by_site() -> None:
    people = population(8000, 4, 0, 0.2)
    assert len({person.record_id for person in people}) == 8000
    by_patient: dict[str, list[float]] = {}
    for person in people:
        by_patient.setdefault(person.patient_id, []).append(person.ejection_fraction)
        assert abs((person.label_date - person.ecg_date).days) <= 45
    repeated = [values for values in by_patient.values() if len(values) > 1]
    assert 0.15 < len(repeated) / len(by_patient) < 0.45
    spreads = [max(values) - min(values) for values in repeated]
    assert 1 < np.mean(spreads) < 8
    share = {
        site.name: np.mean(
            [p.ejection_fraction < LOW_EF for p in people if p.site.name == site.name]
        )
        for site in sites(4)
    }
    assert sum(p.site.name == "1" for p in people) == 3200
    assert share["3"] < share["4"] < share["2"]
    assert 0.12 < np.mean([p.ejection_fraction < LOW_EF for p in people]) < 0.26


@pytest.mark.parametrize("num_sites", [1, 2, 3, 8, 11])
def test_every_site_gets_a_record(num_sites: int) -> None:
    people = population(num_sites + (num_sites > 1), num_sites, 0, 0.2)
    assert {person.site.name for person in people} == {str(n + 1) for n in range(num_sites)}
    assert len({site.name for site in sites(num_sites)}) == num_sites


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        write_cohort(tmp_path / "full", num_records=5, num_sites=1, seed=0)
    with pytest.raises(ConfigError, match="more than the 5 sites, got 5"):
        population(5, 5, 0, 0.2)
    with pytest.raises(ConfigError, match="sites must be"):
        population(5, 0, 0, 0.2)
    with pytest.raises(ConfigError, match="prevalence"):
        population(5, 1, 0, 0.9)


def test_amplitudes_rates_and_noise_are_those_of_ecgs() -> None:
    cohort = synthesise(60, num_sites=4, seed=9)
    microvolt = cohort.signal * cohort.scale_uv[:, None, None]
    span = microvolt.max(-1) - microvolt.min(-1)
    assert 700 < np.median(span) < 2500
    assert span.max() < 12_000
    assert np.abs(cohort.signal).max() < 32_767


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return synthesise(1500, num_sites=3, seed=5)


def _auroc(cohort: Cohort, features: NDArray[np.float32]) -> float:
    low = np.array([person.ejection_fraction < LOW_EF for person in cohort.people])
    score = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000)),
        features,
        low,
        groups=[person.patient_id for person in cohort.people],
        cv=GroupKFold(5),
        method="predict_proba",
    )[:, 1]
    return float(roc_auc_score(low, score))


@pytest.mark.parametrize("normalised", [False, True])
def test_lead_statistics_do_not_give_the_answer_away(cohort: Cohort, normalised: bool) -> None:
    signal = cohort.signal * cohort.scale_uv[:, None, None]
    if normalised:
        signal = (signal - signal.mean(-1, keepdims=True)) / signal.std(-1, keepdims=True)
    statistics = [signal.mean(-1), signal.std(-1), signal.min(-1), signal.max(-1)]
    assert _auroc(cohort, np.concatenate(statistics, 1)) < 0.80


@pytest.mark.slow
def test_the_shape_of_beats_does(cohort: Cohort) -> None:
    beats = np.stack([_mean_beat(signal) for signal in cohort.signal])[:, :, ::4]
    flat = beats.reshape(len(beats), -1)
    flat /= flat.std(1, keepdims=True)
    assert _auroc(cohort, PCA(60, random_state=0).fit_transform(flat)) > 0.83


def _mean_beat(signal_CT: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return (12, 300): the median beat around peaks of slope, found without knowing the model."""
    signal = signal_CT.astype(np.float32)
    smooth = np.ones(25, np.float32) / 25
    steepness = np.convolve(np.abs(np.diff(signal, axis=1)).sum(0), smooth, "same")
    peaks = []
    left = steepness.copy()
    left[:150] = left[-250:] = 0
    while left.max() > 0.5 * steepness.max():
        peak = int(left.argmax())
        peaks.append(peak)
        left[max(peak - 150, 0) : peak + 150] = 0
    beats = np.stack([signal[:, peak - 110 : peak + 190] for peak in peaks])
    median = np.median(beats, axis=0)
    return (median - median.mean(1, keepdims=True)).astype(np.float32)
