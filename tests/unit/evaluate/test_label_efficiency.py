"""Label efficiency: which runs make a line, which records test it, and the two kinds of spread."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from report_pages import html_of
from sklearn.metrics import roc_auc_score
from torch import nn
from toy import toy_meta

from ecgfast.config import load_config
from ecgfast.evaluate import planning
from ecgfast.evaluate.discrimination import delong
from ecgfast.evaluate.label_efficiency import Point, label_efficiency, lines_of, numbers, section
from ecgfast.evaluate.tables import csv_text
from ecgfast.runs.loading import LoadedRun
from ecgfast.runs.meta import flat
from ecgfast.runs.register import Register

SITE = np.repeat(["1", "2", "3"], 40)
NUM_RECORDS = len(SITE)
IS_CASE = np.arange(NUM_RECORDS) % 4 == 0
PATIENTS = np.arange(NUM_RECORDS) // 2
RECORDS = pa.table({"site": SITE.tolist()})


def run(
    name: str,
    fraction: float,
    seed: int,
    *,
    patients: int = 10,
    init: str = "random",
    epochs: int = 30,
) -> LoadedRun:
    """A run that `patients` taught with two ECGs each, and one validated."""
    settings = [f"finetune.label_fraction={fraction}", f"train.seed={seed}"]
    config = load_config("demo", [*settings, f"finetune.epochs={epochs}"])
    names = [f"p{number // 2}" for number in range(2 * patients)]
    rows = {"patient": [*names, "v"], "role": ["train"] * len(names) + ["valid"]}
    identity = {**json.loads(json.dumps(flat(config))), "target": "age<40", "model": "vit"}
    meta = toy_meta("finetune", **identity, init=init, labels=f"{fraction} {seed}")
    return LoadedRun(
        name=name,
        path=Path("runs") / name,
        model=nn.Identity,
        config=config,
        meta=meta,
        register=Register(rows=pa.table(rows), key_fingerprint="", patient_ids="site"),
    )


def plan_of(learned: dict[str, str], rows: dict[str, list[int]]) -> planning.TestPlan:
    """Run -> the sites that it learned from, and rows that test it."""
    return planning.TestPlan(
        target="age<40",
        is_case=IS_CASE,
        patients=PATIENTS,
        cohorts={"tested": {name: np.array(own, dtype=np.int64) for name, own in rows.items()}},
        notes=(),
        sites={name: frozenset(sites) for name, sites in learned.items()},
    )


def scores_of(runs: list[LoadedRun]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    noise = {each.name: rng.normal(size=NUM_RECORDS) for each in runs}
    return {name: 1 / (1 + np.exp(-(IS_CASE + values))) for name, values in noise.items()}


@pytest.fixture
def runs() -> list[LoadedRun]:
    """Two models; the first with two seeds at a tenth of the labels."""
    return [
        run("few", 0.1, 0, patients=3, init="mae"),
        run("few1", 0.1, 1, patients=4, init="mae"),
        run("all", 1.0, 0, init="mae"),
        run("random", 1.0, 0),
    ]


@pytest.fixture
def points(runs: list[LoadedRun]) -> list[Point]:
    tested = {each.name: list(range(20, NUM_RECORDS)) for each in runs}
    tested["few1"] = list(range(22, NUM_RECORDS))  # another patient was a copy of who taught it
    plan = plan_of(dict.fromkeys(tested, "1"), tested)
    return label_efficiency(plan, RECORDS, lines_of(runs), scores_of(runs))


def test_runs_that_differ_in_fraction_and_seed_are_a_line(runs: list[LoadedRun]) -> None:
    lines = {line: [each.name for each in own] for line, own in lines_of(runs).items()}
    assert lines == {"ViT, pretrained": ["few", "few1", "all"], "ViT, random init": ["random"]}


def test_lines_of_one_name_get_the_folder_of_their_largest_run(runs: list[LoadedRun]) -> None:
    lines = lines_of(
        [*runs[:3], run("small", 0.1, 0, init="other"), run("big", 0.3, 0, init="other")]
    )
    assert list(lines) == ["ViT, pretrained (all)", "ViT, pretrained (big)"]


def test_epochs_that_go_with_the_fraction_make_no_other_line() -> None:
    few = [run("few", 0.1, 0, epochs=9), run("few1", 0.1, 1, epochs=9)]
    more = [run("more", 1.0, 0, epochs=3)]
    assert [*lines_of([*few, *more]).values()] == [[*few, *more]]
    longer = run("longer", 0.1, 2, epochs=3)
    assert [*lines_of([*few, *more, longer]).values()] == [few, [*more, longer]]


def test_all_lines_are_tested_on_the_same_records(points: list[Point]) -> None:
    assert {point.cohort for point in points} == {
        "external test, sites 2, 3",
        "internal test, site 1",
    }
    for point in points:
        here = np.arange(40, 120) if "external" in point.cohort else np.arange(22, 40)
        assert point.mean.num_cases == IS_CASE[here].sum()
        assert point.mean.num_controls == (~IS_CASE[here]).sum()


def test_a_point_is_the_mean_of_its_runs_with_two_kinds_of_spread(
    runs: list[LoadedRun], points: list[Point]
) -> None:
    few, everything, random = [p for p in points if p.cohort.startswith("external")]
    scores, here = scores_of(runs), slice(40, None)
    areas = [roc_auc_score(IS_CASE[here], scores[name][here]) for name in ("few", "few1")]
    assert few.by_run == pytest.approx(areas)
    assert few.mean.value == pytest.approx(np.mean(areas))
    assert few.seed_sd == pytest.approx(abs(areas[0] - areas[1]) / 2**0.5)
    assert (few.fraction, few.num_runs, everything.fraction, everything.num_runs) == (0.1, 2, 1, 1)
    assert (few.train_patients, few.train_records, few.valid_patients) == (3.5, 7, 1)
    assert everything.mean == delong(IS_CASE[here], scores["all"][here], PATIENTS[here])
    assert everything.seed_sd is None
    assert (random.line, random.train_patients) == ("ViT, random init", 10)


def test_a_subset_that_misses_a_site_is_tested_where_the_whole_set_is(
    runs: list[LoadedRun],
) -> None:
    """Of sites 1 and 2 taught, `few` learned from the first alone: site 2 is not external to it."""
    del runs[3]
    inside = {"few": [*range(20, 40), *range(40, 120)], "all": [*range(20, 40), *range(70, 120)]}
    plan = plan_of({"few": "1", "few1": "12", "all": "12"}, {**inside, "few1": inside["all"]})
    found = label_efficiency(plan, RECORDS, lines_of(runs), scores_of(runs))
    counts = {p.cohort: p.mean.num_cases + p.mean.num_controls for p in found}
    assert counts == {"external test, site 3": 40, "internal test, sites 1, 2": 30}


def test_runs_of_one_fraction_have_no_such_section(runs: list[LoadedRun]) -> None:
    tested = {each.name: [40, 41, 42, 43, 44] for each in runs}
    plan = plan_of(dict.fromkeys(tested, "1"), tested)
    assert label_efficiency(plan, RECORDS, lines_of(runs[2:]), scores_of(runs)) == []
    assert section([]) is None


def test_one_class_is_not_defined(runs: list[LoadedRun]) -> None:
    tested = {each.name: [41, 42, 43, 45] for each in runs}
    plan = plan_of(dict.fromkeys(tested, "1"), tested)
    point, *_ = label_efficiency(plan, RECORDS, lines_of(runs), scores_of(runs))
    assert (point.mean.value, point.by_run, point.seed_sd) == (None, (), None)
    assert "not defined" in html_of(label_efficiency=section([point]))


def test_page_and_file_have_the_numbers(points: list[Point]) -> None:
    page = html_of(label_efficiency=section(points))
    few = points[0]
    mean = few.mean
    assert "<h2>Label efficiency</h2>" in page
    assert f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})" in page
    assert f"<td>{few.seed_sd:.4f}</td>" in page
    assert page.count("data:image/svg+xml") == 1
    first, *_, last = csv.DictReader(io.StringIO(csv_text(numbers(points), "data: toy")))
    assert first["data"] == "data: toy"
    assert float(first["auroc_mean"]) == pytest.approx(mean.value, abs=5e-5)
    assert [float(word) for word in first["auroc_of_runs"].split()] == pytest.approx(
        few.by_run, abs=5e-5
    )
    assert (first["fraction"], first["train_patients"], first["train_cases"]) == ("0.1", "3.5", "")
    assert (last["model"], last["num_runs"], last["sd_between_seeds"]) == (
        "ViT, random init",
        "1",
        "",
    )
