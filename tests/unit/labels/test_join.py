"""Joining a CSV: ids, patients, windows of days, splits, and a crash in the middle."""

import csv
import hashlib
import hmac
import json
from pathlib import Path

import numpy as np
import pytest
from label_tables import NUM_RECORDS, column, join, labelled_later
from recordings import KEY, convert_quietly, ecg_like, snapshot, write_wfdb

import ecgfast
from ecgfast.errors import ConfigError, CorruptStoreError
from ecgfast.store.format import NEXT_RECORDS, RECORDS
from ecgfast.store.patients import Pseudonyms
from ecgfast.store.verify import verify_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return labelled_later(tmp_path)


def test_by_record(store: Path) -> None:
    summary = join(
        store,
        "record_id,ejection_fraction,lvh\na/r0,35,true\na/r2,,false\na/r9,50,true\na/r5,60,\n",
    )
    assert column(store, "ejection_fraction") == [35, None, None, None, None, 60]
    assert column(store, "lvh") == [True, None, False, None, None, None]
    assert (summary.num_matched, summary.num_unused_lines) == (3, 1)
    assert summary.columns == ("ejection_fraction", "lvh")
    assert sum(summary.splits.values()) == NUM_RECORDS
    assert verify_store(store) == []


def test_by_patient(store: Path) -> None:
    join(store, "patient_id,ejection_fraction\np1,20\n")
    assert column(store, "ejection_fraction") == [None, None, 20, 20, None, None]


def test_by_pseudonym(store: Path) -> None:
    first = column(store, "record_id")[0]
    assert first == Pseudonyms(bytes.fromhex(KEY)).of("record", "a/r0")
    join(store, f"record_id,ejection_fraction\n{first},20\n")
    assert column(store, "ejection_fraction")[0] == 20


def test_second_join_keeps_the_first(store: Path) -> None:
    join(store, "record_id,ejection_fraction\na/r0,20\na/r1,30\n")
    identity = ecgfast.open_store(store).identity
    columns = ["ejection_fraction", "extra"]
    join(store, "record_id,ejection_fraction,extra\na/r1,31,7\n", columns=columns)
    assert column(store, "ejection_fraction")[:2] == [20, 31]
    assert column(store, "extra")[:2] == [None, 7]
    assert ecgfast.open_store(store).identity == identity


def test_same_join_same_bytes(store: Path) -> None:
    text = "record_id,ejection_fraction\na/r0,20\n"
    join(store, text)
    once = snapshot(store)
    join(store, text)
    assert snapshot(store) == once


def test_personal_columns_correct_the_recordings(store: Path) -> None:
    join(store, "record_id,patient_id,site,age,sex,x\na/r0,p9,south,,female,1\na/r1,p9,,77.5,,1\n")
    patients = column(store, "patient_id")
    ours = Pseudonyms(bytes.fromhex(KEY))
    assert patients[:2] == [ours.of("patient", "south/p9"), ours.of("patient", "north/p9")]
    assert column(store, "site")[:2] == ["south", "north"]
    with store.with_name("store.sources.csv").open() as file:
        readable = [line["patient"] for line in csv.DictReader(file)]
    assert readable == ["south/p9", "north/p9", *["north/p1"] * 2, *["north/p2"] * 2]
    assert column(store, "age")[:2] == [50, 77]
    assert column(store, "sex")[:2] == ["female", None]


def test_window_of_days(store: Path) -> None:
    text = (
        "record_id,label_date,ejection_fraction\n"
        "a/r0,2020-05-20,10\na/r0,2020-05-08,20\na/r0,2020-06-30,30\n"  # 10, 2 and 51 days
        "a/r1,2020-05-25,40\n"  # 15 days
        "a/r2,,50\n"
    )
    with pytest.raises(ConfigError, match="lines 2 and 3 name the same record and disagree"):
        join(store, text)
    summary = join(store, text, label_window_days=14)
    assert column(store, "ejection_fraction") == [20, None, None, None, None, None]
    assert (summary.num_matched, summary.num_outside_window) == (3, 2)


def test_of_two_labels_at_one_distance_the_first_counts_and_it_is_said(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Echoes of the same day, or of as many days before and after the ECG."""
    text = (
        "record_id,label_date,ejection_fraction\n"
        "a/r0,2020-05-12,35\na/r0,2020-05-08,60\n"  # 2 days after and before, and they disagree
        "a/r1,2020-05-12,50\na/r1,2020-05-08,50\n"
        "a/r2,2020-05-14,50\na/r2,2020-05-06,30\na/r2,2020-05-11,55\n"  # the last is nearer
        "a/r3,2020-06-10,50\na/r3,2020-06-10,30\n"  # outside
    )
    join(store, text, label_window_days=14)
    assert column(store, "ejection_fraction") == [35, 50, 55, None, None, None]
    assert (
        "1 records have labels that disagree at the same distance in days, such as lines 2 and 3"
    ) in caplog.text


def test_a_line_without_a_label_is_not_the_nearest_one(store: Path) -> None:
    """An echo of the same day that measured no ejection fraction."""
    text = (
        "record_id,label_date,ejection_fraction\n"
        "a/r0,2020-05-10,\na/r0,2020-05-13,35\na/r1,2020-05-10,\n"
    )
    summary = join(store, text, label_window_days=14)
    assert column(store, "ejection_fraction")[:2] == [35, None]
    assert summary.num_outside_window == 1


def test_dates_of_the_csv_win(store: Path) -> None:
    text = "record_id,ecg_date,label_date,ejection_fraction\na/r0,2021-01-01,2021-01-03,10\n"
    join(store, text, label_window_days=2)
    assert column(store, "ejection_fraction")[0] == 10


def test_ages_are_whole_years_and_those_over_89_one_group(store: Path) -> None:
    text = "record_id,age\na/r0,89.9\na/r1,90\na/r2,103.5\na/r3,300\na/r4,0.7\n"
    join(store, text)
    assert column(store, "age") == [89, 90, 90, 90, 0, 50]
    join(store, text, keep_ages_over_89=True)
    assert column(store, "age") == [89, 90, 103, 90, 0, 50]
    assert ecgfast.open_store(store).manifest["retained"]["ages_over_89"] is True


def test_given_splits(store: Path) -> None:
    ids = [f"a/r{number}" for number in range(NUM_RECORDS)]
    splits = ["train", "train", "valid", "valid", "test", ""]
    rows = [f"{name},{split},1" for name, split in zip(ids, splits, strict=True)]
    join(store, "\n".join(["record_id,split,x", *rows]) + "\n", split="column")
    assert column(store, "split") == ["train", "train", "valid", "valid", "test", None]


def test_given_splits_stay_until_others_are_asked_for(store: Path) -> None:
    drawn = column(store, "split")
    given = "valid" if drawn[0] != "valid" else "test"
    rows = "".join(f"a/r{number},{given},1\n" for number in range(NUM_RECORDS))
    join(store, f"record_id,split,x\n{rows}", split="column")
    join(store, "record_id,x\na/r0,2\n")
    assert column(store, "split") == [given] * NUM_RECORDS
    join(store, "record_id,x\na/r0,3\n")  # the manifest still knows where they came from
    assert column(store, "split") == [given] * NUM_RECORDS
    join(store, "record_id,x\na/r0,3\n", split="patient")
    assert column(store, "split") == drawn
    assert ecgfast.open_store(store).manifest["splits"]["seed"] == 0


def test_given_splits_stay_whole_when_patients_change(store: Path) -> None:
    splits = ["train", "train", "test", "test", "test", "test"]
    rows = "".join(f"a/r{number},{split}\n" for number, split in enumerate(splits))
    join(store, f"record_id,split\n{rows}", split="column")
    with pytest.raises(ConfigError, match="1 patients are in more than one split"):
        join(store, "record_id,patient_id\na/r0,p9\na/r5,p9\n")


def test_ids_may_carry_a_suffix_but_not_other_capitals(store: Path) -> None:
    text = "record_id,x\na/r0.hea,1\na/r1.dat,2\na/r2.MAT,3\nA/r3,4\na/r4,5\n"
    summary = join(store, text, columns=["x"])
    assert column(store, "x") == [1, 2, 3, None, 5, None]
    assert summary.num_unused_lines == 1


def test_a_refusal_does_not_repeat_cells(store: Path) -> None:
    for text in ("record_id,age\na/r0,Jane\n", "record_id,x\na/r0,1,Jane\n"):
        with pytest.raises(ConfigError) as refusal:
            join(store, text)
        assert "Jane" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("record_id|x\na/r0|1\n", {}, "with commas, semicolons or tabs between the columns"),
        ("record_id,x,x\na/r0,1,2\n", {}, "column 'x' occurs twice"),
        ("record_id,x\na/r0,1\na/r1,1,2\n", {}, "line 3 has 3 cells, the header 2"),
        (
            "record_id,age\na/r0,50\na/r1,old\n",
            {},
            "age of row 2 below the header must be a number",
        ),
        ("record_id,ejection_fraction\na/r0,inf\n", {}, "must be a percentage such as 35.5"),
        (
            "record_id,label_date,x\na/r0,04/05/2020,1\n",
            {"label_window_days": 9},
            "label_date of row 1 below the header must be YYYY-MM-DD",
        ),
        ("record_id,age\na/r0,50\na/r1,-5\n", {}, "age of row 2 below the header must be from 0"),
        (
            "record_id,ejection_fraction\na/r0,19510429\n",
            {},
            "row 1 below the header must be from 0 to 100",
        ),
        ("record_id,ejection_fraction\na/r0,-1\n", {}, "must be from 0 to 100 percent, or empty"),
        ("record_id,age\na/r0,3000\n", {}, "age of row 1 below the header must be from 0 to 120"),
        ("record_id,sex\na/r0,F\na/r1,Jane\n", {}, "sex of row 2 below the header must be female"),
        ("record_id,site\na/r0,a\x1b[2Jb\n", {}, "site of row 1 below the header must be one line"),
        ('record_id,site\na/r0,"a\nb"\n', {}, "site of row 1 below the header must be one line"),
        ("record_id,x\na/r0,1\n", {"columns": ["record_id"]}, "a name of the store's own"),
        (
            "record_id,split\na/r0,train\na/r0,test\n",
            {"split": "column"},
            "name the same record and disagree",
        ),
        ("record_id,x\nb/r0,1\n", {}, "no line names a record of .* beside the store$"),
        ("record_id,x\nr0,1\nr7,1\nr1,0\n", {}, "2 of its ids are such paths without their first"),
        ("id,x\na/r0,1\n", {}, "needs record_id or patient_id"),
        ("record_id,x\na/r0,1\n", {"columns": ["y"]}, "'y' is not in"),
        ("record_id,x\na/r0,1\n", {"label_window_days": 3}, "needs a column label_date"),
        ("record_id,x\na/r0,1\n", {"split": "column"}, "needs a column named split"),
        ("record_id,split\na/r0,dev\n", {"split": "column"}, "got 'dev', allowed train"),
        ("record_id,split\na/r0,train\na/r1,test\n", {"split": "column"}, "1 patients are in more"),
        (
            "record_id,split,fold\na/r0,train,4711\n",
            {"split": "column"},
            "fold of row 1 below the header must be a whole number from 0 to 99",
        ),
        ("record_id,patient_id,x\na/r0,p,1\na/r0,q,1\n", {}, "name the same record and disagree"),
    ],
)
def test_refused(store: Path, text: str, options: dict[str, object], message: str) -> None:
    before = snapshot(store)
    with pytest.raises(ConfigError, match=message):
        join(store, text, **options)
    assert snapshot(store) == before


def test_wrong_key(store: Path) -> None:
    store.with_name("store.key").write_text("01" * 32)
    with pytest.raises(ConfigError, match="it is not the key of"):
        join(store, "record_id,x\na/r0,1\n")


def test_windows_of_one_recording_share_its_labels(tmp_path: Path) -> None:
    signal = ecg_like(1, seed=0, num_timesteps=10_000)[0]
    write_wfdb(tmp_path / "in/long@5000", signal)
    convert_quietly([tmp_path / "in"], tmp_path / "store", window="all")
    join(tmp_path / "store", "record_id,x\nlong@5000,3\n", columns=["x"])
    assert column(tmp_path / "store", "x") == [3, 3]


@pytest.mark.parametrize("crash", ["before the manifest", "before the rename"])
def test_crash_leaves_the_old_or_the_new_labels(store: Path, crash: str) -> None:
    old = snapshot(store)
    join(store, "record_id,ejection_fraction\na/r0,20\n")
    new = snapshot(store)
    manifest = old if crash == "before the manifest" else new
    (store / "manifest.json").write_bytes(manifest["manifest.json"])
    (store / RECORDS).write_bytes(old[RECORDS])
    (store / NEXT_RECORDS).write_bytes(new[RECORDS])
    expected = None if crash == "before the manifest" else 20
    assert column(store, "ejection_fraction")[0] == expected
    assert verify_store(store) == []
    join(store, "record_id,ejection_fraction\na/r1,30\n")
    assert column(store, "ejection_fraction")[:2] == [expected, 30]
    assert not (store / NEXT_RECORDS).exists()


def test_damaged_table_is_said(store: Path) -> None:
    data = bytearray((store / RECORDS).read_bytes())
    data[len(data) // 2] ^= 1
    (store / RECORDS).write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"records\.parquet is missing or damaged"):
        column(store, "site")


def test_join_is_in_the_manifest(store: Path) -> None:
    join(store, "record_id,x\na/r0,1\n")
    manifest = json.loads((store / "manifest.json").read_text())
    labels = manifest["labels"]
    assert (labels["columns"], labels["window_days"]) == (["x"], None)
    message = f"labels\0{hashlib.sha256(store.with_name('labels.csv').read_bytes()).hexdigest()}"
    assert (
        labels["csv_digest"] == hmac.new(bytes.fromhex(KEY), message.encode(), "sha256").hexdigest()
    )
    assert manifest["retained"] == {
        "identifiers": False,
        "ages_over_89": False,
        "dates": False,
        "sites": True,
        "columns": ["x"],
    }
    assert manifest["splits"] == {
        "kind": "patient",
        "drawn_by": "label",
        "seed": 0,
        "shares": {"test": 0.15, "valid": 0.15},
        "folds": 5,
        "strata": ["site"],
    }
    assert manifest["patients"] == {"ids": "site", "one_ecg_each": False}


def test_signals_stay(store: Path) -> None:
    before = ecgfast.open_store(store).read(range(NUM_RECORDS))
    join(store, "record_id,x\na/r0,1\n")
    np.testing.assert_array_equal(ecgfast.open_store(store).read(range(NUM_RECORDS)), before)
