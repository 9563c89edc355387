"""Sections of a report: what stands in each cell, by hand."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from report_pages import fixed, html_of, nobody
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from two_hospitals import TARGET

from ecgfast.evaluate import findings, planning, tables, views
from ecgfast.evaluate.discrimination import PairedTest
from ecgfast.evaluate.operating import Fixed, Recalibration
from ecgfast.evaluate.results import Results, summarise
from ecgfast.runs.column_task import task_of

PLAN = planning.TestPlan(
    target=TARGET,
    is_case=np.array([True, False, True, False]),
    patients=np.arange(4),
    cohorts={},
    notes=("2 records have no label",),
)


def test_every_run_is_compared_with_the_first_in_a_row_of_its_own() -> None:
    small = PairedTest(difference=-0.02, low=-0.1, high=0.06, p_value=0.0009)
    large = PairedTest(difference=0.1, low=-0.05, high=0.25, p_value=0.001)
    results = Results(
        plan=PLAN,
        cohorts={},
        paired={
            "site 1": {"C": large, "D": small},
            "site 2": {"B": PairedTest(reason="no cases"), "C": small},
            planning.POOLED: {"B": large},
        },
        fixed=dict.fromkeys("ABCD", fixed(None)),
        scores={},
    )
    html = html_of(comparison=findings.comparison(results))
    plus, minus = "+0.100 (-0.050 to +0.250)", "-0.020 (-0.100 to +0.060)"
    assert "corrected for all\n4 tests of this table" in html
    for mark, cells in (
        ("", ("site 1", "C", plus, "0.001", "0.004")),
        ("", ("site 1", "D", minus, "&lt; 0.001", "0.004")),
        ("", ("site 2", "B", "not defined", "-", "-")),
        ("", ("site 2", "C", minus, "&lt; 0.001", "0.004")),
        (' class="sum"', (planning.POOLED, "B", plus, "0.001", "0.004")),
    ):
        assert f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in html
    heads = ("cohort", "minus", "difference (95 % CI)", "p", "p, Holm")
    assert "".join(f"<th>{head}</th>" for head in heads) in html
    assert "A minus the other" in html
    assert findings.comparison(replace(results, fixed={"A": fixed(None)})) is None


def test_a_run_without_threshold_has_a_calibration_but_no_operating_point() -> None:
    plan = replace(PLAN, cohorts={"site 1": {"A": np.arange(4), "B": np.array([], np.int64)}})
    scores = {"A": np.array([0.9, 0.2, 0.6, 0.3]), "B": np.full(4, 0.5)}
    results = summarise(plan, scores, {"A": fixed(None), "B": fixed(0.5)}, nobody(4))
    assert "<td>A</td>" not in html_of(operating=findings.operating(results))
    html = html_of(calibration=findings.calibration(results))
    # Brier score: (0.01 + 0.04 + 0.16 + 0.09) / 4; B is tested on nothing.
    assert "<td>A</td><td>as given</td><td>50.0 % / 50.0 %</td><td>0.075 (" in html
    assert "<td>B</td>" not in html
    assert html.count("<figure>") == 1
    assert "A: not recalibrated, no labelled records on validation." in html
    html = html_of(net_benefit=findings.net_benefit(results))
    assert html.count("<figure>") == 1


def test_each_number_of_a_threshold_and_of_calibration_is_in_its_column() -> None:
    """Cases at 0.9, 0.8, 0.3; controls at 0.6, 0.2 and five times 0.1, so no two are alike."""
    score = np.array([0.9, 0.8, 0.3, 0.6, 0.2, *[0.1] * 5])
    plan = replace(
        PLAN, is_case=np.arange(10) < 3, patients=np.arange(10),
        cohorts={"site 1": {"A": np.arange(10)}},
    )  # fmt: skip
    half = Recalibration(num_cases=4, num_controls=6, intercept=-1.0, slope=0.5)
    of_validation = Fixed(thresholds={"sensitivity_90": 0.25}, recalibration=half)
    results = summarise(plan, {"A": score}, {"A": of_validation}, nobody(10))
    table = findings.operating(results)
    assert table.header == (
        "cohort", "run", "threshold", "sensitivity", "specificity", "PPV", "NPV",
    )  # fmt: skip
    ((*names, kind, sensitivity, specificity, ppv, npv),) = table.rows
    assert (names, kind) == (["site 1", "A"], "sensitivity 90 %: 0.25")
    shares = [float(cell.split()[0]) for cell in (sensitivity, specificity, ppv, npv)]
    assert shares == [1.0, 0.86, 0.75, 1.0]  # 3 of 3, 6 of 7, 3 of 4, 6 of 6
    view = findings.calibration(results)
    assert view["table"].header[3:] == (
        "mean predicted / observed", "Brier score", "ECE", "slope", "intercept",
    )  # fmt: skip
    given, corrected = view["table"].rows
    assert (given[2], corrected[2]) == ("as given", "recalibrated")
    assert given[3] == "33.0 % / 30.0 %"
    assert given[4].startswith(f"{brier_score_loss(plan.is_case, score):.3f} (")
    assert given[5] == "0.030"  # one bin of ten records: 0.33 less 0.30
    said = logit(score)
    both = LogisticRegression(C=np.inf, tol=1e-10).fit(said[:, None], plan.is_case)
    shift = brentq(lambda a: expit(said + a).sum() - 3, -9, 9)
    assert given[6].startswith(f"{both.coef_[0, 0]:.2f} (")
    assert given[7].startswith(f"{shift:.2f} (")
    after = expit(-1 + 0.5 * said)
    assert corrected[3] == f"{100 * after.mean():.1f} % / 30.0 %"
    assert corrected[4].startswith(f"{brier_score_loss(plan.is_case, after):.3f} (")
    assert view["fits"] == [
        "A: log odds become -1.00 + 0.50 x log odds, fitted on 4 cases and 6 controls of "
        "validation."
    ]


def test_areas_curves_reasons_and_notes_of_a_site() -> None:
    rows = {"site 1": {"A": np.arange(4)}, "site 2": {"B": np.array([0, 2])}}
    scores = dict.fromkeys("AB", np.array([0.9, 0.2, 0.6, 0.4]))
    results = summarise(
        replace(PLAN, cohorts=rows), scores, dict.fromkeys("AB", fixed(None)), nobody(4)
    )
    html = html_of(detection=findings.detection(results))
    assert "<td>site 1</td><td>2 / 2</td><td>1.000 (0.158 to 1.000)</td><td>-</td>" in html
    assert "<td>site 2</td><td>2 / 0</td><td>-</td><td>not defined</td>" in html
    assert "site 2: AUROC is not defined: no controls." in html
    assert html.count("no controls") == 1
    assert "2 records have no label" in html
    assert html.count("<figure>") == 2
    nowhere = replace(PLAN, cohorts={"site 2": rows["site 2"]})
    results = summarise(nowhere, scores, dict.fromkeys("AB", fixed(None)), nobody(4))
    assert "<figure>" not in html_of(detection=findings.detection(results))


def test_cases_and_patients_of_each_split() -> None:
    records = pa.table(
        {
            "site": ["3", "3", "3", "4"],
            "split": ["train", "test", "test", "test"],
            "patient_id": ["a", "b", "b", "a"],
            "ejection_fraction": [30.0, 60.0, None, 60.0],
            "age": [50.0, 61.0, None, 70.0],
            "sex": ["female", None, "male", "male"],
        }
    )
    store: Any = SimpleNamespace(records=records)
    html = html_of(cohort=views.cohort(store, TARGET))
    for mark, cells in (
        ("", ("3", "test", "2", "1", "0", "1", "0.0 %", "1", "61 (61 to 61)", "0 %")),
        (' class="sum"', ("3", "all", "3", "2", "1", "1", "50.0 %", "1", "56 (53 to 58)", "50 %")),
        ("", ("4", "test", "1", "1", "0", "1", "0.0 %", "0", "70 (70 to 70)", "0 %")),
        (
            ' class="sum"',
            ("all", "all", "4", "2", "1", "2", "33.3 %", "1", "61 (56 to 66)", "33 %"),
        ),
    ):
        assert f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in html
    assert "<td>4</td><td>2</td><td>0</td><td>0</td><td>-</td><td>4</td>" in (
        html_of(cohort=views.cohort(store, None))
    )


@pytest.mark.parametrize(
    ("init", "select", "cells"),
    [("", None, ("-", "all")), ("model.safetensors", "age>60", ("model.safetensors", "age&gt;60"))],
)
def test_where_a_run_comes_from(init: str, select: str | None, cells: tuple[str, str]) -> None:
    settings = SimpleNamespace(normalise="record"), SimpleNamespace(seed=7)
    config = SimpleNamespace(preset="presets/vit.toml", data=settings[0], train=settings[1])
    roles = {"train": [1] * 1200, "valid": [1], "pretrain": []}
    register = SimpleNamespace(select=lambda role: roles[role], encoder="none")
    meta = SimpleNamespace(init=init, select=select)
    run: Any = SimpleNamespace(name="ViT", config=config, meta=meta, register=register)
    store: Any = SimpleNamespace(path=Path("a/s"), identity="0123456789abcdefghij", codec="none")
    origin = views.origin(store, [run])
    html = html_of(origin=origin)
    row = ("ViT", "vit.toml", *cells, "1,200", "1", "-", "record", "7")
    assert "".join(f"<td>{cell}</td>" for cell in row) in html
    assert "Store s, identity 0123456789abcdef, codec none." in html
    assert "Each run is tested" not in html
    plan = replace(PLAN, cohorts={"site 1": {"ViT": np.arange(4)}})
    results = summarise(plan, {"ViT": np.zeros(4)}, {"ViT": fixed(None)}, nobody(4))
    html = html_of(origin=origin, detection=findings.detection(results))
    assert "Each run is tested" in html


def test_a_training_curve_names_its_loss() -> None:
    curves: list[dict[str, Any]] = [{"training": ([1, 2], [3.0, 2.0])}, {}]
    runs: list[Any] = [
        SimpleNamespace(
            name=name,
            leads=(),
            meta=SimpleNamespace(target=TARGET, task=task_of(TARGET)),
            loss_curves=lambda found=found: found,
        )
        for name, found in zip(("drawn", "empty"), curves, strict=True)
    ]
    html = html_of(training=views.training(runs))
    assert "<figcaption>drawn</figcaption>" in html
    assert "<figcaption>empty</figcaption>" not in html


def test_a_target_in_words() -> None:
    assert findings.in_words("ejection_fraction<40") == "ejection fraction below 40 %"
    assert findings.in_words("nyha in (3, 4)") == "nyha one of 3, 4"
    assert findings.in_words("lvh=1 and age>=60") == "lvh = 1 and age of at least 60"
    words = findings.in_words("(lvh=1 or hf=1) and not (age<18 or nyha=4)")
    assert words == "(lvh = 1 or hf = 1) and not (age below 18 or nyha = 4)"


def test_the_finding_names_cohort_difference_and_counts() -> None:
    rng = np.random.default_rng(2)
    is_case = np.arange(60) < 20
    plan = planning.TestPlan(
        target=TARGET, is_case=is_case, patients=np.arange(60), notes=(),
        cohorts={
            "site 1, test split": {"A": np.arange(2)},
            planning.POOLED: dict.fromkeys("AB", np.arange(60)),
        },
        training={"A": np.arange(60), "B": np.arange(3)},
    )  # fmt: skip
    scores = {"A": 0.5 * is_case + rng.random(60) / 2, "B": rng.random(60)}
    records = pa.table({"age": rng.uniform(20, 90, 60)})
    results = summarise(plan, scores, {"A": fixed(0.5), "B": fixed(None)}, records)
    first, difference, against, point = findings.key_finding(results)
    assert first.startswith("Ejection fraction below 40 %, all external sites: AUROC of A 1.000 (")
    assert first.endswith("), 20 cases among 60 ECGs.")
    p_value = results.paired[planning.POOLED]["B"].p_value
    assert p_value is not None
    assert p_value < 0.001
    assert difference.startswith("A minus B: +0.")
    assert difference.endswith("; p < 0.001, corrected for all comparisons < 0.001.")
    assert against.startswith("Age and sex alone: 0.")
    assert point == (
        "At the threshold that validation fixed: sensitivity 1.00 (0.83 to 1.00), specificity 1.00 "
        "(0.91 to 1.00)."
    )
    html = html_of(baselines=findings.baselines(results))
    assert "Beside B, age and sex: not fitted, fewer than 10 cases or controls in training." in html
    html = html_of(groups=findings.groups(results))
    assert "by age; sensitivity and" in html
    assert "<td>not computed</td>" in html
    alone = replace(results, cohorts={**results.cohorts, planning.POOLED: {}})
    assert findings.key_finding(alone) == ["A is not tested on all external sites."]


def test_the_finding_has_each_p_corrected_for_all_and_groups_have_their_shares() -> None:
    """Three comparisons of one cohort: the smallest p counts three times."""
    rng = np.random.default_rng(3)
    is_case, sex = np.arange(90) % 3 == 0, np.where(np.arange(90) < 45, "F", "M")
    plan = replace(
        PLAN, is_case=is_case, patients=np.arange(90),
        cohorts={"site 1, external": dict.fromkeys("ABCD", np.arange(90))},
    )  # fmt: skip
    scores = {name: rng.random(90) + lift * is_case
              for name, lift in zip("ABCD", (0.5, 0.3, 0.2, 0.1), strict=True)}  # fmt: skip
    records = pa.table({"sex": sex})
    results = summarise(plan, scores, dict.fromkeys("ABCD", fixed(0.6)), records)
    tests = results.paired["site 1, external"]
    raw = {name: test.p_value or 0.0 for name, test in tests.items()}
    corrected, most = {}, 0.0
    for left, name in zip((3, 2, 1), sorted(raw, key=raw.__getitem__), strict=True):
        most = corrected[name] = max(most, min(1.0, left * raw[name]))
    said = findings.key_finding(results)[1:4]
    for name, sentence in zip("BCD", said, strict=True):
        assert sentence.startswith(f"A minus {name}: {tests[name].difference:+.3f} (")
        words = f"; p {raw[name]:.3f}, corrected for all comparisons {corrected[name]:.3f}."
        assert sentence.endswith(words.replace("p 0.000", "p < 0.001"))
    for row in findings.groups(results)["table"].rows:
        here = sex == row[0].removeprefix("sex: ")
        found, case = scores[row[1]][here] >= 0.6, is_case[here]
        assert row[4].startswith(f"{found[case].mean():.2f} (")
        assert row[5].startswith(f"{(~found[~case]).mean():.2f} (")


def test_a_report_names_its_versions() -> None:
    made = views.made_with()
    assert made["versions"]["numpy"] == np.__version__
    assert made["date"] in html_of(made_with=made)


def test_table_3_in_three_formats_says_what_its_data_are() -> None:
    table = views.Table(header=("cohort", "A|B"), rows=[("site_1 50 %", "0.9"), ("=x, y", "-")])
    text = tables.markdown(table, "SYNTHETIC data")
    assert text == (
        "SYNTHETIC data\n\n| cohort | A\\|B |\n| --- | ---: |\n| site_1 50 % | 0.9 |\n"
        "| =x, y | - |\n"
    )
    odd = views.Table(header=("cohort",), rows=[(r"<script>\|_x_ [a](b) `c` *d*",), ("a_b < 4",)])
    assert tables.markdown(odd, "<b> of ejection_fraction<40").splitlines() == [
        r"\<b> of ejection_fraction<40",
        "",
        "| cohort |",
        "| --- |",
        r"| \<script>\\\|\_x\_ \[a\](b) \`c\` \*d\* |",
        "| a_b < 4 |",
    ]
    assert tables.csv_text(table, "d") == ("data,cohort,A|B\nd,site_1 50 %,0.9\nd,\"'=x, y\",'-\n")
    lines = tables.latex(table, "a_b").split("\n")
    assert lines[1] == r"\caption{a\_b}"
    assert r"site\_1 50 \% & 0.9 \\" in lines
