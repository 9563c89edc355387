"""Evidence on real labels: statistics, hand-made features, and the page made of its rows."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import resample
from sklearn.metrics import roc_auc_score

from ecgfast.bench import peers_module
from ecgfast.convert import convert
from ecgfast.store import open_store

ROOT = Path(__file__).resolve().parents[3]
# Each after those that it imports: benchmarks/ is on no path of imports.
PLOT, ROWS, FEATURES, MODELS = map(
    peers_module, ("plot", "evidence_rows", "hand_features", "evidence_models")
)


def cohort(seed: int, *, num_patients: int = 60) -> tuple[Any, Any, Any]:
    """Labels, a score that ranks them well, and patients of one to three records."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), rng.integers(1, 4, num_patients))
    is_case = rng.random(num_patients)[patient] < 0.4
    return is_case, rng.normal(size=len(patient)) + 1.5 * is_case, patient


def test_the_page_holds_what_the_rows_say() -> None:
    page = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    rows = ROWS.read(ROOT / "benchmarks/evidence")
    assert PLOT.fill(page, ROWS.tables(rows) + "\n") == page


def test_areas_and_differences_are_those_of_scikit_learn() -> None:
    is_case, score, patient = cohort(0)
    other = np.random.default_rng(1).normal(size=len(score)) + is_case
    found = ROWS.on_all_labels(is_case, score, other, patient)
    ours, theirs = roc_auc_score(is_case, score), roc_auc_score(is_case, other)
    assert found["auroc"] == pytest.approx(ours, abs=1e-12)
    assert found["difference"] == pytest.approx(ours - theirs, abs=1e-12)
    assert found["low"] < ours < found["high"]
    assert found["difference_low"] < ours - theirs < found["difference_high"]


def test_seeds_that_differ_widen_the_interval_of_fewer_labels() -> None:
    is_case, score, patient = cohort(0)
    noise = np.random.default_rng(2).normal(size=(2, len(score)))
    seeds = [score, score + 3 * noise[0], score + 0.5 * noise[1]]
    found = ROWS.on_fewer_labels(is_case, seeds, None, patient)
    assert found["auroc"] == pytest.approx(np.mean([roc_auc_score(is_case, s) for s in seeds]))
    assert (found["difference"], found["difference_low"], found["difference_high"]) == (0, 0, 0)
    same = ROWS.on_fewer_labels(is_case, [score] * 3, None, patient)
    exact = ROWS.on_all_labels(is_case, score, score, patient)
    assert found["high"] - found["low"] > 1.2 * (same["high"] - same["low"])
    # Without a spread of seeds the bootstrap over patients is as wide as the clustered interval.
    ratio = (same["high"] - same["low"]) / (exact["high"] - exact["low"])
    assert 0.8 < ratio < 1.2


def test_a_comparison_is_made_seed_by_seed() -> None:
    is_case, score, patient = cohort(0)
    noise = np.random.default_rng(3).normal(size=(3, len(score)))
    ours, theirs = [score + 2 * n for n in noise], [score + 2 * n - 0.05 * is_case for n in noise]
    found = ROWS.on_fewer_labels(is_case, ours, theirs, patient)
    assert 0 < found["difference_low"] < found["difference"] < found["difference_high"] < 0.05


def heart(rate_bpm: float, *, amplitude_uv: float = 1000.0) -> Any:
    """12 leads of a regular rhythm: narrow R waves and low, wide T waves."""
    time_s = np.arange(5000) / 500
    phase_s = (time_s + 0.2) % (60 / rate_bpm)
    r = np.exp(-(((phase_s - 0.2) / 0.012) ** 2))
    t = 0.2 * np.exp(-(((phase_s - 0.45) / 0.04) ** 2))
    lead = amplitude_uv * (r + t)
    return np.stack([lead * (1 + n / 12) for n in range(12)]).astype(np.float32)


@pytest.mark.parametrize("rate_bpm", [50.0, 75.0, 110.0])
def test_hand_made_features_count_the_beats(rate_bpm: float) -> None:
    features = FEATURES.hand_features(heart(rate_bpm))
    assert features.shape == (547,)
    assert np.isfinite(features).all()
    assert features[0] == pytest.approx(rate_bpm, rel=0.02)
    assert features[1] < 0.01  # the scatter of a regular rhythm, s


def test_hand_made_features_keep_the_amplitude() -> None:
    once, twice = (FEATURES.hand_features(heart(70, amplitude_uv=a)) for a in (1000.0, 2000.0))
    samples = slice(547 - 12 * 25, 547)  # of the median beat, mV
    np.testing.assert_allclose(2 * once[samples], twice[samples], atol=1e-6)
    assert np.abs(once[samples]).max() > 0.3
    np.testing.assert_allclose(once[:7], twice[:7])  # the rhythm


def test_hand_made_features_of_a_flat_or_noisy_record_are_numbers() -> None:
    noise = np.random.default_rng(0).normal(size=(12, 5000)) * 50
    for signal in (np.zeros((12, 5000)), noise, resample(noise, 5000, axis=1)):
        assert np.isfinite(FEATURES.hand_features(signal.astype(np.float32))).all()


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no rows in"):
        ROWS.read(tmp_path)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    (row, *_) = ROWS.read(ROOT / "benchmarks/evidence")
    ROWS.write(tmp_path / "here.jsonl", [row])
    assert ROWS.read(tmp_path) == [row]


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The 500 labelled ECGs alone, as a cohort."""
    store, source = tmp_path_factory.mktemp("evidence") / "cohort", shared_data / "ptbxl500"
    convert(
        [source / "records500"], store, labels=source / "labels.csv", target="NORM=1", workers=1,
        columns=[*MODELS.LABELS[:-1], "sex"],
    )  # fmt: skip
    return MODELS.Cohort.of(open_store(store))


@pytest.mark.slow
def test_no_patient_and_no_copy_is_on_both_sides_of_a_fold(real: Any) -> None:
    assert real.is_case.shape == (495, 8)  # five of the 500 are copies
    assert real.is_case[:, 1:7].sum(axis=0).tolist() == [73, 96, 78, 39, 13, 34]
    for fold in range(1, 6):
        held = set(real.patient[real.fold == fold].tolist())
        parts = [real.part(fold, fraction, 0) for fraction in (0.1, 0.3, 1.0)]
        for part in parts:
            assert not held & set(real.patient[part].tolist())
            assert len(np.unique(real.is_case[part, 0])) == 2
        assert set(parts[0].tolist()) < set(parts[1].tolist()) < set(parts[2].tolist())
        assert len(parts[2]) == (real.fold != fold).sum()
    assert real.part(1, 0.1, 0).tolist() != real.part(1, 0.1, 1).tolist()


@pytest.mark.slow
def test_models_score_records_that_they_did_not_learn_from(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = (*MODELS.TRAINING, "finetune.epochs=1", "model.filters=8")
    network = partial(MODELS.trained, MODELS.NETWORK, short, None)
    monkeypatch.setattr(MODELS, "FEWEST_UPDATES", 4)
    train, test = real.part(1, 0.3, 0), np.flatnonzero(real.fold == 1)
    labels = np.array([0, 2])
    for fit in (MODELS.beat_regression, network):
        scores = fit(real, train, test, labels, 0)
        assert scores.shape == (len(test), 2)
        assert np.isfinite(scores).all()
        assert np.ptp(scores, axis=0).min() > 0
        np.testing.assert_allclose(fit(real, train, test, labels, 0), scores, atol=1e-5)
    norm = MODELS.beat_regression(real, train, test, labels, 0)[:, 0]
    assert roc_auc_score(real.is_case[test, 0], norm) > 0.7
