"""Simple models beside the runs: what they are fitted on, once for each set of training records."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from report_pages import fixed, html_of, nobody
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ecgfast.evaluate import findings, planning
from ecgfast.evaluate.baselines import Fitted, against, age_and_sex, areas_of, once_per_training
from ecgfast.evaluate.discrimination import delong, delong_paired
from ecgfast.evaluate.results import summarise

Y = np.arange(80) % 4 == 0
PLAN = planning.TestPlan(
    target="x=1",
    is_case=Y,
    patients=np.arange(80),
    cohorts={"site 2, external": dict.fromkeys("ABC", np.arange(40, 80))},
    notes=(),
    training={"A": np.arange(20), "B": np.arange(20), "C": np.arange(30)},
    validation=dict.fromkeys("ABC", np.arange(30, 40)),
)


def test_age_and_sex_are_a_logistic_regression_on_training_records_alone() -> None:
    rng = np.random.default_rng(4)
    age, male = rng.uniform(20, 90, 400), rng.random(400) < 0.5
    y = rng.random(400) < 1 / (1 + np.exp(-(age - 70) / 10 - male))
    training = np.arange(200)
    records = pa.table({"age": age, "sex": np.where(male, "M", "F")})
    got = age_and_sex(records, y, training)
    assert isinstance(got, Fitted)
    table = np.stack([age, male], axis=1)
    mean, std = table[training].mean(axis=0), table[training].std(axis=0)
    z = np.stack([(age - mean[0]) / std[0], (~male - 1 + mean[1]) / std[1],
                  (male - mean[1]) / std[1]], axis=1)  # fmt: skip
    model = LogisticRegression().fit(z[training], y[training])
    np.testing.assert_allclose(got.probability, model.predict_proba(z)[:, 1], atol=1e-4)
    other = y.copy()
    other[200:] = ~other[200:]  # labels outside training change nothing
    again = age_and_sex(records, other, training)
    assert isinstance(again, Fitted)
    np.testing.assert_array_equal(got.probability, again.probability)
    assert got.how == f"fitted on 200 training records, {y[:200].sum()} of them cases"


def test_age_and_sex_without_what_they_need() -> None:
    y = np.arange(40) % 2 == 0
    age: list[float | None] = [60.0 + 10 * case for case in y]
    age[0] = None
    rows, sex = np.arange(40), ["F"] * 40
    got = age_and_sex(pa.table({"age": age, "sex": sex}), y, rows)
    assert isinstance(got, Fitted)
    assert np.isfinite(got.probability).all()
    assert got.probability[2] > 0.9 > 0.1 > got.probability[1]
    nothing = pa.table({"sex": sex, "age": pa.nulls(40, pa.float64())})
    assert age_and_sex(nothing, y, rows) == "neither age nor sex is known"
    assert age_and_sex(pa.table({"sex": sex}), y, rows[:19]) == (
        "fewer than 10 cases or controls in training"
    )
    assert isinstance(age_and_sex(pa.table({"age": age}), y, rows[:20]), Fitted)


def test_what_is_known_outside_training_changes_no_fit() -> None:
    """Whose age is not known counts as the median of training, whatever the others are."""
    y, rows = np.arange(60) % 2 == 0, np.arange(40)
    age: list[float | None] = [60.0 + 10 * case + row % 3 for row, case in enumerate(y)]
    age[3] = age[50] = None
    older = [value and value + 30 * (row >= 40) for row, value in enumerate(age)]
    young, old = (age_and_sex(pa.table({"age": each}), y, rows) for each in (age, older))
    assert isinstance(young, Fitted)
    assert isinstance(old, Fitted)
    np.testing.assert_array_equal(young.probability[[*rows, 50]], old.probability[[*rows, 50]])
    elsewhere = {"age": [None] * 40 + [50.0] * 20, "sex": [None] * 40 + ["F", "M"] * 10}
    assert age_and_sex(pa.table(elsewhere), y, rows) == "neither age nor sex is known"


def test_runs_of_one_training_share_a_model() -> None:
    asked = []

    def fit(name: str) -> Fitted | str:
        asked.append(name)
        return f"fitted for {name}"

    assert once_per_training(PLAN, fit) == {
        "A": "fitted for A", "B": "fitted for A", "C": "fitted for C",
    }  # fmt: skip
    assert asked == ["A", "C"]
    other = replace(PLAN, validation={**PLAN.validation, "B": np.arange(31, 40)})
    assert other.same_training == {"A": "A", "B": "B", "C": "C"}


def test_a_simple_model_is_tested_where_the_run_is() -> None:
    rng = np.random.default_rng(1)
    scores = {name: np.clip(0.3 * Y + rng.random(80), 0, 1) for name in "ABC"}
    simple = Fitted(probability=rng.random(80), how="fitted on two records")
    baseline = against(PLAN, scores, {"A": simple, "B": simple, "C": "no cases"})
    reached = baseline.cohorts["site 2, external"]
    assert list(reached) == ["A", "B"]
    part = slice(40, 80)
    for name in "AB":
        assert reached[name].auroc.value == pytest.approx(
            roc_auc_score(Y[part], simple.probability[part])
        )
        expected = delong_paired(Y[part], scores[name][part], simple.probability[part])
        assert reached[name].run_minus.difference == pytest.approx(expected.difference)
        assert reached[name].run_minus.p_value == pytest.approx(expected.p_value)
    assert baseline.to_json()["not_fitted"] == {"C": "no cases"}
    assert baseline.to_json()["how"] == dict.fromkeys("AB", "fitted on two records")
    several = areas_of({"median beat": baseline}, PLAN, "site 2, external")
    assert several == {"median beat, trained as A": reached["A"].auroc}
    alone = replace(PLAN, training={name: PLAN.training[name] for name in "AB"})
    assert list(areas_of({"median beat": baseline}, alone, "site 2, external")) == ["median beat"]


def test_a_simple_model_is_tested_by_patient() -> None:
    rng = np.random.default_rng(2)
    patients = np.arange(80) // 5
    own, simple = (0.3 * Y + rng.random(16)[patients] + 0.2 * rng.random(80) for _ in range(2))
    model = Fitted(probability=simple, how="fitted on two records")
    plan = replace(PLAN, patients=patients)
    reached = against(plan, {"A": own}, {"A": model}).cohorts["site 2, external"]["A"]
    part = slice(40, 80)
    given = Y[part], own[part], simple[part]
    assert reached.auroc == delong(Y[part], simple[part], patients[part])
    assert reached.auroc != delong(Y[part], simple[part])
    assert reached.run_minus == delong_paired(*given, patients[part]) != delong_paired(*given)


def test_the_page_names_what_simple_models_reach_and_why_there_are_none() -> None:
    rng = np.random.default_rng(1)
    scores = {name: rng.random(80) for name in "ABC"}
    simple = Fitted(probability=np.where(Y, 0.9, 0.1), how="fitted on two records")
    results = summarise(
        PLAN, scores, dict.fromkeys("ABC", fixed(None)), nobody(80),
        {"A": simple, "B": simple, "C": "no cases"},
    )  # fmt: skip
    html = html_of(baselines=findings.baselines(results))
    assert "<td>A</td><td>-</td><td>-</td><td>1.000 (0.692 to 1.000)</td>" in html
    assert "Beside A, B, median beat: fitted on two records." in html
    assert "Beside C, median beat: not fitted, no cases." in html
    few = "fewer than 10 cases or controls in training"
    assert f"Beside A, B, C, age and sex: not fitted, {few}." in html
    sentences = findings.key_finding(results)
    assert any(
        s.startswith("Median beat alone: 1.000 (0.692 to 1.000); A minus") for s in sentences
    )
    numbers = results.to_json()
    assert numbers["median_beat"]["not_fitted"] == {"C": "no cases"}
    assert numbers["age_and_sex"]["cohorts"] == {}
