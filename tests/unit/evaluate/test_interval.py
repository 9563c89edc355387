"""Intervals of shares against written-out formulas, binomial tables and numbers by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from ecgfast.errors import ShapeError
from ecgfast.evaluate.discrimination import delong
from ecgfast.evaluate.interval import BINOMIAL, LOGIT_T, Spread, mean_interval, spread

# Records, and hits among them, of five patients.
RECORDS, HITS = (2, 1, 4, 3, 2), (2, 0, 3, 1, 2)


def five_patients() -> tuple[list[bool], list[str]]:
    hits = [i < hit for n, hit in zip(RECORDS, HITS, strict=True) for i in range(n)]
    return hits, [name for name, n in zip("abcde", RECORDS, strict=True) for _ in range(n)]


def test_a_clustered_share_equals_the_written_out_formula() -> None:
    hits, patient = five_patients()
    share = 8 / 12
    sums = [(hit - n * share) / 12 for n, hit in zip(RECORDS, HITS, strict=True)]
    second, fourth = sum(u**2 for u in sums), sum(u**4 for u in sums)
    std_error = math.sqrt(second * 5 / 4)
    dof = min(4.0, 2 / (fourth / second**2 - 1 / 5))
    half = stats.t.ppf(0.975, dof) * std_error / (share * (1 - share))
    ends = [1 / (1 + math.exp(-(math.log(2) + sign * half))) for sign in (-1, 1)]
    result = mean_interval(hits, patient, if_empty="no cases")
    assert (result.value, result.low, result.high) == pytest.approx((share, *ends), rel=1e-12)
    assert (result.method, result.reason) == (LOGIT_T, "")


def test_one_patient_who_carries_the_variance_leaves_few_degrees_of_freedom() -> None:
    """One hit of ten: 2.8 degrees by the fourth moment, where the patients alone leave 9."""
    dof = 2 / ((0.9**4 + 9 * 0.1**4) / 0.9**2 - 1 / 10)
    half = stats.t.ppf(0.975, dof) * 0.1 / (0.1 * 0.9)
    ends = [1 / (1 + math.exp(math.log(9) + sign * half)) for sign in (1, -1)]
    result = mean_interval([True] + [False] * 9, None, if_empty="no cases")
    assert (result.value, result.low, result.high) == pytest.approx((0.1, *ends), rel=1e-9)


def test_records_of_one_patient_are_not_independent() -> None:
    hits, patient = five_patients()
    many, names = np.tile(hits, 8), np.tile(patient, 8)
    same = mean_interval(many, names, if_empty="no cases")
    once = mean_interval(hits, patient, if_empty="no cases")
    apart = mean_interval(many, None, if_empty="no cases")
    assert (same.low, same.high) == pytest.approx((once.low, once.high), rel=1e-9)
    assert None not in (apart.low, apart.high, same.low, same.high)
    assert apart.high - apart.low < 0.5 * (same.high - same.low)  # type: ignore[operator]  # not None


@pytest.mark.parametrize("patients", [2, 12, 60])
def test_perfect_shares_have_the_exact_bound_over_patients(patients: int) -> None:
    names = np.repeat(np.arange(patients), 3)
    everyone = mean_interval(np.ones(len(names), dtype=bool), names, if_empty="no cases")
    nobody = mean_interval(np.zeros(len(names), dtype=bool), names, if_empty="no cases")
    exact = stats.binomtest(patients, patients).proportion_ci(0.95, method="exact")
    assert (everyone.low, everyone.high) == pytest.approx((exact.low, 1.0), rel=1e-9)
    assert (nobody.low, nobody.high) == pytest.approx((0.0, 1 - exact.low), rel=1e-9)
    assert everyone.low == pytest.approx(0.025 ** (1 / patients))
    assert everyone.method == nobody.method == BINOMIAL


def test_perfect_separation_is_not_certainty() -> None:
    """12 patients are cases and 48 controls, 2 ECGs each: 12 pairs that share no patient."""
    y = np.repeat([True, False], [24, 96])
    area = delong(y, y + 0.1, np.arange(120) // 2)
    assert (area.value, area.high, area.reason) == (1.0, 1.0, "")
    assert area.low == pytest.approx(0.73535, abs=5e-6)  # 0.025 ** (1 / 12)
    reverse = delong(y, -y.astype(float), np.arange(120) // 2)
    assert (reverse.value, reverse.low) == (0.0, 0.0)
    assert reverse.high == pytest.approx(0.26465, abs=5e-6)


def test_one_score_for_all_is_a_share_of_half() -> None:
    area = delong([1] * 10 + [0] * 30, np.zeros(40))
    exact = stats.binomtest(5, 10).proportion_ci(0.95, method="exact")
    assert (area.value, area.low, area.high) == pytest.approx((0.5, exact.low, exact.high))


def test_what_has_no_interval_says_why() -> None:
    assert mean_interval([], None, if_empty="no cases").reason == "no cases"
    single = mean_interval([True, False], ["a", "a"], if_empty="no cases")
    assert (single.value, single.low, single.reason) == (0.5, None, "records of a single patient")
    with pytest.raises(ShapeError, match="one patient per record"):
        mean_interval([True, False], ["a"], if_empty="no cases")


def test_a_class_of_a_single_patient_has_an_area_and_no_interval() -> None:
    y, score, patients = np.array([True, True, False, False]), [0.9, 0.4, 0.5, 0.2], list("abcc")
    area, reverse = delong(y, score, patients), delong(~y, score, patients)
    assert (area.value, area.low, area.reason) == (0.75, None, "controls of a single patient")
    assert (reverse.value, reverse.low, reverse.reason) == (0.25, None, "cases of a single patient")


def test_a_nearly_certain_value_stays_inside_zero_and_one() -> None:
    values = np.zeros(4000, dtype=bool)
    values[0] = True
    result = mean_interval(values, np.arange(4000) // 2, if_empty="no cases")
    assert result.low is not None
    assert result.high is not None
    assert 0 < result.low < 1 / 4000 < result.high < 1


@pytest.mark.parametrize("size", [0.1, 1e-7])
def test_patients_who_differ_from_none_have_no_spread(size: float) -> None:
    """Of three patients, two cancel out: their controls weigh against their cases."""
    influence = np.array([size, -size, 0, -size, size])
    is_case, patients = np.array([True, True, True, False, False]), np.array([0, 1, 2, 0, 1])
    assert spread(influence, is_case, patients) == Spread(std_error=0.0, dof=1.0, num_patients=2)
    influence[3] = 0
    assert spread(influence, is_case, patients).std_error > size


@pytest.mark.parametrize("patients", [2, 4])
def test_patients_of_equal_weight_leave_one_degree_of_freedom_less(patients: int) -> None:
    """Half of them hits: the standard error is 1 / 2 / sqrt(P - 1), with P - 1 degrees."""
    result = mean_interval([True, False] * (patients // 2), None, if_empty="no cases")
    half = stats.t.ppf(0.975, patients - 1) * 0.5 / math.sqrt(patients - 1) / 0.25
    ends = [1 / (1 + math.exp(sign * half)) for sign in (1, -1)]
    assert (result.value, result.low, result.high) == pytest.approx((0.5, *ends), rel=1e-9)


def test_patients_who_are_their_own_controls_count_as_pairs() -> None:
    """A case and a control of each: what they add to either cancels out, but for 1 up or down."""
    up = np.tile([1.0, -1.0], 5)
    influence, is_case = np.concatenate([10 * up, -9 * up]), np.repeat([True, False], 10)
    found = spread(influence, is_case, np.tile(np.arange(10), 2))
    assert (found.std_error, found.dof) == pytest.approx((math.sqrt(10 * 10 / 9), 9))


def test_degrees_of_freedom_are_of_patients_with_cases_with_controls_and_with_both() -> None:
    """Two, four and three of them; each kind's patients add 3, 2 and (5 - 4) up or down."""
    patients = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8])
    is_case = np.array([1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0], bool)
    influence = np.array([3, -3, 2, -2, 2, -2, 5, -5, 5, -4, 4, -4.0])
    parts, dofs = np.array([18 * 2 / 1, 16 * 4 / 3, 3 * 3 / 2]), np.array([1, 3, 2])
    welch = parts.sum() ** 2 / (parts**2 / dofs).sum()
    found = spread(influence, is_case, patients)
    assert found.dof == pytest.approx(welch)
    assert spread(influence, ~is_case, patients).dof == pytest.approx(welch)
