"""Files that nothing reads, through convert: in the summary and the manifest, never by name."""

import csv
import json
from pathlib import Path

import pytest
from recordings import convert_quietly, ecg_like, snapshot, write_cohort, write_wfdb

import ecgfast
from ecgfast.cli import main
from ecgfast.convert import convert, run
from ecgfast.errors import ConfigError, CorruptStoreError
from ecgfast.evaluate.cohort import describe
from ecgfast.labels.commands import label_store
from ecgfast.store.manifest import write_manifest
from ecgfast.store.verify import verify_store

PASSED_OVER = {"XML": 4, "DICOM": 1, "hidden files": 1, "signal files without a header": 1}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two records, an annotation, and seven files that nothing reads, of a patient's name."""
    write_cohort(tmp_path / "in", 2)
    names = ["r00000.atr", "Doe_Jane.dcm", ".Doe.xml", "Doe.dat"]
    for name in [*names, *(f"Doe_{number}.xml" for number in range(4))]:
        (tmp_path / "in" / name).write_bytes(b"")
    return tmp_path / "in"


def test_counts_are_in_summary_and_manifest_and_names_are_not(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    summary = convert_quietly([source], out)
    assert summary.passed_over == PASSED_OVER
    assert summary.num_files == len(list(source.iterdir())) == 12
    assert summary.examples["XML"] == [f"{source}/Doe_{number}.xml" for number in range(3)]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["version"], manifest["source_files"]) == (2, 12)
    assert manifest["passed_over"] == PASSED_OVER
    assert b"Doe" not in b"".join(snapshot(out).values())
    table = tmp_path / "store.passed_over.csv"
    assert table.stat().st_mode & 0o777 == 0o600
    with table.open() as file:
        lines = [(line["kind"], line["source"]) for line in csv.DictReader(file)]
    assert len(lines) == 6
    assert ("DICOM", f"{source}/Doe_Jane.dcm") in lines
    assert verify_store(out) == []


def test_info_shows_kinds_and_names_no_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    convert_quietly([source], out)
    text = describe(ecgfast.open_store(out))
    assert "files     12 = 5 of the inputs + 7 passed over" in text
    assert "4 XML (of no format that is read)\n" in text
    assert f"{out}.passed_over.csv names some" in text
    assert "Doe" not in text
    (tmp_path / "store.passed_over.csv").unlink()
    assert "names some" not in describe(ecgfast.open_store(out))


@pytest.mark.parametrize("content", [b"x\n1\n", b"\xff", b"kind,source\nXML," + b"x" * 131_073])
def test_a_damaged_table_of_examples_is_said(source: Path, tmp_path: Path, content: bytes) -> None:
    convert_quietly([source], tmp_path / "store")
    (tmp_path / "store.passed_over.csv").write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"store\.passed_over\.csv is damaged: .*; remove"):
        describe(ecgfast.open_store(tmp_path / "store"))


def test_a_store_of_before_says_that_it_does_not_know(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    convert_quietly([source], out)
    manifest = json.loads((out / "manifest.json").read_text())
    drop = {"source_files", "passed_over", "digest"}
    write_manifest(out, {key: value for key, value in manifest.items() if key not in drop})
    text = describe(ecgfast.open_store(out))
    assert "files     unknown: converted by an earlier version" in text
    again = convert_quietly([out], tmp_path / "copy", codec="none")
    assert (again.num_files, again.passed_over) == (None, {})


def test_transcoding_keeps_the_counts(source: Path, tmp_path: Path) -> None:
    first = convert_quietly([source], tmp_path / "store")
    second = convert_quietly([tmp_path / "store"], tmp_path / "copy", codec="none")
    assert (second.num_files, second.passed_over) == (first.num_files, first.passed_over)
    assert second.examples == first.examples
    assert (tmp_path / "copy.passed_over.csv").stat().st_mode & 0o777 == 0o600


def test_counts_are_those_of_the_first_start(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "a" / "store", tmp_path / "b" / "store"
    convert_quietly([source], whole)

    def full(*_: object, **__: object) -> None:
        raise ConfigError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(run, "run_units", full)
        with pytest.raises(ConfigError, match="stopped here"):
            convert_quietly([source], broken)
    (source / "later.xml").write_bytes(b"")
    assert convert_quietly([source], broken).passed_over == PASSED_OVER
    assert snapshot(broken.parent) == snapshot(whole.parent)


def test_a_folder_without_other_files_has_no_table_beside(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/1", ecg_like(1, seed=0)[0])
    summary = convert_quietly([tmp_path / "in"], tmp_path / "store")
    assert (summary.num_files, summary.passed_over, summary.examples) == (2, {}, {})
    assert not (tmp_path / "store.passed_over.csv").exists()


def test_labels_that_fail_after_convert_name_the_next_command(source: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "store", tmp_path / "my labels.csv"
    table.write_text("record_id,x,y\nelsewhere/1,1,2\n")
    with pytest.raises(ConfigError, match="no line names a record") as refusal:
        convert_quietly([source], out, labels=table, columns=["x"])
    message = str(refusal.value)
    assert f"the store {out} is finished" in message
    assert f"run ecgfast label {out} '{table}' --columns x" in message
    table.write_text("record_id,x,y\nr00001,1,2\n")
    assert label_store(out, table, columns=["x"]).num_matched == 1


def test_columns_are_chosen_and_a_wrong_table_is_refused_first(
    source: Path, tmp_path: Path
) -> None:
    out, table = tmp_path / "run" / "store", tmp_path / "labels.csv"
    table.write_text("record_id,x,ward\nr00000,1,north\nr00001,bad,south\n")
    with pytest.raises(ConfigError, match="column 'x', row 2 below the header: got 'bad'"):
        convert_quietly([source], out, labels=table)
    with pytest.raises(ConfigError, match="'z' is not in"):
        convert_quietly([source], out, labels=table, columns=["z"])
    with pytest.raises(ConfigError, match="'flags' is a name of the store's own"):
        convert_quietly([source], out, columns=["flags"])
    assert [path.name for path in out.parent.iterdir()] == ["store.key"]  # convert_quietly's own
    convert_quietly([source], out, labels=table, columns=["ward"])
    records = ecgfast.open_store(out).records
    assert records["ward"].to_pylist() == ["north", "south"]
    assert "x" not in records.column_names


def test_info_names_no_target_without_an_ejection_fraction(source: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "store", tmp_path / "labels.csv"
    convert_quietly([source], out)
    text = describe(ecgfast.open_store(out))
    assert "target    none: no record has an ejection fraction" in text
    assert "ejection_fraction<40" not in text
    table.write_text("record_id,ejection_fraction\nr00000,35\n")
    label_store(out, table)
    assert "target    ejection_fraction<40" in describe(ecgfast.open_store(out))


def test_a_key_never_lies_in_its_store(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("store")
    for key in (tmp_path / "store/k", tmp_path / "store/a/k", tmp_path / "link/k"):
        with pytest.raises(ConfigError, match="lies in the store"):
            convert_quietly([source], tmp_path / "store", key_file=key)
    assert not (tmp_path / "store").exists()


def test_a_key_lies_in_no_other_store(source: Path, tmp_path: Path) -> None:
    (tmp_path / "other/signals.zarr").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"--key-file .* lies in the store"):
        convert_quietly([source], tmp_path / "store", key_file=tmp_path / "other/k")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["signals.zarr"]


@pytest.mark.parametrize("content", ["", "zz", "00" * 32])
def test_a_wrong_key_leaves_nothing_behind(source: Path, tmp_path: Path, content: str) -> None:
    key = tmp_path / "key"
    key.write_text(content)
    key.chmod(0o600)
    with pytest.raises(ConfigError, match=f"pseudonym key {key}: "):
        convert([source], tmp_path / "store", key_file=key, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "key"]


def test_no_output_lies_in_a_store(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert_quietly([source], store)
    before = snapshot(store)
    commands = (
        ["convert", source, "--out", store / "sub/store"],
        ["pretrain", store, "--out", store / "run"],
        ["finetune", store, "--init", "random", "--out", store / "a/run"],
        ["evaluate", tmp_path, store, "--out", store],
        ["predict", tmp_path, source, "--out", store / "scores.csv"],
        ["reconstruct", tmp_path, store, "--record", "x", "--out", store / "x.png"],
        ["splits", store, "--export", store / "splits.csv"],
    )
    for command in commands:
        assert main([str(word) for word in command]) == 2
    assert snapshot(store) == before
