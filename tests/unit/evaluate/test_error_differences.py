"""Differences of errors of two runs: by hand, against the bootstrap and all flips of signs."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from statsmodels.stats.multitest import multipletests

from ecgfast.evaluate.discrimination import PairedTest
from ecgfast.evaluate.error_differences import (
    ErrorDifferences,
    compare,
    sign_flip_p_value,
)

Floats = NDArray[np.float64]


def cohort(seed: int, num_patients: int, better: float) -> tuple[Floats, ...]:
    """Errors of two runs that are alike, and the patients; the first are smaller by a factor."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 6, num_patients))
    shared = rng.normal(0, 4, num_patients)[patients] + rng.normal(0, 2, len(patients))
    own = rng.normal(0, 3, (2, num_patients))[:, patients]
    return better * (shared + own[0]), shared + own[1], patients


def test_four_records_by_hand() -> None:
    """Absolute errors 2 3 1 5 and 5 0 8 1, their differences -3 3 -7 4 of patients a a b c."""
    first, second = np.array([2.0, -3, 1, 5]), np.array([-5.0, 0, 8, 1])
    found = compare(first, second, np.array([0, 0, 1, 2]))
    mae, rmse = found["mae"], found["rmse"]
    assert mae.difference == pytest.approx(-0.75)
    assert rmse.difference == pytest.approx(np.sqrt(39 / 4) - np.sqrt(90 / 4))
    # Less the mean and by patient: 1.5, -6.25, 4.75; over n squared, three patients of two.
    error = np.sqrt((1.5**2 + 6.25**2 + 4.75**2) / 16 * 3 / 2)
    half = t.ppf(0.975, 2) * error
    assert [mae.low, mae.high] == pytest.approx([-0.75 - half, -0.75 + half])
    # Sums by patient 0, -7, 4: every flip of signs sums to 3 or more.
    assert mae.p_value == 1.0
    # Squares -21 + 9, -63, 24: a sum of -51; of 8 flips 51, 75 and 99, but 27 on either side.
    assert rmse.p_value == pytest.approx(6 / 8, abs=0.02)


def test_the_p_value_is_that_of_all_flips() -> None:
    differences = np.array([1.0, -0.5, 2.0, 0.3, 1.5, -0.2, 0.9, 0.4, -1.1, 0.8])
    sums = np.array([np.dot(signs, differences) for signs in product((-1, 1), repeat=10)])
    exact = (np.abs(sums) >= differences.sum() - 1e-9).mean()
    assert 0.05 < exact < 0.15
    assert sign_flip_p_value(differences) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p_value(-differences) == sign_flip_p_value(differences)
    assert sign_flip_p_value(np.append(differences, np.nan)) == 1.0


def test_intervals_are_those_of_a_bootstrap_over_patients() -> None:
    first, second, patients = cohort(2, 200, 0.8)
    found = compare(first, second, patients)
    rng, rows = np.random.default_rng(3), [np.flatnonzero(patients == n) for n in range(200)]
    nothing, drawn = np.zeros(len(first)), []
    for _ in range(600):
        chosen = np.concatenate([rows[n] for n in rng.integers(0, 200, 200)])
        drawn.append(
            [
                of(nothing[chosen], first[chosen]) - of(nothing[chosen], second[chosen])
                for of in (mean_absolute_error, root_mean_squared_error)
            ]
        )
    for part, values in zip(found.values(), np.transpose(drawn), strict=True):
        ends = np.quantile(values, [0.025, 0.975])
        assert [part.low, part.high] == pytest.approx(ends, abs=0.15 * (ends[1] - ends[0]))
        assert part.p_value is not None
        assert part.p_value < 0.01


@pytest.mark.parametrize("name", ["mae", "rmse"])
def test_equal_runs_differ_as_often_as_chance_has_it(name: str) -> None:
    """Of 200 pairs without a true difference 2 to 19 have p below 0.05: binomial, 99.9 %."""
    values = [compare(*cohort(seed, 15, 1.0))[name].p_value for seed in range(200)]
    assert 2 <= sum(value < 0.05 for value in values if value is not None) <= 19


def test_a_run_does_not_differ_from_itself() -> None:
    first, _, patients = cohort(1, 30, 1.0)
    for test in compare(first, first, patients).values():
        assert (test.difference, test.low, test.high, test.p_value) == (0, 0, 0, 1)


def test_what_is_not_defined_says_why() -> None:
    few = compare(np.zeros(1), np.zeros(1), np.zeros(1, np.intp))["mae"]
    assert (few.p_value, few.reason) == (None, "fewer than two labelled records")
    one = compare(np.ones(3), np.zeros(3), np.zeros(3, np.intp))["rmse"]
    assert (one.p_value, one.reason) == (None, "records of a single patient")


def test_all_tests_of_a_report_are_corrected_together() -> None:
    p_values = {("a", "B", "mae"): 0.01, ("a", "B", "rmse"): 0.04, ("b", "B", "mae"): 0.03}
    tests = {
        key: PairedTest(difference=-1.0, low=-2.0, high=-0.5, p_value=p_value)
        for key, p_value in p_values.items()
    }
    tests["b", "B", "rmse"] = PairedTest(reason="records of a single patient")
    found = ErrorDifferences(first="A", tests=tests)
    expected = multipletests([*p_values.values()], method="holm")[1]
    assert found.p_holm == pytest.approx(dict(zip(p_values, expected, strict=True)))
    assert [list(row) for row in found.table().rows] == [
        ["a", "B", "MAE", "-1.000 (-2.000 to -0.500)", "0.010", "0.030"],
        ["a", "B", "RMSE", "-1.000 (-2.000 to -0.500)", "0.040", "0.060"],
        ["b", "B", "MAE", "-1.000 (-2.000 to -0.500)", "0.030", "0.060"],
        ["b", "B", "RMSE", "not defined", "-", "-"],
    ]
    assert found.sentences("a") == [
        "A minus B, mean absolute error: -1.000 (-2.000 to -0.500); p 0.010, corrected for all "
        "comparisons 0.030."
    ]
