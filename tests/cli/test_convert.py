"""What `convert` prints of files that nothing reads, and its options for labels."""

from pathlib import Path

import pytest
from recordings import write_cohort

from ecgfast import open_store
from ecgfast.cli import main
from ecgfast.ingest import FORMATS


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "in", 2)
    names = [*(f"{n}.xml" for n in range(8)), "a.dcm", "b.dcm", "c.dcm", "d.scp", "e.pdf"]
    for name in names:
        (tmp_path / "in" / name).write_bytes(b"")
    return tmp_path / "in"


def test_files_that_are_passed_over_are_said(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(source), "--out", str(tmp_path / "s"), "--workers", "1"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("2 inputs = 2 converted + 0 quarantined; 2 records (0 of them")
    assert second == (
        "13 files passed over: 8 XML, 3 DICOM, 1 SCP-ECG (of no format that is read); "
        "1 PDF (no resting ECG); "
        f"{tmp_path / 's'}.passed_over.csv names some"
    )


def test_columns_of_the_labels(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("record_id,x,y\nr00000.hea,1,2\n")
    command = ["convert", source, "--out", tmp_path / "s", "--labels", labels, "--columns", "y"]
    assert main([*map(str, command), "--workers", "1"]) == 0
    assert main(["info", str(tmp_path / "s"), "--target", "y=2"]) == 0
    assert "target    y=2" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "s"), "--target", "x=1"]) == 2


def test_without_columns_the_usual_labels_are_taken(source: Path, tmp_path: Path) -> None:
    store, labels = tmp_path / "s", tmp_path / "labels.csv"
    labels.write_text("record_id,ejection_fraction,lvh,qrs_ms\nr00000,35,1,98\n")
    command = ["convert", source, "--out", store, "--labels", labels, "--workers", "1"]
    assert main([*map(str, command)]) == 0
    assert open_store(store).manifest["labels"]["columns"] == ["ejection_fraction", "lvh"]


def test_columns_given_twice_are_all_taken(source: Path, tmp_path: Path) -> None:
    store, labels = tmp_path / "s", tmp_path / "labels.csv"
    labels.write_text("record_id,x,y,z,w\nr00000,1,2,3,4\n")
    columns = ["--columns", "y,x", "--columns", "z", "--columns", "x"]
    command = ["convert", source, "--out", store, "--labels", labels, "--workers", "1", *columns]
    assert main([*map(str, command)]) == 0
    assert open_store(store).manifest["labels"]["columns"] == ["y", "x", "z"]
    assert main(["label", str(store), str(labels), "--columns", "w", "--columns", "z"]) == 0
    assert open_store(store).manifest["labels"]["columns"] == ["w", "z"]


def test_a_folder_of_vendor_files_says_what_it_holds(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in [*source.glob("*.hea"), *source.glob("*.dat"), *source.glob("*.pdf")]:
        path.unlink()
    assert main(["convert", str(source), "--out", str(tmp_path / "s"), "--workers", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no ECG file that is read (found 8 .xml, 3 .dcm, 1 .scp), allowed are" in line


def test_the_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a source or a store, each with its state."""
    assert main(["convert", "--list-formats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(FORMATS)
    for each, first, second in zip(FORMATS, lines[::2], lines[1::2], strict=True):
        state = "tried on real files" if each.tried else "not tried on a real file"
        assert (first, second) == (f"{each.name}: {state}", f"    {each.keeps}")
    assert "GE MUSE XML: tried on real files" in lines
    assert "Schiller XML: not tried on a real file" in lines


def test_a_stage_names_the_options_that_it_does_not_take(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", source, "--out", tmp_path / "s", "--stage", "units", "--list", "x"]
    assert main([*map(str, command), "--assume-one-ecg-per-patient"]) == 2
    error = capsys.readouterr().err
    assert "--stage units does not take sources, --list, --assume-one-ecg-per-patient;" in error


def test_a_store_without_a_record_says_how_to_begin_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.hea").write_text("damaged")
    command = ["convert", str(tmp_path / "1.hea"), "--out", str(tmp_path / "s"), "--workers", "1"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"correct them, then remove {tmp_path / 's'} and {tmp_path / 's.convert'}" in error


def test_a_source_that_is_a_link_to_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").symlink_to("in")
    assert main(["convert", str(tmp_path / "in"), "--out", str(tmp_path / "s")]) == 2
    assert "does not exist, allowed a file or a folder" in capsys.readouterr().err


def test_a_workbook_of_labels(source: Path, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    book = openpyxl.Workbook()
    for row in (["record_id", "ejection_fraction"], ["r00000", "35-40 %"], ["r00001", 55]):
        book.active.append(row)
    book.save(tmp_path / "echo.xlsx")
    command = ["convert", source, "--out", tmp_path / "s", "--labels", tmp_path / "echo.xlsx"]
    assert main([*map(str, command), "--workers", "1"]) == 0
    records = open_store(tmp_path / "s").records
    assert records["ejection_fraction"].to_pylist() == [37.5, 55]
    assert records["ejection_fraction_given"].to_pylist() == ["35-40", None]
