"""Which records teach a classifier, and the digest that changes when others do."""

import numpy as np
import pyarrow as pa
import pytest

from ecgfast.labels.selection import Labelled, labelled, labelled_by

TARGET = "ejection_fraction<40"
SPLITS = ["train", "train", "valid", "valid", "test", "test", None, "train"]
FRACTIONS = [30.0, 60.0, 30.0, None, 30.0, 60.0, 30.0, 60.0]


def _labelled(
    fractions: list[float | None] = FRACTIONS,
    splits: list[str | None] = SPLITS,
    rows: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6),
) -> Labelled:
    table = pa.table({"ejection_fraction": fractions, "split": splits})
    return labelled(table, np.array(rows, dtype=np.int64), TARGET)


def _changed(values: list, row: int, value: object) -> list:  # type: ignore[type-arg]  # a column of any kind
    return [value if number == row else old for number, old in enumerate(values)]


def test_only_labelled_selected_records_of_the_two_splits_teach() -> None:
    found = _labelled()
    assert found.train.tolist() == [0, 1]  # row 7 is not selected
    assert found.valid.tolist() == [2]  # row 3 has no label
    assert found.num_unknown == 1
    assert found.is_case[[0, 1, 2]].tolist() == [True, False, True]


def test_a_selection_in_the_middle_has_its_own_splits() -> None:
    found = _labelled(rows=(1, 2, 5, 7))
    assert (found.train.tolist(), found.valid.tolist()) == ([1, 7], [2])


def test_of_several_outputs_one_label_is_enough() -> None:
    records, rows = pa.table({"split": SPLITS}), np.arange(8)
    truth = np.full((8, 2), np.nan)
    truth[[0, 1, 2], 0] = 1, 0, 0
    truth[[1, 2, 7], 1] = 0, 1, 0
    found = labelled_by(records, rows, truth)
    assert (found.train.tolist(), found.valid.tolist(), found.num_unknown) == ([0, 1, 7], [2], 4)
    assert found.is_case[[0, 1, 2, 7]].tolist() == [True, False, True, False]
    other = truth.copy()
    other[2] = other[2][::-1]  # a case of the other output
    assert labelled_by(records, rows, other).digest != found.digest
    other = truth.copy()
    other[0, 1] = 1  # found to be a case of the second output too
    assert labelled_by(records, rows, other).digest != found.digest


@pytest.mark.parametrize(
    ("fractions", "splits"),
    [
        (FRACTIONS, _changed(SPLITS, 0, "test")),
        (FRACTIONS, _changed(SPLITS, 4, "train")),
        (FRACTIONS, _changed(SPLITS, 1, "valid")),
        (FRACTIONS, _changed(_changed(SPLITS, 2, "test"), 4, "valid")),
        (_changed(FRACTIONS, 0, 60.0), SPLITS),
        (_changed(FRACTIONS, 1, None), SPLITS),
        (_changed(FRACTIONS, 3, 30.0), SPLITS),
    ],
    ids=[
        "train to test",
        "test to train",
        "train to valid",
        "another case",
        "label",
        "label lost",
        "label found",
    ],
)
def test_the_digest_tells_when_a_run_would_learn_something_else(
    fractions: list[float | None], splits: list[str | None]
) -> None:
    assert _labelled(fractions, splits).digest != _labelled().digest


@pytest.mark.parametrize(
    "fractions",
    [_changed(FRACTIONS, 4, 60.0), _changed(FRACTIONS, 5, None), _changed(FRACTIONS, 0, 31.0)],
    ids=["label of a test record", "lost there", "still a case"],
)
def test_the_digest_stays_where_only_testing_changes(fractions: list[float | None]) -> None:
    assert _labelled(fractions).digest == _labelled().digest
