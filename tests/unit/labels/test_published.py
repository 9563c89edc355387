"""Splits that are drawn again, written for others and taken from others."""

from pathlib import Path

import pytest
from recordings import convert_quietly, ecg_like, write_wfdb

import ecgfast
from ecgfast.cli import main
from ecgfast.errors import ConfigError
from ecgfast.labels.commands import draw_again, export_splits, import_splits, label_store
from ecgfast.store.verify import verify_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Forty patients with one record each."""
    for number, signal in enumerate(ecg_like(40, seed=0)):
        write_wfdb(tmp_path / f"in/a/r{number}", signal, comments=[f"patient: {number}"])
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    return tmp_path / "store"


def splits(store: Path) -> list[tuple[object, object]]:
    records = ecgfast.open_store(store).records
    return list(zip(records["split"].to_pylist(), records["fold"].to_pylist(), strict=True))


@pytest.mark.parametrize("readable", [False, True])
def test_exported_splits_come_back(store: Path, tmp_path: Path, readable: bool) -> None:
    before = splits(store)
    assert export_splits(store, tmp_path / "splits.csv", readable=readable) == 40
    text = (tmp_path / "splits.csv").read_text()
    assert text.startswith("record_id,split,fold\n")
    assert ("a/r7," in text) is readable
    draw_again(store, split_seed=3)
    assert splits(store) != before
    import_splits(store, tmp_path / "splits.csv")
    assert splits(store) == before
    assert verify_store(store) == []
    assert ecgfast.open_store(store).manifest["splits"] == {"kind": "column"}


def test_an_export_replaces_nothing_but_an_export(store: Path, tmp_path: Path) -> None:
    key, labels = tmp_path / "store.key", tmp_path / "labels.csv"
    labels.write_text("record_id,ejection_fraction\n")
    before = key.read_bytes()
    for path in (key, labels):
        with pytest.raises(ConfigError, match=f"--export {path} exists and is no table of splits"):
            export_splits(store, path)
    assert key.read_bytes() == before
    for _ in range(2):
        assert export_splits(store, tmp_path / "splits.csv") == 40


def test_a_published_split_fits_a_store_under_another_key(store: Path, tmp_path: Path) -> None:
    draw_again(store, split_seed=5)
    export_splits(store, tmp_path / "splits.csv", readable=True)
    other = tmp_path / "other"
    other.with_name("other.key").write_text("11" * 32)
    convert_quietly([tmp_path / "in"], other)
    assert splits(other) != splits(store)
    import_splits(other, tmp_path / "splits.csv")
    assert splits(other) == splits(store)


def test_a_split_that_leaks_is_refused(tmp_path: Path) -> None:
    for number, signal in enumerate(ecg_like(2, seed=0)):
        write_wfdb(tmp_path / f"in/r{number}", signal, comments=["patient: 1"])
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    csv = tmp_path / "splits.csv"
    csv.write_text("record_id,split,fold\nr0,train,1\nr1,test,1\n")
    with pytest.raises(ConfigError, match="1 patients are in more than one split"):
        import_splits(tmp_path / "store", csv)
    csv.write_text("record_id,split,fold\nr0,train,1\nr1,train,2\n")
    with pytest.raises(ConfigError, match="1 patients are in more than one fold"):
        import_splits(tmp_path / "store", csv)


def test_records_without_a_split_in_the_file_are_counted(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "splits.csv").write_text("record_id,split\na/r1,test\na/r40,train\nA/r2,train\n")
    import_splits(store, tmp_path / "splits.csv")
    assert "39 of 40 records get no split from it" in caplog.text
    assert "2 of its lines name no record of this store" in caplog.text


def test_readable_ids_need_the_table_beside_the_store(store: Path, tmp_path: Path) -> None:
    store.with_name("store.sources.csv").unlink()
    with pytest.raises(ConfigError, match="--readable needs the readable ids"):
        export_splits(store, tmp_path / "splits.csv", readable=True)
    export_splits(store, tmp_path / "splits.csv")


def test_the_command(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = tmp_path / "splits.csv"
    assert main(["splits", str(store), "--export", str(csv)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["train", "28", "28"], ["valid", "6", "6"], ["test", "6", "6"],
    ]  # fmt: skip
    assert main(["splits", str(store), "--draw", "--split-seed", "2"]) == 0
    assert main(["splits", str(store), "--import", str(csv)]) == 0
    assert main(["splits", str(store), "--draw", "--import", str(csv)]) == 2
    assert "takes one of --export, --import and --draw" in capsys.readouterr().err


def test_copies_in_two_splits_are_said_and_refused_when_strict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """PTB-XL's own folds tear copies of one ECG; who wants these folds must get them."""
    signal = ecg_like(1, seed=0)[0]
    for number in range(2):
        write_wfdb(tmp_path / f"in/r{number}", signal, comments=[f"patient: {number}"])
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    records = ecgfast.open_store(tmp_path / "store").records
    assert len(set(records["patient_id"].to_pylist())) == 2
    assert len(set(records["split"].to_pylist())) == 1  # drawn, they stay together
    csv = tmp_path / "splits.csv"
    csv.write_text("record_id,split\nr0,train\nr1,test\n")
    import_splits(tmp_path / "store", csv)
    assert "copies of 1 ECGs are in more than one split" in caplog.text
    assert splits(tmp_path / "store") == [("train", None), ("test", None)]
    assert "more than one fold" not in caplog.text
    csv.write_text("record_id,split,fold\nr0,train,1\nr1,train,2\n")
    import_splits(tmp_path / "store", csv)
    assert "copies of 1 ECGs are in more than one fold" in caplog.text
    csv.write_text("record_id,split\nr0,train\nr1,test\n")
    assert main(["splits", str(tmp_path / "store"), "--import", str(csv), "--strict"]) == 2
    assert "copies of 1 ECGs are in more than one split" in capsys.readouterr().err


def test_later_labels_move_nobody_to_another_split_or_fold(store: Path, tmp_path: Path) -> None:
    """Cases that come to be known are another stratum, in which folds are dealt anew."""
    csv = tmp_path / "labels.csv"
    csv.write_text("record_id,af\na/r0,1\n")
    label_store(store, csv)
    before = splits(store)
    rows = [f"a/r{number},{30 if number % 3 else 60}" for number in range(40)]
    csv.write_text("\n".join(["record_id,ejection_fraction", *rows]) + "\n")
    label_store(store, csv)
    assert splits(store) == before
    label_store(store, csv, split="patient")
    assert splits(store) != before


def test_a_grown_store_keeps_splits_and_only_new_patients_draw(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty more patients, and a second ECG of patient 7."""
    export_splits(store, tmp_path / "splits.csv", readable=True)
    for number, signal in enumerate(ecg_like(21, seed=1)):
        comments = [f"patient: {40 + number if number < 20 else 7}"]
        write_wfdb(tmp_path / f"in/b/r{number}", signal, comments=comments)
    grown = tmp_path / "grown"
    convert_quietly([tmp_path / "in"], grown)
    assert splits(grown)[:40] != splits(store)
    csv = str(tmp_path / "splits.csv")
    assert main(["splits", str(grown), "--import", csv, "--draw-others"]) == 0
    assert "get no split" not in capsys.readouterr().err
    after = splits(grown)
    assert after[:40] == splits(store)
    patients = ecgfast.open_store(grown).records["patient_id"].to_pylist()
    of_patient = dict(zip(patients, after, strict=True))
    assert [of_patient[name] for name in patients] == after
    new = [split for name, (split, _) in of_patient.items() if name not in patients[:40]]
    assert sorted(map(str, new)) == ["test"] * 3 + ["train"] * 14 + ["valid"] * 3
    assert ecgfast.open_store(grown).manifest["splits"]["kind"] == "patient"
    assert main(["splits", str(grown), "--draw-others"]) == 2
    assert "--draw-others goes with --import CSV" in capsys.readouterr().err
