"""The synthetic cohort: reproducible, marked, physiological, and neither trivial nor hopeless."""

import csv
from dataclasses import replace
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
from ecgfast.ingest.synthetic import render, write_cohort
from ecgfast.ingest.synthetic_model import LOW_EF, draw_heart
from ecgfast.ingest.synthetic_population import Design, Person, population, sites


class Cohort(NamedTuple):
    """(N, 12, 5000) int16 ADC units at 500 Hz, (N,) float32 microvolt per ADC unit, N labels."""

    signal: NDArray[np.int16]
    scale_uv: NDArray[np.float32]
    people: list[Person]


def synthesise(
    num_records: int, *, num_sites: int, seed: int, design: Design | None = None
) -> Cohort:
    design = design or Design()
    people = population(num_records, num_sites, seed, design)
    signal = np.stack(
        [render(person, seed, 500, label_signal=design.label_signal) for person in people]
    )
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


def test_a_cohort_that_was_interrupted_begins_again(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    for num_records in (40, 9):
        with pytest.raises(KeyboardInterrupt):
            write_cohort(tmp_path / "a", num_records=num_records, num_sites=3, progress=stop)
        assert not (tmp_path / "a/labels.csv").exists()
    for name in "ab":
        write_cohort(tmp_path / name, num_records=9, num_sites=3)
    assert _bytes_below(tmp_path / "a") == _bytes_below(tmp_path / "b")
    with pytest.raises(ConfigError, match="is not empty"):
        write_cohort(tmp_path / "a", num_records=9, num_sites=3)


def test_a_file_of_somebody_else_stays_in_a_cohort_that_was_interrupted(tmp_path: Path) -> None:
    (tmp_path / ".labels.csv.part").touch()
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        write_cohort(tmp_path, num_records=9, num_sites=3)
    assert (tmp_path / "mine").exists()


def test_a_record_depends_on_nothing_around_it() -> None:
    people = population(12, 2, 7, Design())
    backwards = [render(person, 7, 500) for person in reversed(people)][::-1]
    np.testing.assert_array_equal(np.stack(backwards), synthesise(12, num_sites=2, seed=7).signal)


def test_files_come_back_as_rendered_with_their_labels(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    write_cohort(
        tmp_path / "c", num_records=10, num_sites=4, seed=1,
        progress=lambda *now: done.append(now),
    )  # fmt: skip
    assert done == [(n, 10) for n in range(1, 11)]
    people = population(10, 4, 1, Design())
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
        assert row["device"] == person.device
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
    people = population(8000, 4, 0, Design())
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


def test_the_cart_tells_the_label_at_the_first_site_alone() -> None:
    def odds_ratio(people: list[Person]) -> float:
        counts = np.zeros((2, 2))
        for person in people:
            counts[int(person.ejection_fraction < LOW_EF), int(person.is_portable)] += 1
        return float(counts[1, 1] * counts[0, 0] / (counts[1, 0] * counts[0, 1]))

    people = population(9000, 2, 1, Design(prevalence=0.4))
    first = [person for person in people if person.site.name == "1"]
    other = [person for person in people if person.site.name == "2"]
    assert 12 < odds_ratio(first) < 21  # 0.8 / 0.2 of cases, 0.2 / 0.8 of controls: 16
    assert 0.8 < odds_ratio(other) < 1.25
    alike = population(6000, 2, 1, Design(prevalence=0.4, site_shift=0.0))
    assert 0.8 < odds_ratio([person for person in alike if person.site.name == "1"]) < 1.25


def test_without_site_shift_hospitals_differ_in_formats_alone() -> None:
    first, second = sites(2, shift=0.0)
    assert second.noise == first.noise._replace(mains_hz=60.0)
    assert (second.prevalence, second.mean_age) == (first.prevalence, first.mean_age)
    assert (second.sampling_rate_hz, second.gain) == (250, 200.0)
    assert sites(2)[1].noise.smoothing_passes == 1


def test_shares_are_the_records_of_each_site() -> None:
    people = population(60, 3, 0, Design(shares=(30, 10, 20)))
    names = [person.site.name for person in people]
    assert [names.count(name) for name in "123"] == [30, 10, 20]


def test_labels_are_shuffled_within_a_site_and_left_out_where_asked(tmp_path: Path) -> None:
    design = Design(shuffled_labels=True, unlabelled=("3",))
    write_cohort(tmp_path / "c", num_records=90, num_sites=3, seed=2, design=design)
    people = population(90, 3, 2, design)
    with open(tmp_path / "c/labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for site in "12":
        true = [p.ejection_fraction for p in people if p.site.name == site]
        written = [float(r["ejection_fraction"]) for r in rows if r["site"] == site]
        assert sorted(written) == sorted(true)
        assert written != true
    assert {r["ejection_fraction"] for r in rows if r["site"] == "3"} == {""}


def test_a_cohort_without_signal_has_the_same_waves_for_any_ejection_fraction() -> None:
    (person,) = population(1, 1, 0, Design())
    low, high = (replace(person, ejection_fraction=value) for value in (20.0, 70.0))
    for strength, same in ((0.0, True), (1.0, False)):
        both = [render(each, 0, 500, label_signal=strength) for each in (low, high)]
        assert np.array_equal(*both) == same


def test_what_is_planted_lasts_at_least_four_timesteps() -> None:
    """A case's R wave is wider at half height, and its T wave later, by 4 timesteps or more."""

    def widths(ejection_fraction: float) -> tuple[float, float]:
        found = []
        for stream in range(120):
            anatomy, now = (np.random.default_rng([stream, part]) for part in range(2))
            waves = draw_heart(ejection_fraction, 60, anatomy, now).waves
            found.append((2.355 * waves[3, 1] * 500, waves[7, 0] * 500))
        width, late = np.mean(found, axis=0)
        return float(width), float(late)

    (wide, late), (narrow, early) = widths(25.0), widths(65.0)
    assert wide - narrow >= 4
    assert late - early >= 4


@pytest.mark.parametrize("num_sites", [1, 2, 3, 8, 11])
def test_every_site_gets_a_record(num_sites: int) -> None:
    people = population(num_sites + (num_sites > 1), num_sites, 0, Design())
    assert {person.site.name for person in people} == {str(n + 1) for n in range(num_sites)}
    assert len({site.name for site in sites(num_sites)}) == num_sites


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        write_cohort(tmp_path / "full", num_records=5, num_sites=1, seed=0)
    with pytest.raises(ConfigError, match=r"records must give each of 5 sites .* got 4"):
        population(4, 5, 0, Design())
    with pytest.raises(ConfigError, match="sites must be"):
        population(5, 0, 0, Design())
    with pytest.raises(ConfigError, match="shares must be one for each of 2 sites, got 3"):
        population(50, 2, 0, Design(shares=(1, 2, 3)))
    with pytest.raises(ConfigError, match="no site '3'; allowed: 1, 2"):
        write_cohort(
            tmp_path / "c", num_records=5, num_sites=2, seed=0, design=Design(unlabelled=("3",))
        )
    for wrong in ({"prevalence": 0.9}, {"label_signal": -1.0}, {"site_shift": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Design(**wrong)


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
    assert _auroc(cohort, np.concatenate(statistics, 1)) < 0.88  # beats: 0.9 and more


def test_noise_gives_the_answer_away_at_the_first_hospital_alone(cohort: Cohort) -> None:
    low = np.array([person.ejection_fraction < LOW_EF for person in cohort.people])
    site = np.array([person.site.name for person in cohort.people])
    noise = np.abs(np.diff(cohort.signal[:, :, :1000], n=2)).mean((1, 2)) * cohort.scale_uv
    areas = {name: roc_auc_score(low[site == name], noise[site == name]) for name in "123"}
    assert areas["1"] > 0.65
    assert areas["2"] < 0.6
    assert areas["3"] < 0.6


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
