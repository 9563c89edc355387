"""Windows of one recording: their means, their spread, and what else a plan loses with them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from ecgfast.evaluate import planning
from ecgfast.evaluate.recordings import averaged

# Recording b has four windows, of which the second has no label; d is cut at 10 s.
NAMES = ["a", "b", "b@5000", "b@10000", "b@15000", "c", "c@5000", "d"]
STARTS = [0, 0, 5000, 10000, 15000, 0, 5000, 0]
RECORDS = pa.table({"record_id": NAMES, "start_timestep": STARTS})
CASE = np.array([False, True, True, True, True, False, False, True])
SCORES = np.array([0.1, 0.5, np.nan, 0.9, 0.7, 0.2, 0.4, 0.8])
PLAN = planning.TestPlan(
    target="ejection_fraction<40",
    is_case=CASE,
    patients=np.array([0, 1, 1, 1, 1, 2, 2, 3]),
    cohorts={
        "site 1": {"ViT": np.array([0, 1, 3, 4]), "CNN": np.array([0])},
        "site 2": {"ViT": np.array([5, 6, 7]), "CNN": np.array([5, 6, 7])},
        "all": {"ViT": np.array([0, 1, 3, 4, 5, 6, 7])},
    },
    notes=("said before",),
)


def test_a_recording_has_the_mean_and_the_spread_of_its_windows() -> None:
    plan, scores, windows = averaged(PLAN, {"ViT": SCORES, "CNN": 1 - SCORES}, RECORDS)
    assert {name: rows["ViT"].tolist() for name, rows in plan.cohorts.items()} == {
        "site 1": [0, 1], "site 2": [5, 7], "all": [0, 1, 5, 7],
    }  # fmt: skip
    assert [rows.get("CNN", np.array([])).tolist() for rows in plan.cohorts.values()] == [
        [0], [5, 7], [],
    ]  # fmt: skip
    rows = plan.cohorts["all"]["ViT"]
    np.testing.assert_allclose(scores["ViT"][rows], [0.1, 0.7, 0.3, 0.8])
    np.testing.assert_allclose(scores["CNN"][[0, 5, 7]], [0.9, 0.7, 0.2])
    assert np.isnan(scores["ViT"][[2, 3, 4, 6]]).all()
    spread = windows["ViT"]
    assert spread.count[rows].tolist() == [1, 3, 2, 1]
    np.testing.assert_allclose(spread.sd[rows], [np.nan, 0.2, np.sqrt(0.02), np.nan])
    np.testing.assert_allclose(spread.lowest[rows], [0.1, 0.5, 0.2, 0.8])
    np.testing.assert_allclose(spread.highest[rows], [0.1, 0.9, 0.4, 0.8])
    assert plan.notes[0] == "said before"
    assert plan.notes[1] == (
        "ViT: 7 windows averaged in 4 recordings; between the windows of one, the standard "
        "deviation of the probability is 0.171 in the middle and at most 0.200"
    )


def test_windows_of_two_labels_stay_apart() -> None:
    mixed = replace(PLAN, is_case=np.array([False, True, True, False, False, False, False, True]))
    plan, scores, _ = averaged(mixed, {"ViT": SCORES}, RECORDS)
    assert plan.cohorts["site 1"]["ViT"].tolist() == [0, 1, 3]
    assert scores["ViT"][[1, 3]].tolist() == [0.5, pytest.approx(0.8)]
    measured = np.array([60.0, 30.0, np.nan, 55.0, 55.0, 60.0, 60.0, 40.0])
    numbers = replace(PLAN, is_case=measured > 0, truth=measured)
    plan, scores, _ = averaged(numbers, {"ViT": SCORES}, RECORDS, what="number")
    assert plan.cohorts["site 1"]["ViT"].tolist() == [0, 1, 3]
    assert scores["ViT"][[1, 3]].tolist() == [0.5, pytest.approx(0.8)]
    assert "deviation of the number is 0.141 in the middle" in plan.notes[1]


def test_records_that_are_recordings_stay_as_they_are() -> None:
    names = pa.table({"record_id": list("abcdefgh"), "start_timestep": [0] * 8})
    plan, scores, _ = averaged(PLAN, {"ViT": SCORES}, names)
    rows = PLAN.cohorts["all"]["ViT"]
    assert plan.cohorts["all"]["ViT"].tolist() == rows.tolist()
    np.testing.assert_array_equal(scores["ViT"][rows], SCORES[rows])
    assert plan.notes[1] == "ViT: 7 windows averaged in 7 recordings, none of which has several"


def test_runs_that_other_windows_test_meet_at_one_row_of_the_recording() -> None:
    cohorts = {"site 1": {"ViT": np.array([0, 1, 3, 4]), "CNN": np.array([3, 4])}}
    plan, scores, windows = averaged(
        replace(PLAN, cohorts=cohorts), {"ViT": SCORES, "CNN": 1 - SCORES}, RECORDS
    )
    rows = {run: found.tolist() for run, found in plan.cohorts["site 1"].items()}
    assert rows == {"ViT": [0, 1], "CNN": [1]}
    np.testing.assert_allclose(scores["ViT"][[0, 1]], [0.1, 0.7])
    np.testing.assert_allclose(scores["CNN"][1], 0.2)
    assert [windows[run].count[1] for run in ("ViT", "CNN")] == [3, 2]
