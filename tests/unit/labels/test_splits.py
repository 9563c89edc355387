"""Splits by patient: right shares in each stratum, written down for ever, no patient torn."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from ecgfast.errors import ConfigError
from ecgfast.labels.splits import (
    NUM_FOLDS,
    Drawn,
    Strata,
    check_splits,
    draw,
    draw_splits,
    num_torn,
    refuse_torn,
    splits_of_fold,
    warn_where_few,
)


def strata(num_records: int, site: list[str | None] | None = None) -> Strata:
    nothing = np.zeros(num_records, bool)
    return Strata(site=texts(site or [None] * num_records), is_case=nothing, is_known=nothing)


def texts(values: Sequence[str | None]) -> pa.ChunkedArray:
    """In chunks, as a store's columns come."""
    return pa.chunked_array([values[:7], values[7:]], pa.string())


class Lists(NamedTuple):
    """What was drawn."""

    split: list[str | None]
    fold: list[int | None]


def lists(drawn: Drawn) -> Lists:
    return Lists(drawn.split.to_pylist(), drawn.fold.to_pylist())


def divide(keys: list[str], chosen: Strata | None = None, *, seed: int = 0) -> Lists:
    groups = np.unique(keys, return_inverse=True)[1]
    left_out = np.zeros(len(keys), bool)
    chosen = chosen or strata(len(keys))
    return lists(draw_splits(texts(keys), groups, chosen, seed=seed, left_out=left_out))


def test_a_patients_number_is_written_down() -> None:
    """SHA-256 of "ecgfast split 0", NUL and the key: its first 16 digits over 2**64."""
    assert draw(0, "P7") == int("f6f5b3d874ad76d0", 16) / 2**64
    assert draw(0, "2/P7") == int("31ac91db29c33afa", 16) / 2**64
    assert draw(1, "P7") == int("7ffc47474b9b5ff8", 16) / 2**64


def test_splits_are_written_down() -> None:
    """The order of these numbers, by hand: the lowest three are test, the next three valid."""
    keys = [f"P{n}" for n in range(20)]
    expected = sorted(keys, key=lambda key: draw(0, key))
    drawn = divide(keys)
    by_split = {
        name: {key for key, split in zip(keys, drawn.split, strict=True) if split == name}
        for name in ("test", "valid", "train")
    }
    assert by_split["test"] == set(expected[:3])
    assert by_split["valid"] == set(expected[3:6])
    assert by_split["train"] == set(expected[6:])
    assert sorted(by_split["test"]) == ["P17", "P3", "P8"]
    fold = dict(zip(keys, drawn.fold, strict=True))
    assert [fold[key] for key in expected] == [1, 2, 3, 4, 5] * 4


def test_each_stratum_has_its_share() -> None:
    site: list[str | None] = ["1"] * 400 + ["2"] * 200
    is_case = np.arange(600) % 10 == 0
    chosen = Strata(site=texts(site), is_case=is_case, is_known=np.ones(600, bool))
    drawn = divide([f"P{n}" for n in range(600)], chosen)
    for where, number in (("1", 400), ("2", 200)):
        for case in (True, False):
            here = [drawn.split[n] for n in range(600) if site[n] == where and is_case[n] == case]
            count = Counter(here)
            total = number // 10 if case else number * 9 // 10
            assert len(here) == total
            assert abs(count["test"] - 0.15 * total) <= 1
            assert abs(count["valid"] - 0.15 * total) <= 1


def test_many_small_strata_get_their_share_together() -> None:
    """Rounding each of them would leave all 100 patients in train, and in the first fold."""
    drawn = divide([f"P{n}" for n in range(100)], strata(100, [f"site{n}" for n in range(100)]))
    assert Counter(drawn.split) == {"train": 70, "valid": 15, "test": 15}
    assert Counter(drawn.fold) == dict.fromkeys(range(1, NUM_FOLDS + 1), 20)


def test_folds_are_equal_and_whole() -> None:
    keys = [f"P{n // 2}" for n in range(200)]
    drawn = divide(keys)
    assert Counter(drawn.fold) == dict.fromkeys(range(1, NUM_FOLDS + 1), 40)
    assert len(set(zip(keys, drawn.fold, strict=True))) == 100


def test_records_of_one_patient_stay_together() -> None:
    keys = [f"P{n % 40}" for n in range(120)]
    drawn = divide(keys)
    assert len(set(zip(keys, drawn.split, strict=True))) == 40


def test_the_order_of_the_records_does_not_matter() -> None:
    keys = [f"P{n // 3}" for n in range(90)]
    forwards, backwards = divide(keys), divide(keys[::-1])
    assert forwards.split == backwards.split[::-1]
    assert forwards.fold == backwards.fold[::-1]


def test_a_patient_of_two_keys_draws_by_one_of_them_whatever_the_order() -> None:
    """Of 20 patients each has two readable ids, of which the first in the alphabet counts."""
    keys = [f"{name}{n}" for n in range(20) for name in "QP"]
    groups, left_out = np.arange(40) // 2, np.zeros(40, bool)
    drawn = lists(draw_splits(texts(keys), groups, strata(40), seed=0, left_out=left_out))
    assert drawn.split[::2] == drawn.split[1::2] == divide([f"P{n}" for n in range(20)]).split
    again = draw_splits(texts(keys[::-1]), groups[::-1], strata(40), seed=0, left_out=left_out)
    assert lists(again).split == drawn.split[::-1]


def test_another_seed_is_another_split() -> None:
    keys = [f"P{n}" for n in range(100)]
    assert divide(keys, seed=1).split != divide(keys).split


def test_kept_splits_stay_and_others_join_them() -> None:
    keys = ["a", "a", "b", "c"]
    kept = Drawn(
        split=texts(["test", None, None, "valid"]), fold=pa.array([4, None, None, 2], pa.int64())
    )
    drawn = lists(
        draw_splits(
            texts(keys),
            np.array([0, 0, 1, 2]),
            strata(4),
            seed=0,
            left_out=np.zeros(4, bool),
            kept=kept,
        )
    )
    assert drawn.split == ["test", "test", "train", "valid"]
    assert drawn.fold == [4, 4, 1, 2]
    with pytest.raises(ConfigError, match="1 patients are in more than one split"):
        draw_splits(
            texts(keys),
            np.array([0, 0, 1, 2]),
            strata(4),
            seed=0,
            left_out=np.zeros(4, bool),
            kept=Drawn(split=texts(["test", "train", None, None]), fold=pa.nulls(4, pa.int64())),
        )


def test_records_left_out_get_nothing() -> None:
    left_out = np.array([True, False])
    drawn = lists(
        draw_splits(texts(["a", "b"]), np.array([0, 1]), strata(2), seed=0, left_out=left_out)
    )
    assert (drawn.split[0], drawn.fold[0]) == (None, None)
    assert drawn.split[1] is not None


def test_records_left_out_take_no_share_of_the_others() -> None:
    left_out = np.arange(100) >= 20
    keys = texts([f"P{n}" for n in range(100)])
    drawn = lists(draw_splits(keys, np.arange(100), strata(100), seed=0, left_out=left_out))
    assert Counter(drawn.split[:20]) == {"train": 14, "valid": 3, "test": 3}
    assert Counter(drawn.fold[:20]) == dict.fromkeys(range(1, NUM_FOLDS + 1), 4)
    assert set(drawn.split[20:]) == set(drawn.fold[20:]) == {None}


def test_a_round_of_cross_validation() -> None:
    fold = [1, 2, 3, None, 1]
    assert splits_of_fold(fold, 1) == ["test", "valid", "train", None, "test"]
    assert splits_of_fold(fold, 3) == ["valid", "train", "test", None, "valid"]
    with pytest.raises(ConfigError, match="got 4, allowed 1, 2, 3"):
        splits_of_fold(fold, 4)
    with pytest.raises(ConfigError, match="allowed none: draw splits"):
        splits_of_fold([None], 1)


def test_few_cases_give_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    split = ["train"] * 60 + ["valid"] * 60
    is_case = np.array(([True] * 20 + [False] * 40) + ([True] * 19 + [False] * 41))
    warn_where_few("x=1", pa.array(split), is_case, np.ones(120, bool))
    assert [record.message for record in caplog.records] == [
        "split valid: 19 cases and 41 controls of x=1; below 20 of either, thresholds and results "
        "say little"
    ]


def test_strata() -> None:
    """A patient is a case by one record, and unknown only by all of them."""
    chosen = Strata(
        site=texts(["2", "1", None, "1", "1"]),
        is_case=np.array([False, True, False, False, False]),
        is_known=np.array([True, True, False, False, True]),
    )
    # Sites in their order: none, 1, 2; of each cases, controls, unknown.
    assert chosen.of(np.array([0, 1, 2, 3, 4])).tolist() == [7, 3, 2, 5, 4]
    assert chosen.of(np.array([0, 0, 1, 1, 2])).tolist() == [3, 2, 4]
    assert chosen.of(np.array([0, 1, 0, 2, 2])).tolist() == [1, 3, 4]


def test_patients_of_several_parts() -> None:
    patients = ["a", "a", "b", "b", "c", "c", "c"]
    assert num_torn(patients, [1, 1, 1, None, None, None, 2]) == 0
    assert num_torn(patients, [1, 2, 1, 3, 3, 2, 1]) == 3
    refuse_torn(patients, [1, 1, 2, None, 3, 3, 3], "fold")
    with pytest.raises(ConfigError, match="fold column: 1 patients are in more than one fold"):
        refuse_torn(patients, [1, 2, 2, None, 3, 3, 3], "fold")
    with pytest.raises(ConfigError, match="split column: got 'dev', allowed train"):
        check_splits(patients[:2], ["train", "dev"])


@pytest.mark.parametrize(("num_controls", "warned"), [(20, False), (19, True), (0, True)])
def test_few_controls_give_a_warning(
    caplog: pytest.LogCaptureFixture, num_controls: int, warned: bool
) -> None:
    """Of those whose label is known; a split without any gives no warning."""
    split: list[str | None] = ["test"] * 60 + [None] * 5 + ["valid"] * 5
    is_case = np.arange(70) < 20
    warn_where_few("x", pa.array(split), is_case, np.arange(70) < 20 + num_controls)
    expected = f"split test: 20 cases and {num_controls} controls of x; below 20"
    assert [record.message.startswith(expected) for record in caplog.records] == [True] * warned
