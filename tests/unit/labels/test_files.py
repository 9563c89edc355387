"""Tables in Parquet files and workbooks follow the rules of a CSV of the same cells."""

import datetime
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ecgfast.errors import BackendUnavailableError, ConfigError
from ecgfast.labels.files import file_of, read_cells
from ecgfast.labels.table import read_labels

openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")

IDS = ("record_id",)


def workbook(path: Path, **sheets: Sequence[Sequence[Any]]) -> Path:
    """Write sheets; a cell ("0%", 0.55) is shown in that format."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for number, row in enumerate(rows, 1):
            for column, value in enumerate(row, 1):
                cell = sheet.cell(number, column)
                if isinstance(value, tuple):
                    cell.number_format, value = value
                cell.value = value
    book.save(path)
    return path


def test_a_workbook(tmp_path: Path) -> None:
    rows = [
        ["record_id", "patient_id", "label_date", "ejection_fraction", "lvh", "qrs", "none"],
        ["a/r0", 15709.0, datetime.datetime(2020, 5, 31), ("0%", 0.55), True, 98.5, None],
        ["a/r1", 7, datetime.date(2020, 6, 1), "35–40 %", False, 1e-5, None],  # noqa: RUF001 (a dash of tables)
        ["a/r2", None, datetime.datetime(2020, 6, 1, 9, 30), ("0.0%", 0.335), None, "33,5", None],
        ["a/r3", "x", None, ("0%", 1), None, 0.1 + 0.2, None],
    ]
    table = read_labels(workbook(tmp_path / "echo.xlsx", Echo=rows))
    assert table["record_id"].to_pylist() == ["a/r0", "a/r1", "a/r2", "a/r3"]
    assert table["patient_id"].to_pylist() == ["15709", "7", None, "x"]
    assert table["label_date"].to_pylist() == [
        "2020-05-31", "2020-06-01", "2020-06-01 09:30:00", None,
    ]  # fmt: skip
    assert table["ejection_fraction"].to_pylist() == [55, 37.5, 33.5, 100]
    assert table["ejection_fraction_given"].to_pylist() == [None, "35-40", None, None]
    assert table["lvh"].to_pylist() == [True, False, None, None]
    assert table["none"].null_count == 4
    # One column has one decimal sign: 33,5 beside 98.5 is no number.
    assert b"bad_cell" in table.schema.field("qrs").metadata


def test_sheets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = [["record_id", "x"], ["a", 1]], [["record_id", "x"], ["b", 2]]
    path = workbook(tmp_path / "echo.xlsx", First=first, Second=second)
    caplog.set_level("INFO")
    assert read_cells(path, IDS).table["record_id"].to_pylist() == ["a"]
    assert f"sheet 'First' of 2; {path}#SHEET takes one" in caplog.text
    other = Path(f"{path}#Second")
    assert read_cells(other, IDS).table["record_id"].to_pylist() == ["b"]
    with pytest.raises(ConfigError, match="no sheet 'Third', it has First, Second"):
        read_cells(Path(f"{path}#Third"), IDS)


def test_a_number_sign_in_a_name(tmp_path: Path) -> None:
    path = tmp_path / "echo#1.csv"
    path.write_text("record_id,x\na,1\n")
    assert file_of(path) == (path, None)
    assert read_cells(path, IDS).table.num_rows == 1
    with pytest.raises(ConfigError, match=r"echo#1\.csv is no workbook, so it has no sheet 'Two'"):
        read_cells(Path(f"{path}#Two"), IDS)
    with pytest.raises(ConfigError, match="no such file"):
        read_cells(tmp_path / "nowhere.xlsx#One", IDS)


def test_rows_that_were_only_formatted_are_none(tmp_path: Path) -> None:
    rows = [["record_id", "x"], ["a", 1], [None, None], ["b", 2], [None, ("0%", None)]]
    table = read_labels(workbook(tmp_path / "echo.xlsx", Echo=rows))
    assert table["record_id"].to_pylist() == ["a", None, "b"]


def test_a_formula_that_nothing_has_computed_is_refused(tmp_path: Path) -> None:
    """Its value would be missing, and the label be unknown without a word."""
    rows = [["record_id", "x"], ["a", 1], ["b", "=B2+1"]]
    path = workbook(tmp_path / "echo.xlsx", Echo=rows)
    with pytest.raises(ConfigError, match="line 3 has a formula without a computed value"):
        read_cells(path, IDS)


def test_cells_beside_the_header_are_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "echo.xlsx", Echo=[["record_id", "x"], ["a", 1, "Jane"]])
    with pytest.raises(ConfigError, match="line 2 has more cells than the first line") as refusal:
        read_cells(path, IDS)
    assert "Jane" not in str(refusal.value)


def test_an_empty_sheet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs record_id or patient_id"):
        read_labels(workbook(tmp_path / "echo.xlsx", Echo=[]))


def test_openpyxl_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "echo.xlsx", Echo=[["record_id", "x"], ["a", 1]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)  # as where it is not installed
    with pytest.raises(BackendUnavailableError, match=r"pip install 'ecgfast\[excel\]'"):
        read_cells(path, IDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), r"before 2007; save it as \.xlsx"),
        (b"PK\x03\x04" + bytes(60), "no workbook that can be read"),
        (b"PAR1" + bytes(60), "no Parquet table that can be read"),
        (b"", "not a CSV table with a header line"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "echo").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_cells(tmp_path / "echo", IDS)


def test_a_parquet_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    day, time = datetime.date(2020, 5, 31), datetime.datetime(2020, 6, 1, 9, 30)
    columns = {
        "record_id": pa.array(["a", "b.hea"]).dictionary_encode(),
        "patient_id": pa.array([15709.0, None]),
        "label_date": pa.array([day, None]),
        "ecg_date": pa.array([time, None]),
        "ejection_fraction": pa.array([55.5, float("nan")]),
        "lvh": pa.array([True, None]),
        "count": pa.array([3, None], pa.int32()),
        "price": pa.array([Decimal("1.25"), None]),
        "codes": pa.array([[1], [2]]),
    }
    pq.write_table(pa.table(columns), tmp_path / "echo.parquet")
    table = read_labels(tmp_path / "echo.parquet")
    assert table["record_id"].to_pylist() == ["a", "b"]
    assert table["patient_id"].to_pylist() == ["15709", None]
    assert table["label_date"].to_pylist() == ["2020-05-31", None]
    assert table["ecg_date"].to_pylist() == ["2020-06-01 09:30:00.000000", None]
    assert table["ejection_fraction"].to_pylist() == [55.5, None]
    assert table["lvh"].to_pylist() == [True, None]
    assert (table["count"].to_pylist(), table["price"].to_pylist()) == ([3, None], [1.25, None])
    assert "column 'codes' holds list<" in caplog.text


def test_a_parquet_table_with_a_name_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 3, ["record_id", "x", "x"])
    pq.write_table(table, tmp_path / "echo.parquet")
    with pytest.raises(ConfigError, match="column 'x' occurs twice"):
        read_cells(tmp_path / "echo.parquet", IDS)


def test_records_of_a_store_are_a_table(tmp_path: Path) -> None:
    """A range that a store was given comes back as one."""
    columns = {
        "record_id": ["a", "b"],
        "ejection_fraction": [39.0, 50.0],
        "ejection_fraction_given": ["<40", None],
    }
    pq.write_table(pa.table(columns), tmp_path / "records.parquet")
    table = read_labels(tmp_path / "records.parquet")
    assert table["ejection_fraction"].to_pylist() == [39, 50]
    assert table["ejection_fraction_given"].to_pylist() == ["<40", None]


def test_damaged_workbooks_are_one_of_our_errors(tmp_path: Path) -> None:
    """Cut, and with bytes changed: a table is read as it was, or refused with one line."""
    rows = [["record_id", "x"], *([f"r{number}", number] for number in range(20))]
    path = workbook(tmp_path / "echo.xlsx", Echo=rows)
    whole = read_cells(path, IDS).table
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    cuts = [data[:length] for length in rng.integers(8, len(data), 10).tolist()]
    cuts += [
        data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]
        for position in rng.integers(8, len(data), 40).tolist()
    ]
    refused = 0
    for damaged in cuts:
        path.write_bytes(damaged)
        try:
            assert read_cells(path, IDS).table.equals(whole)
        except ConfigError:
            refused += 1
    assert refused > 25
