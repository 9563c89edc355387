"""Tables of labels as they are read: what each column becomes, and what is refused with its row."""

import datetime
import os
from pathlib import Path

import pyarrow as pa
import pytest

from ecgfast.errors import ConfigError
from ecgfast.labels.choice import parse_date
from ecgfast.labels.columns import label_columns, stored
from ecgfast.labels.table import check_labels, folds, read_labels


def table(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text)
    return folder / "labels.csv"


@pytest.mark.parametrize(
    ("cells", "row", "got"),
    [
        (["1", "1.5"], 2, "1.5"),
        (["4711", "1"], 1, "4711"),
        (["19510429"], 1, "19510429"),
        (["-1"], 1, "-1"),
        (["1e300"], 1, "1e+300"),
        (["a"], 1, "'a'"),
        (["1", "2x"], 2, "'2x'"),
        (["1", "1_0"], 2, "'1_0'"),
        (["yes"], 1, "True"),
    ],
)
def test_a_cell_that_is_no_fold(tmp_path: Path, cells: list[str], row: int, got: str) -> None:
    path = table(tmp_path, "record_id,fold\n" + "".join(f"r,{cell}\n" for cell in cells))
    message = f"fold of row {row} below the header must be a whole number from 0 to 99, or empty, "
    with pytest.raises(ConfigError) as error:
        folds(read_labels(path), path)
    assert f"{message}got {got}; correct the cell" in str(error.value)


def test_folds(tmp_path: Path) -> None:
    path = table(tmp_path, "record_id,fold\nr,0\nr,99.0\nr,\nr,NA\n")
    assert folds(read_labels(path), path).to_pylist() == [0, 99, None, None]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_header_cell_of_any_length_is_one_of_our_errors(tmp_path: Path, separator: str) -> None:
    path = table(tmp_path, separator.join(["record_id", "x" * 131_073]) + "\nr,1\n")
    with pytest.raises(ConfigError, match="not a CSV table with a header line: field larger"):
        read_labels(path)


@pytest.mark.parametrize("cell", ["\0a/r0", "7\x1b[2J", '"7\n8"', "7\x9b2J", "7\u20288"])
def test_a_patient_with_control_characters(tmp_path: Path, cell: str) -> None:
    path = table(tmp_path, f"record_id,patient_id,x\nr,7,1\ns,{cell},1\n")
    with pytest.raises(ConfigError, match="patient_id of row 2 below the header must be one line"):
        read_labels(path)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[2Jb", r"'a\x1b[2Jb'"),
        ('"a\nb"', r"'a\nb'"),
        ("a\u202eb", r"'a\u202eb'"),
        ("a\u2066b", r"'a\u2066b'"),
        ("x" * 101, "'" + "x" * 60 + " ...'"),
    ],
)
def test_a_column_that_is_taken_has_a_name_of_one_line(
    tmp_path: Path, name: str, shown: str
) -> None:
    path = table(tmp_path, f"record_id,{name}\nr,1\n")
    message = f"column name {shown} must be at most 100 printable characters; rename it"
    for columns, where in ((None, f"labels {path}"), ([name.strip('"')], "--columns")):
        with pytest.raises(ConfigError) as error:
            check_labels(path, columns)
        assert str(error.value) == f"{where}: {message}"
    check_labels(path, [])  # it is not taken


def test_a_column_with_a_long_name(tmp_path: Path) -> None:
    check_labels(table(tmp_path, f"record_id,{'é' * 100}\nr,1\n"), None)


@pytest.mark.parametrize(
    ("cells", "row"),
    [
        (["1,000", "35", "2,500"], 1),
        (["", "+1,000"], 2),
        (["3", "12,345"], 2),
        (["1,000", "2,5"], None),
        (["33,5", "20,25"], None),
        (["12", "35"], None),
        (["1.000", "2.500"], None),
        (["1,234", "0,125"], None),  # no thousands begin with a 0
        (["1,234", ",125"], None),
        (["1,234", "a", "b", "c"], None),  # text
    ],
)
def test_a_comma_that_may_stand_for_thousands_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cells: list[str], row: int | None
) -> None:
    path = table(tmp_path, "record_id;x;y\n" + "".join(f"r;{cell};1\n" for cell in cells))
    label_columns(read_labels(path), ["x", "y"], path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (row is not None)
    for text in warnings:
        assert text.startswith(f"labels {path}: column 'x', row {row} below the header: the comma")


@pytest.mark.parametrize("name", ["ejection_fraction", "age"])
@pytest.mark.parametrize("separator", [";", "\t"])
def test_commas_of_ages_and_fractions_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, separator: str
) -> None:
    text = f"record_id;{name};other\nr;35;1,000\ns;1,000;2,000\n"
    path = table(tmp_path, text.replace(";", separator))
    label_columns(read_labels(path), None, path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [f"column {name!r}, row 2 below" in text for text in warnings] == [True]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    assert read_labels(table(folder, "record_id,fold\nr,1\n")).num_rows == 1


def test_a_pipe_as_table_of_labels_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(ConfigError, match="got a pipe"):
        check_labels(tmp_path / "labels.csv", None)


def test_a_header_line_that_is_no_utf8_is_one_of_our_errors(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"record_id,label_\xe4ate\nr1,2\n")
    with pytest.raises(ConfigError, match="save it as CSV UTF-8"):
        check_labels(tmp_path / "labels.csv", None)


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2020-05-31", (2020, 5, 31)),
        ("2020-05-31T10:00", (2020, 5, 31)),
        ("08:00:00 31/05/2020", (2020, 5, 31)),
        ("1/2/2020", (2020, 2, 1)),
        ("31/02/2020", None),
        ("2020-13-01", None),
        ("31 May", None),
        ("", None),
        (None, None),
    ],
)
def test_dates(text: str | None, date: tuple[int, int, int] | None) -> None:
    assert parse_date(text) == (date and datetime.date(*date))


@pytest.mark.parametrize(
    ("name", "cell", "taken"),
    [
        ("age", "0", True),
        ("age", "120", True),
        ("age", "300", True),
        ("age", "-0.1", False),
        ("age", "120.5", False),
        ("age", "299", False),
        ("age", "301", False),
        ("ejection_fraction", "0", True),
        ("ejection_fraction", "100", True),
        ("ejection_fraction", "100.5", False),
        ("ejection_fraction", "-0.5", False),
    ],
)
def test_limits_of_numbers_of_people(tmp_path: Path, name: str, cell: str, taken: bool) -> None:
    path = table(tmp_path, f"record_id,{name}\nr,\ns,{cell}\n")
    if taken:
        assert read_labels(path)[name].to_pylist() == [None, float(cell)]
        return
    with pytest.raises(ConfigError, match=f"{name} of row 2 below the header must be from 0 to"):
        read_labels(path)


@pytest.mark.parametrize(
    ("cell", "taken"),
    [
        ("2020-05-31", True),
        (" 2020-01-01 10:00", True),
        ("2020-12-09T10:00:00", True),
        ("2020-00-01", False),
        ("2020-13-01", False),
        ("2020-10-32", False),
        ("2020-5-1", False),
        ("31/05/2020", False),
        ("2020-05-311", False),
    ],
)
@pytest.mark.parametrize("name", ["ecg_date", "label_date"])
def test_dates_of_a_table(tmp_path: Path, name: str, cell: str, taken: bool) -> None:
    path = table(tmp_path, f"record_id,{name}\nr,\ns,{cell}\n")
    if taken:
        assert read_labels(path)[name].to_pylist() == [None, cell]
        return
    with pytest.raises(ConfigError, match=f"{name} of row 2 below the header must be YYYY-MM-DD"):
        read_labels(path)


def test_ids_as_other_tables_and_people_write_them(tmp_path: Path) -> None:
    """Our own tables put ' before a formula, spreadsheets add .0, people a suffix."""
    text = "record_id,patient_id,site,x\n'=a/r0.hea,7.0,'+2,'=1\n''-r1.NPY ,'P,2.0,b\nr.txt,,,c\n"
    found = read_labels(table(tmp_path, text))
    assert found["record_id"].to_pylist() == ["=a/r0", "'-r1", "r.txt"]
    assert found["patient_id"].to_pylist() == ["7", "'P", None]
    assert found["site"].to_pylist() == ["+2", "2", None]
    assert found["x"].to_pylist() == ["'=1", "b", "c"]


@pytest.mark.parametrize("head", [b"\xff\xfe", b"\xfe\xff"])
def test_utf16_is_refused(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(head + b"r\0e\0")
    with pytest.raises(ConfigError, match="got UTF-16"):
        read_labels(tmp_path / "labels.csv")


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    found = read_labels(table(tmp_path, ", record_id,  ,x \n0,r,1,2\n1,s,3,4\n"))
    assert found.to_pydict() == {"record_id": ["r", "s"], "x": [2, 4]}
    with pytest.raises(ConfigError, match="column 'x' occurs twice"):
        read_labels(table(tmp_path, "record_id,x , x\nr,1,2\n"))


def test_a_number_beyond_float64(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="x holds a number beyond 1e308"):
        read_labels(table(tmp_path, "record_id,x\nr,1\ns,1e309\n"))


def test_types_of_a_store() -> None:
    kinds = {"a": pa.int32(), "b": pa.float32(), "c": pa.bool_(), "d": pa.string(), "e": pa.null()}
    values = {"a": [7], "b": [0.5], "c": [True], "d": ["x"], "e": [None]}
    columns = {name: pa.chunked_array([pa.array(values[name], kinds[name])]) for name in kinds}
    types = [str(stored(column).type) for column in columns.values()]
    assert types == ["double", "double", "bool", "string", "string"]
    large = pa.chunked_array([pa.array([2**53 + 1], pa.int64())])
    assert stored(large).to_pylist() == [2.0**53]  # rounded
