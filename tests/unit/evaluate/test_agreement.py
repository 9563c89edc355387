"""Agreement of numbers: values against scikit-learn, intervals against the bootstrap."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from ecgfast.evaluate import planning
from ecgfast.evaluate.agreement import Agreement, agreement, agreements

PARTS = ("mae", "rmse", "r2", "bias", "lower", "upper")


def cohort(seed: int, num_patients: int) -> tuple[NDArray[np.float64], ...]:
    """Measured and predicted numbers of patients with up to five ECGs that are alike."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 6, num_patients))
    of_patient, error = rng.normal(55, 10, num_patients), rng.normal(2, 5, num_patients)
    measured = of_patient[patients] + rng.normal(0, 3, len(patients))
    predicted = measured + error[patients] + rng.normal(0, 4, len(patients))
    return measured, predicted, patients


def by_hand(measured: NDArray[np.float64], predicted: NDArray[np.float64]) -> dict[str, float]:
    difference = predicted - measured
    half = 1.96 * np.std(difference, ddof=1)
    return {
        "mae": mean_absolute_error(measured, predicted),
        "rmse": root_mean_squared_error(measured, predicted),
        "r2": r2_score(measured, predicted),
        "bias": difference.mean(),
        "lower": difference.mean() - half,
        "upper": difference.mean() + half,
    }


def test_values_are_scikit_learns() -> None:
    measured, predicted, patients = cohort(1, 40)
    found = agreement(measured, predicted, patients)
    for name, value in by_hand(measured, predicted).items():
        assert getattr(found, name).value == pytest.approx(value), name
    assert (found.num_patients, len(found.measured)) == (40, len(measured))


def test_intervals_are_those_of_a_bootstrap_over_patients() -> None:
    measured, predicted, patients = cohort(2, 200)
    found = agreement(measured, predicted, patients)
    rng, rows = np.random.default_rng(3), [np.flatnonzero(patients == n) for n in range(200)]
    drawn = [
        by_hand(measured[chosen], predicted[chosen])
        for chosen in (
            np.concatenate([rows[n] for n in rng.integers(0, 200, 200)]) for _ in range(600)
        )
    ]
    for name in PARTS:
        part = getattr(found, name)
        ends = np.quantile([each[name] for each in drawn], [0.025, 0.975])
        width = ends[1] - ends[0]
        assert [part.low, part.high] == pytest.approx(ends, abs=0.15 * width), name


def test_a_report_takes_the_records_of_one_patient_together() -> None:
    measured, predicted, patients = cohort(4, 30)
    plan = planning.TestPlan(
        target="ejection_fraction",
        is_case=measured < 0,
        patients=patients,
        cohorts={"site 1": {"ViT": np.arange(len(measured))}},
        notes=(),
        truth=measured,
    )
    run: Any = SimpleNamespace(name="ViT", scores=predicted)
    store: Any = None  # is read for averages alone
    found = agreements([run], plan, store, average=False).cohorts["site 1"]["ViT"]
    assert found.bias == agreement(measured, predicted, patients).bias
    apart = agreement(measured, predicted, np.arange(len(measured))).bias
    assert found.bias.low < apart.low  # type: ignore[operator]  # not None


def reasons(found: Agreement) -> set[str]:
    return {getattr(found, name).reason for name in PARTS}


def test_what_is_not_defined_says_why() -> None:
    nothing, patient = np.zeros(0), np.zeros(3, np.intp)
    assert reasons(agreement(nothing, nothing, patient[:0])) == {"fewer than two labelled records"}
    measured = np.array([40.0, 50.0, 60.0])
    one = agreement(measured, measured + np.array([1.0, 2.0, 4.0]), patient)
    assert reasons(one) == {"records of a single patient"}
    assert one.bias.value == pytest.approx(7 / 3)
    alike = agreement(np.full(3, 50.0), measured, np.arange(3))
    assert (alike.r2.value, alike.r2.reason) == (None, "all measured numbers are alike")
    assert alike.mae.value == pytest.approx(20 / 3)
