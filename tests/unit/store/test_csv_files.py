"""Tables that we write open as text in a spreadsheet, and are read back as they were."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import convert_quietly, ecg_like, write_wfdb

import ecgfast
from ecgfast.labels.commands import export_splits, import_splits, label_store
from ecgfast.store.csv_files import csv_lines, plain_text, read_lines, safe_cell


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|' /C calc'!A1", "'=cmd|' /C calc'!A1"),
        ("+1+1", "'+1+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("'=1", "''=1"),
        ("-5", "-5"),
        ("-1.5e-3", "-1.5e-3"),
        ("+33", "+33"),
        ("'quoted'", "'quoted'"),
        ("a=1", "a=1"),
        ("", ""),
    ],
)
def test_formulas_become_text(text: str, cell: str) -> None:
    assert safe_cell(text) == cell
    assert plain_text(cell) == text


@given(st.lists(st.text(alphabet="'=+-@\t\n\r1a,\"", max_size=6), min_size=2, max_size=2))
def test_cells_come_back(row: list[str]) -> None:
    file = io.StringIO(csv_lines([["a", "b"], row]), newline="")
    assert [list(line.values()) for line in read_lines(file)] == [row]


def test_names_that_are_formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, signal in enumerate(ecg_like(3, seed=0)):
        write_wfdb(tmp_path / f"=in/-r{number}", signal, comments=[f"patient: =p{number}"])
    write_wfdb(tmp_path / "=in/@short", signal[:, :50])
    convert_quietly([Path("=in")], tmp_path / "store")
    table = (tmp_path / "store.sources.csv").read_text()
    for line in csv.reader(table.splitlines()):
        assert all(cell[:1] not in {"=", "+", "-", "@"} for cell in line)
    assert [line["record"] for line in read_lines(table.splitlines())] == [
        "-r0",
        "-r1",
        "-r2",
        "@short",
    ]
    (tmp_path / "labels.csv").write_text("record_id,site,lvh\n-r0,=here,1\n'-r1,'=here,0\n")
    label_store(tmp_path / "store", tmp_path / "labels.csv")
    assert ecgfast.open_store(tmp_path / "store").records["lvh"].to_pylist() == [1, 0, None]
    assert ecgfast.open_store(tmp_path / "store").records["site"].to_pylist()[:2] == ["=here"] * 2
    export_splits(tmp_path / "store", tmp_path / "splits.csv", readable=True)
    assert "'-r0," in (tmp_path / "splits.csv").read_text()
    before = ecgfast.open_store(tmp_path / "store").records["split"].to_pylist()
    import_splits(tmp_path / "store", tmp_path / "splits.csv")
    assert ecgfast.open_store(tmp_path / "store").records["split"].to_pylist() == before
