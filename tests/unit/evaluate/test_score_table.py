"""scores.parquet: which rows it has and what stands in them, by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from two_hospitals import make

from ecgfast.errors import ShapeError
from ecgfast.evaluate import planning
from ecgfast.evaluate.scores import SCHEMA, parquet, read_scores, scores_of, scores_table

RECORDS = {
    "record_id": ["r0", "r1", "r2", "r3"],
    "patient_id": ["p0", None, "p2", "p2"],
    "site": ["1", "2", "3", "3"],
    "split": ["valid", "test", None, None],
    "sex": ["F", "M", "F", "F"],
}
IS_CASE = np.array([False, True, False, True])
COHORTS = {
    "site 2, test split": np.array([1]),
    "site 3, external": np.array([3, 2]),
    "all external sites": np.array([2, 3]),
}


def test_every_run_and_tested_record_has_one_row(tmp_path: object) -> None:
    nan = float("nan")
    scores = {"A": np.array([nan, 0.5, 0.25, 0.75]), "B": np.array([0.9, 0.1, 0.2, 0.3])}
    table = scores_table(RECORDS, IS_CASE, COHORTS, scores)
    path = f"{tmp_path}/scores.parquet"
    pq.write_table(table, path)
    back = pq.read_table(path)
    assert back.schema.equals(SCHEMA)
    assert [field.name for field in back.schema if field.nullable] == [
        "patient_id",
        "site",
        "split",
    ]
    assert [tuple(row.values()) for row in back.to_pylist()] == [
        ("A", "site 2, test split", "r1", None, "2", "test", True, 0.5),
        ("A", "site 3, external", "r2", "p2", "3", None, False, 0.25),
        ("A", "site 3, external", "r3", "p2", "3", None, True, 0.75),
        ("B", "site 2, test split", "r1", None, "2", "test", True, 0.1),
        ("B", "site 3, external", "r2", "p2", "3", None, False, 0.2),
        ("B", "site 3, external", "r3", "p2", "3", None, True, 0.3),
    ]


@pytest.mark.parametrize("kept", [False, True])
def test_no_readable_id_leaves_a_store(tmp_path: Path, kept: bool) -> None:
    """Also of a store that keeps them; there, records are called by their rows."""
    store = make(tmp_path, keep_identifiers=kept)
    plan = planning.TestPlan(
        target="x=1", is_case=np.zeros(16, bool), patients=np.arange(16), notes=(),
        cohorts={"site 1": {"A": np.array([0, 4])}},
    )  # fmt: skip
    results: Any = SimpleNamespace(plan=plan, scores={"A": np.arange(16) / 16}, windows={})
    written = parquet(scores_of(store, results))
    table = pq.read_table(pa.BufferReader(written))
    readable = ("A", "E") if kept else (None, None)
    if kept:
        assert store.records["patient_id"].take([0, 4]).to_pylist() == list(readable)
        assert table["record_id"].to_pylist() == ["row 0", "row 4"]
    else:
        assert table["record_id"] == store.records["record_id"].take([0, 4])
    pseudonyms = table["patient_id"].to_pylist()
    assert [len(name) for name in pseudonyms] == [32, 32]
    assert not set(pseudonyms) & set(readable)
    (tmp_path / "scores.parquet").write_bytes(written)
    read = read_scores(tmp_path / "scores.parquet", store)
    assert read[[0, 4]].tolist() == [0, 0.25]
    assert np.isnan(np.delete(read, [0, 4])).all()


def test_nobody_tested_is_an_empty_table() -> None:
    nothing = {"site 2, external": np.zeros(0, dtype=np.int64)}
    assert scores_table(RECORDS, IS_CASE, nothing, {"A": np.zeros(4)}).num_rows == 0
    assert scores_table(RECORDS, IS_CASE, COHORTS, {}).schema.equals(SCHEMA)


def test_a_tested_record_without_probability_is_refused() -> None:
    scores = {"A": np.array([0.1, float("nan"), 0.2, 0.3])}
    with pytest.raises(ShapeError, match="run A has no probability for 1 of 3 tested records"):
        scores_table(RECORDS, IS_CASE, COHORTS, scores)


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ShapeError, match="A must have one value per record, 4, got 3"):
        scores_table(RECORDS, IS_CASE, COHORTS, {"A": np.zeros(3)})
    with pytest.raises(ShapeError, match="site must have one value per record"):
        scores_table({**RECORDS, "site": ["1"]}, IS_CASE, COHORTS, {"A": np.zeros(4)})
