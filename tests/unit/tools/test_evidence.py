"""Evidence on real labels: statistics, hand-made features, and the page made of its rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import resample
from sklearn.metrics import roc_auc_score

from ecgfast.bench import peers_module

# Each after those that it imports: benchmarks/ is on no path of imports.
_, ROWS, FEATURES = map(peers_module, ("plot", "evidence_rows", "hand_features"))


def cohort(seed: int, *, num_patients: int = 60) -> tuple[Any, Any, Any]:
    """Labels, a score that ranks them well, and patients of one to three records."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), rng.integers(1, 4, num_patients))
    is_case = rng.random(num_patients)[patient] < 0.4
    return is_case, rng.normal(size=len(patient)) + 1.5 * is_case, patient


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
