"""What is shown before labels are written, and the list of what has no partner."""

import csv
from pathlib import Path

import pytest
from label_tables import column, join, labelled_later
from recordings import KEY, snapshot

from ecgfast.errors import ConfigError
from ecgfast.labels.commands import label_store
from ecgfast.store.patients import Pseudonyms

TEXT = (
    "record_id,label_date,ejection_fraction,lvh,note\n"
    "a/r0,2020-05-11,35-40,yes,Jane\n"
    "a/r1,2020-05-11,35-45,no,Jane\n"
    "a/r2,2020-05-11,60,yes,Jane\n"
    "a/r3,2020-05-11,normal,,Jane\n"
    "a/r4,2020-07-01,20,no,Jane\n"  # outside the window
    "b/r9,2020-05-11,20,no,Jane\n"
    ",2020-05-11,20,no,Jane\n"
)


class StoppedError(Exception):
    """Raised by what is given the preview."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return labelled_later(tmp_path)


def preview_of(store: Path, text: str, **options: object) -> list[str]:
    """The preview's lines; what stops the join leaves no trace of it."""
    shown: list[str] = []

    def stop(preview: str) -> None:
        shown.extend(preview.splitlines())
        raise StoppedError

    before, beside = snapshot(store), sorted(store.parent.iterdir())
    with pytest.raises(StoppedError):
        join(store, text, before_write=stop, **options)
    assert snapshot(store) == before
    assert sorted(store.parent.iterdir()) == sorted({*beside, store.with_name("labels.csv")})
    return shown


def test_the_preview(store: Path) -> None:
    shown = preview_of(store, TEXT, label_window_days=14)
    table = store.with_name("labels.csv")
    assert shown == [
        f"{table}: 7 lines joined by record_id; 5 name records of this store, 2 do not",
        f"{store}: 6 records; 5 named by a line, 1 not",
        "  2 of the named without a label inside the window of days",
        "",
        "  column             type    known  unknown  values",
        "  ejection_fraction  number  3      3        37.5 to 60, 2 from ranges, limits or "
        "estimates",
        "  lvh                yes/no  3      3        2 yes, 1 no",
        "",
        "target ejection_fraction<40",
        "  site   records  cases  controls  unknown",
        "  north  6        1      1         4",
        "  all    6        1      1         4",
        "of the unknown, 1 record whose range or limit, such as 35-45 or <50, does not decide the "
        "target",
        "",
        "first 3 labelled records",
        "  site   age   sex  ejection_fraction  lvh    ejection_fraction_given",
        "  north  50.0       37.5               True   35-40",
        "  north  50.0       40.0               False  35-45",
        "  north  50.0       60.0               True",
    ]


def test_no_id_and_no_text_is_shown(store: Path) -> None:
    shown = "\n".join(preview_of(store, TEXT, label_window_days=14, columns=["note", "lvh"]))
    assert "  note    text    4      2        not shown" in shown
    assert "Jane" not in shown
    for name in (*column(store, "record_id"), *column(store, "patient_id"), "a/r0", "p0"):
        assert str(name) not in shown


def unmatched(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_what_has_no_partner_is_listed(store: Path) -> None:
    summary = join(store, TEXT, label_window_days=14)
    path, table = store.with_name("store.unmatched.csv"), str(store.with_name("labels.csv"))
    assert summary.unmatched == path
    assert path.stat().st_mode & 0o777 == 0o600
    assert unmatched(path) == [
        ["side", "table", "line", "record", "patient", "why"],
        ["table", table, "7", "b/r9", "", "names no record of the store"],
        ["table", table, "8", "", "", "has no id"],
        ["store", "", "", "a/r3", "north/p1", "no label in the window of days"],
        ["store", "", "", "a/r4", "north/p2", "no label in the window of days"],
        ["store", "", "", "a/r5", "north/p2", "no line names it"],
    ]
    join(store, "patient_id,lvh\np0,1\np1,1\np2,0\np3,0\n")
    assert unmatched(path)[1:] == [["table", table, "5", "", "p3", "names no record of the store"]]


def test_the_list_lies_where_it_is_asked_for(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.csv"
    join(store, "record_id,lvh\na/r0,1\n", unmatched=path)
    assert len(unmatched(path)) == 6
    assert not store.with_name("store.unmatched.csv").exists()


def test_no_label_is_written_where_the_list_cannot_be(store: Path) -> None:
    before = snapshot(store)
    for place, match in (
        (store.parent, "is a folder"),
        (store.parent / "no/list.csv", "no folder"),
    ):
        with pytest.raises(ConfigError, match=match):
            join(store, "record_id,lvh\na/r0,1\n", unmatched=place)
    assert snapshot(store) == before


def test_the_list_replaces_nothing_else_and_enters_no_store(store: Path, tmp_path: Path) -> None:
    key = store.with_name("store.key")
    before = key.read_bytes(), snapshot(store)
    with pytest.raises(ConfigError, match=r"--unmatched .* exists and is no table of unmatched"):
        join(store, "record_id,lvh\na/r0,1\n", unmatched=key)
    with pytest.raises(ConfigError, match=r"--unmatched .* lies in the store"):
        join(store, "record_id,lvh\na/r0,1\n", unmatched=store / "unmatched.csv")
    assert (key.read_bytes(), snapshot(store)) == before


def test_several_tables(store: Path, tmp_path: Path) -> None:
    """Sites first, then echoes that are joined by them, then a correction of one."""
    texts = {
        "people": "record_id,site,lvh\na/r0,north,1\na/r4,south,0\na/r5,south,0\n",
        "echo": "patient_id;site;ejection_fraction\np0;north;<35\np2;south;55,5\nP9;south;1\n",
        "more": "record_id,ejection_fraction,lvh\na/r1,50,\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    paths = [tmp_path / name for name in texts]
    summary = label_store(store, paths)
    assert column(store, "site") == ["north"] * 4 + ["south"] * 2
    assert column(store, "ejection_fraction") == [34, 50, None, None, 55.5, 55.5]
    assert column(store, "ejection_fraction_given") == ["<35", None, None, None, None, None]
    assert column(store, "lvh") == [1, None, None, None, 0, 0]
    assert summary.columns == ("lvh", "ejection_fraction")
    assert (summary.num_matched, summary.num_unused_lines) == (4, 1)
    assert unmatched(summary.unmatched)[1:] == [
        ["table", str(paths[1]), "4", "", "P9", "names no record of the store"],
        ["store", "", "", "a/r2", "north/p1", "no line names it"],
        ["store", "", "", "a/r3", "north/p1", "no line names it"],
    ]


def test_names_may_be_in_one_of_several_tables(store: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("record_id,x\na/r0,1\n")
    (tmp_path / "two").write_text("record_id,y\na/r0,2\n")
    paths = [tmp_path / "one", tmp_path / "two"]
    assert label_store(store, paths, columns=["y", "x"]).columns == ("x", "y")
    with pytest.raises(ConfigError, match=r"--columns: 'z' is in none of .*; they have"):
        label_store(store, paths, columns=["x", "z"])
    with pytest.raises(ConfigError, match="needs a column named split in one table, got 0"):
        label_store(store, paths, split="column")
    with pytest.raises(ConfigError, match="label needs a table, got none"):
        label_store(store, [])


def test_a_later_table_knows_the_patients_of_an_earlier(store: Path, tmp_path: Path) -> None:
    (tmp_path / "people").write_text("record_id,patient_id\na/r0,p9\n")
    (tmp_path / "sites").write_text("record_id,site\na/r0,south\n")
    label_store(store, [tmp_path / "people", tmp_path / "sites"], split="patient")
    ours = Pseudonyms(bytes.fromhex(KEY))
    assert column(store, "patient_id")[0] == ours.of("patient", "south/p9")
    with store.with_name("store.sources.csv").open() as file:
        assert next(csv.DictReader(file))["patient"] == "south/p9"
