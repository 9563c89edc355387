"""AUROC, DeLong and Obuchowski against published numbers, scikit-learn and the bootstrap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics

from ecgfast.errors import ShapeError
from ecgfast.evaluate import discrimination
from ecgfast.evaluate.discrimination import (
    DELONG_T,
    PERMUTATION,
    Auroc,
    delong,
    delong_mean,
    delong_paired,
    holm,
    permutation_p_value,
)
from ecgfast.runs.roc import auroc, roc_curve

Floats = NDArray[np.float64]

# Ovarian cancer: albumin, total protein, K-G score, outcome (DeLong et al. 1988, the 43 complete
# rows as the SAS/STAT manual prints them).
OVARIAN = np.fromstring(
    """3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0
    1.6 5.6 5 1 3.8 5.7 5 1 3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1
    4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0 4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1
    3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1
    3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1
    3.5 6.2 5 1 2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1
    3.6 6.6 5 1""",
    sep=" ",
).reshape(-1, 4)


def _plain(result: Auroc) -> tuple[float, float, float, float]:
    """Value, standard error and the normal interval that other packages print."""
    assert result.value is not None
    assert result.std_error is not None
    half = 1.959964 * result.std_error
    return result.value, result.std_error, result.value - half, result.value + half


def correlated_cohort(
    seed: int, num_patients: int = 150
) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Records of patients who come back: labels may change, scores share a patient effect."""
    rng = np.random.default_rng(seed)
    visits = rng.integers(1, 5, num_patients)
    patient = np.repeat(np.arange(num_patients), visits)
    severity = rng.normal(size=num_patients)[patient]
    y = severity + 0.4 * rng.normal(size=len(patient)) > 0.6
    score = severity + rng.normal(size=num_patients)[patient] + 0.5 * rng.normal(size=len(patient))
    return y, score, patient.astype(float)


@pytest.mark.parametrize(
    ("column", "sign", "area", "std_error", "low", "high"),
    [
        (0, 1, 0.7366, 0.0927, 0.5549, 0.9182),
        (1, 1, 0.6478, 0.1000, 0.4518, 0.8439),
        (2, -1, 0.7258, 0.1028, 0.5243, 0.9273),
    ],
)
def test_delong_equals_sas_on_ovarian_cancer(
    column: int, sign: int, area: float, std_error: float, low: float, high: float
) -> None:
    result = delong(OVARIAN[:, 3], sign * OVARIAN[:, column])
    assert _plain(result) == pytest.approx((area, std_error, low, high), abs=5e-5)
    assert (result.num_cases, result.num_controls) == (31, 12)


def test_paired_delong_equals_sas_on_ovarian_cancer() -> None:
    kg_score = -OVARIAN[:, 2]
    albumin = delong_paired(OVARIAN[:, 3], OVARIAN[:, 0], kg_score)
    protein = delong_paired(OVARIAN[:, 3], OVARIAN[:, 1], kg_score)
    for test, difference, low, high in (
        (albumin, 0.0108, -0.1761, 0.1976),
        (protein, -0.0780, -0.2830, 0.1271),
    ):
        # SAS takes the normal distribution; ours is Student's t, so wider, around the same value.
        error = (high - low) / 2 / 1.959964
        assert test.std_error == pytest.approx(error, abs=3e-5)
        assert test.difference == pytest.approx(difference, abs=5e-5)
        assert test.low is not None
        assert -0.34 < test.low < low
    assert (albumin.p_value, protein.p_value) == pytest.approx((0.9102, 0.4561), abs=0.02)


def test_delong_equals_stata_on_hanley_mcneil_ratings() -> None:
    counts = [33, 6, 6, 11, 2, 3, 2, 2, 11, 33]  # normal, then abnormal, by rating 1..5
    y = np.repeat([0] * 5 + [1] * 5, counts)
    rating = np.repeat(list(range(1, 6)) * 2, counts)
    result = delong(y, rating)
    assert _plain(result) == pytest.approx((0.8932, 0.0307, 0.83295, 0.95339), abs=5e-5)
    # Ours is on the logit scale: further from 1, and it stays so under the mirrored scale.
    assert result.low is not None
    assert result.high is not None
    assert result.low < 0.83295
    assert result.high < 0.95339
    mirrored = delong(y, -rating)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - result.high, 1 - result.low))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40))
def test_auroc_equals_scikit_learn_and_the_curve_counts(rows: list[tuple[bool, int]]) -> None:
    y, score = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    if y.all() or not y.any():
        assert auroc(y, score) is None
        return
    assert auroc(y, score) == pytest.approx(metrics.roc_auc_score(y, score), abs=1e-12)
    thresholds = [np.inf, *np.unique(score)[::-1]]
    for shares, of in zip(roc_curve(y, score), (~y, y), strict=True):
        assert shares.tolist() == [(score[of] >= threshold).mean() for threshold in thresholds]


def test_clustered_variance_equals_the_written_out_sums() -> None:
    y, score, patient = correlated_cohort(3, num_patients=40)
    cases, controls = np.flatnonzero(y), np.flatnonzero(~y)

    def wins(i: int, j: int) -> float:
        return float(score[i] > score[j]) + 0.5 * float(score[i] == score[j])

    v10 = {i: np.mean([wins(i, j) for j in controls]) for i in cases}
    v01 = {j: np.mean([wins(i, j) for i in cases]) for j in controls}
    area = np.mean(list(v10.values()))
    s10 = s01 = s11 = 0.0
    for p in np.unique(patient):
        of_case = sum(v10[i] - area for i in cases if patient[i] == p)
        of_control = sum(v01[j] - area for j in controls if patient[j] == p)
        s10, s01, s11 = s10 + of_case**2, s01 + of_control**2, s11 + of_case * of_control
    num, m, k = len(np.unique(patient)), len(cases), len(controls)
    with_case, with_control = len(np.unique(patient[y])), len(np.unique(patient[~y]))
    variance = (
        s10 * with_case / ((with_case - 1) * m) / m
        + s01 * with_control / ((with_control - 1) * k) / k
        + 2 * s11 * num / (num - 1) / (m * k)
    )
    assert delong(y, score, patient).std_error == pytest.approx(variance**0.5, rel=1e-12)


def test_clustered_interval_agrees_with_the_patient_bootstrap() -> None:
    y, score, patient = correlated_cohort(11)
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(patient == p) for p in np.unique(patient)]
    areas = []
    for _ in range(800):
        drawn = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        areas.append(metrics.roc_auc_score(y[drawn], score[drawn]))
    bootstrap = float(np.std(areas))
    clustered, naive = delong(y, score, patient).std_error, delong(y, score).std_error
    assert clustered == pytest.approx(bootstrap, rel=0.10)  # 800 draws: 2.5 % of noise
    assert naive is not None
    assert naive < 0.85 * bootstrap  # what taking records as independent would have claimed


def test_the_mean_of_areas_varies_as_areas_and_their_difference_say() -> None:
    """var((A + B) / 2) = (2 var A + 2 var B - var(A - B)) / 4, each by its own test."""
    y, score, patient = correlated_cohort(12)
    other = score + np.random.default_rng(1).normal(size=len(score))
    areas, mean = delong_mean(y, [score, other], patient)
    one, two = delong(y, score, patient), delong(y, other, patient)
    assert areas == pytest.approx((one.value, two.value), abs=1e-15)
    assert mean.value == pytest.approx(np.mean(areas))
    apart = delong_paired(y, score, other, patient).std_error
    assert one.std_error is not None
    assert two.std_error is not None
    assert apart is not None
    variance = (2 * one.std_error**2 + 2 * two.std_error**2 - apart**2) / 4
    assert mean.std_error == pytest.approx(variance**0.5, rel=1e-12)


def test_records_seen_twice_add_no_certainty() -> None:
    y, score, _ = correlated_cohort(5)
    once = delong(y, score)
    twice = delong(np.tile(y, 2), np.tile(score, 2), np.tile(np.arange(len(y)), 2))
    assert twice.value == pytest.approx(once.value, abs=1e-12)
    assert twice.std_error == pytest.approx(once.std_error, rel=1e-12)


def test_one_patient_each_is_plain_delong() -> None:
    y, score, _ = correlated_cohort(7)
    names = np.array([f"patient {i}" for i in range(len(y))])
    assert delong(y, score, names).std_error == pytest.approx(delong(y, score).std_error, rel=1e-12)


def test_paired_test_of_a_score_with_itself_finds_nothing() -> None:
    y, score, patient = correlated_cohort(9)
    result = delong_paired(y, score, np.exp(score), patient)  # a monotone change keeps the ranks
    assert (result.difference, result.p_value) == (0.0, 1.0)


def test_paired_test_rejects_at_its_level_under_the_null() -> None:
    rejected = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        y = rng.random(120) < 0.3
        first, second = y + rng.normal(size=120), y + rng.normal(size=120)
        p_value = delong_paired(y, first, second).p_value
        assert p_value is not None
        rejected += p_value < 0.05
    assert 2 <= rejected <= 20  # 10 expected, binomial 99.9 % range


@pytest.mark.parametrize("patients", [3, 6, 40])
def test_one_against_zero_has_an_exact_test(patients: int) -> None:
    """All patients swapped, or none: 2 of the 2^P ways are as far apart; p is never 0."""
    y, patient = np.repeat([True, False], [patients, patients]), np.tile(np.arange(patients), 2)
    perfect = y * 1000.0 + patient
    result = delong_paired(y, perfect, -perfect, patient)
    assert (result.difference, result.std_error, result.method) == (1.0, 0.0, PERMUTATION)
    assert result.p_value is not None
    expected = 2 / 2**patients
    noise = 2 * (expected * (1 - expected) / 999) ** 0.5  # of 999 permutations
    assert 1 / 1000 <= result.p_value <= 1 / 1000 + expected + noise
    assert result.p_value >= expected - noise
    assert patients < 40 or result.p_value == 1 / 1000  # 999 permutations, none as extreme
    assert result.high == 1.0
    assert result.low is not None
    # Both areas have the bound of `patients` pairs; the difference joins the two distances.
    assert result.low == pytest.approx(1 - 2**0.5 * (1 - 0.025 ** (1 / patients)))


def test_two_perfect_scores_differ_by_no_more_than_their_bounds() -> None:
    y, patient = np.repeat([True, False], [12, 48]), np.arange(60)
    result = delong_paired(y, y + patient / 1000, y - patient / 1000, patient)
    assert (result.difference, result.p_value) == (0.0, 1.0)
    low = 0.025 ** (1 / 12) - 1
    assert (result.low, result.high) == pytest.approx((low, -low))


def test_the_permutation_test_agrees_with_the_variance_and_keeps_patients_whole() -> None:
    y, score, patient = correlated_cohort(21, num_patients=60)
    other = score + 1.2 * np.random.default_rng(1).normal(size=len(y))
    usual = delong_paired(y, score, other, patient)
    assert usual.method == DELONG_T
    assert usual.p_value is not None
    permuted = permutation_p_value(y, np.stack([score, other]), patient)
    assert permuted == permutation_p_value(y, np.stack([score, other]), patient)
    assert permuted == pytest.approx(usual.p_value, abs=0.03)
    # Four copies of one cohort are four times the records, and not one patient more.
    copies = np.tile(np.stack([score, other]), 4)
    assert permutation_p_value(np.tile(y, 4), copies, np.tile(patient, 4)) == permuted
    assert permutation_p_value(np.tile(y, 4), copies, np.arange(4 * len(y))) < permuted


@pytest.mark.parametrize(
    ("y", "reason"),
    [([1, 1], "no controls"), ([0, 0], "no cases"), ([], "no labelled records")],
)
def test_one_class_is_not_defined_and_says_why(y: list[int], reason: str) -> None:
    result = delong(y, [0.1] * len(y))
    assert result.value is None
    assert result.low is None
    assert result.reason == reason
    assert auroc(y, [0.1] * len(y)) is None
    assert delong_paired(y, [0.1] * len(y), [0.2] * len(y)).reason == reason


@pytest.mark.parametrize(("case", "reason"), [(True, "cases"), (False, "controls")])
def test_a_single_patient_of_a_class_has_a_value_without_an_interval(
    case: bool, reason: str
) -> None:
    y = [case, not case, not case]
    result = delong(y, y)
    assert (result.value, result.low) == (1.0, None)
    assert result.reason == f"{reason} of a single patient"
    assert delong_paired(y, y, y).reason == result.reason
    pair = delong([case, case, not case, not case], [0.1, 0.4, 0.2, 0.3])
    assert pair.low is not None  # two of each are enough


@pytest.mark.parametrize("score", [[0.1, float("nan")], [0.1, 0.2, 0.3]])
def test_wrong_scores_are_refused(score: list[float]) -> None:
    with pytest.raises(ShapeError):
        auroc([0, 1], score)
    with pytest.raises(ShapeError, match="two vectors"):
        auroc([[0, 1]], [[0.1, 0.2]])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_stays_between_minus_one_and_one(sign: int) -> None:
    """Three patients of each class: 8 of 9 pairs against 1 of 9, and much doubt."""
    y = np.array([1, 1, 1, 0, 0, 0])
    score = sign * np.array([5, 4, 2, 3, 1, 0])
    result = delong_paired(y, score, -score)
    assert (result.method, result.difference) == (DELONG_T, pytest.approx(sign * 7 / 9))
    assert (result.low if sign < 0 else result.high) == sign
    other = result.high if sign < 0 else result.low
    assert other is not None
    assert -1 < sign * other < 0.7


@pytest.mark.parametrize("at_once", [90, 1500])
def test_permutations_need_not_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    y, score, patient = correlated_cohort(21, num_patients=10)
    both = np.stack([score, score + np.random.default_rng(1).normal(size=len(y))])
    whole = permutation_p_value(y, both, patient)
    assert 0.01 < whole < 1
    monkeypatch.setattr(discrimination, "_RANKS_AT_ONCE", at_once * len(y) + 1)
    assert permutation_p_value(y, both, patient) == whole


def test_a_curve_of_one_class_is_refused() -> None:
    with pytest.raises(ShapeError, match="no cases"):
        roc_curve([0, 0], [0.1, 0.2])


def test_the_difference_varies_as_much_as_in_a_bootstrap_of_patients() -> None:
    rng = np.random.default_rng(11)
    y, first, patient = correlated_cohort(11)
    second = 0.6 * first + 0.8 * rng.normal(size=int(patient.max()) + 1)[patient.astype(int)]
    rows_of = [np.flatnonzero(patient == p) for p in np.unique(patient)]
    differences = []
    for _ in range(800):
        rows = np.concatenate([rows_of[p] for p in rng.integers(0, len(rows_of), len(rows_of))])
        areas = [metrics.roc_auc_score(y[rows], score[rows]) for score in (first, second)]
        differences.append(areas[0] - areas[1])
    test = delong_paired(y, first, second, patient)
    assert test.std_error == pytest.approx(float(np.std(differences)), rel=0.10)
    low, high = np.quantile(differences, (0.025, 0.975))
    assert (test.low, test.high) == pytest.approx((low, high), abs=0.25 * (high - low))


def test_holm_by_hand_and_by_statsmodels() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, and never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    multitest = pytest.importorskip(
        "statsmodels.stats.multitest", reason="statsmodels is not installed"
    )
    p_values = np.random.default_rng(0).random(30) ** 3
    expected = multitest.multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(holm(p_values.tolist()), expected)
