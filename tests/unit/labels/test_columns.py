"""Which columns of a CSV a join takes, and what their cells may hold."""

from pathlib import Path

import pytest
from label_tables import NUM_RECORDS, column, join, labelled_later
from recordings import snapshot

import ecgfast
from ecgfast.errors import ConfigError
from ecgfast.labels.commands import label_store

IDS = """PatientID,patientid,ssn,SSN,birthdate,dateofbirth,birth_year,nhs_number,accession,postcode,
lat,lon,MRN,mrn_number,ID,name,surname,phone number,date of birth,Patient No"""
ID_COLUMNS = [name.strip() for name in IDS.split(",")]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return labelled_later(tmp_path)


def test_text_is_taken_only_by_name(store: Path) -> None:
    text = 'record_id,name,mrn,diagnosis,lvh\na/r0,Jane Doe,4711,"left\nfascicular",1\n'
    assert join(store, text).columns == ("lvh",)
    raw = b"".join(snapshot(store).values())
    assert b"Jane" not in raw
    assert "mrn" not in ecgfast.open_store(store).records.column_names
    assert join(store, text, columns=["diagnosis"]).columns == ("diagnosis",)
    assert column(store, "diagnosis")[0] == "left\nfascicular"


def test_no_cure_is_named_where_there_is_none(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither for ids, nor for names that hold the comma between two names."""
    for header in ("record_id,lvh,mrn", 'record_id,lvh,"a,b"'):
        with caplog.at_level("INFO"):
            join(store, f"{header}\na/r0,1,3\na/r1,0,4\n")
    assert "left out mrn (looks like an id)" in caplog.text
    assert "left out a,b (numbers)" in caplog.text
    assert "--columns" not in caplog.text


@pytest.mark.parametrize("cells", [("19510429", "4711"), ("1.5", "0"), ("2", "1"), ("J. D.", "K")])
def test_columns_of_ids_stay_out(store: Path, cells: tuple[str, str]) -> None:
    header = ",".join(["record_id", "lvh", *ID_COLUMNS])
    rows = "".join(f"a/r{n},{n}{f',{cell}' * len(ID_COLUMNS)}\n" for n, cell in enumerate(cells))
    assert join(store, f"{header}\n{rows}").columns == ("lvh",)
    join(store, f"{header}\n{rows}", columns=["birthdate"])
    assert column(store, "birthdate")[0] is not None


@pytest.mark.parametrize("name", ["PatientID", "patient_id_2", "mrn", "phone number", "SSN"])
def test_columns_called_like_ids_stay_out_though_they_hold_0_and_1(store: Path, name: str) -> None:
    assert join(store, f"record_id,lvh,{name}\na/r0,1,1\na/r1,0,0\n").columns == ("lvh",)


def test_yes_no_columns_are_taken_and_the_others_listed(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        "record_id,lvh,af,st,score,grade,ward,empty,mrn\n"
        "a/r0,1,yes,True,3,1,north,,1\na/r1,0,no,,4.5,2,south,,0\na/r2,1.0,,False,5,0,,,1\n"
    )
    with caplog.at_level("INFO"):
        assert join(store, text).columns == ("lvh", "af", "st")
    assert (
        "left out score (numbers), grade (numbers), ward (text), empty (every cell is empty), mrn "
        "(looks like an id); --columns lvh,af,st,score,grade,ward takes those of numbers and text"
    ) in caplog.text


def test_columns_of_the_recording_stay(store: Path) -> None:
    text = "record_id,start_timestep,flags,x\na/r0,5,9,1\n"
    assert join(store, text).columns == ("x",)
    assert column(store, "start_timestep") == [0] * NUM_RECORDS
    with pytest.raises(ConfigError, match="'flags' is a name of the store's own"):
        join(store, text, columns=["flags"])


def test_what_spreadsheets_and_pandas_write(store: Path) -> None:
    text = "\ufeff,record_id , ejection_fraction,x\n0,a/r0, 35.5 ,1\n1,a/r1,NA,99999999999999999\n"
    assert join(store, text).columns == ("ejection_fraction",)
    assert join(store, text, columns=["ejection_fraction", "x"]).num_matched == 2
    assert column(store, "ejection_fraction")[:2] == [35.5, None]


def test_one_bad_cell_is_an_error_and_not_a_column_less(store: Path) -> None:
    rows = "".join(f"b/r{number},{number % 2}\n" for number in range(100_000))
    before = snapshot(store)
    with pytest.raises(ConfigError) as refusal:
        join(store, f"record_id,lvh\na/r0,1\n{rows}a/r1,n.a.\n")
    message = str(refusal.value)
    assert "column 'lvh', row 100002 below the header: got 'n.a.', allowed a number" in message
    assert "or an empty cell; correct the cell" in message
    with pytest.raises(ConfigError, match="row 1 below the header: got 'x', allowed"):
        join(store, "record_id,lvh\na/r0,x\na/r1,1\n")
    long = "left ventricular hypertrophy by Sokolow and Lyon"
    with pytest.raises(ConfigError, match=f"got {long[:40]!r}, allowed"):
        join(store, f"record_id,lvh\na/r0,1\na/r1,{long}\n", columns=["lvh"])
    assert snapshot(store) == before


def test_text_columns_are_no_bad_cells(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        "record_id,snomed,ward,x\na/r0,426783006,1a,1\na/r1,426783006;164889003,2,0\n"
        "a/r2,426783006,3b,1\na/r3,164889003,4,0\n"
    )
    with caplog.at_level("INFO"):
        assert join(store, text).columns == ("x",)
    assert "left out snomed (text), ward (text)" in caplog.text
    assert join(store, text, columns=["snomed"]).columns == ("snomed",)
    assert column(store, "snomed")[:2] == ["426783006", "426783006;164889003"]


@pytest.mark.parametrize("word", ["", "NA", "n/a", "NULL", " nan ", "None", "Unknown", "-", "<NA>"])
def test_words_for_nothing_are_empty_cells(store: Path, word: str) -> None:
    rows = f"a/r0,1,true,north wing,35\na/r1,{word},{word},{word},{word}\n"
    text = f"record_id,score,lvh,ward,ejection_fraction\n{rows}"
    join(store, text, columns=["score", "lvh", "ward", "ejection_fraction"])
    for name in ("score", "lvh", "ward", "ejection_fraction"):
        assert column(store, name)[0] is not None
        assert column(store, name)[1] is None
    assert column(store, "score")[0] == 1
    assert column(store, "lvh")[0] is True


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_of_a_german_spreadsheet(store: Path, separator: str) -> None:
    lines = ["record_id,ejection_fraction,score,lvh", "a/r0,33|5,1.5,yes", "a/r1,60,2.25,no"]
    text = "\r\n".join(line.replace(",", separator).replace("|", ",") for line in lines)
    columns = ["ejection_fraction", "score", "lvh"]
    assert join(store, text, columns=columns).columns == tuple(columns)
    assert column(store, "ejection_fraction")[:2] == [33.5, 60]
    assert column(store, "score")[:2] == [1.5, 2.25]
    assert column(store, "lvh")[:2] == [True, False]


def test_a_column_has_one_decimal_sign(store: Path) -> None:
    with pytest.raises(ConfigError, match="row 2 below the header: got '1,234', allowed"):
        join(store, "record_id;x\na/r0;2.5\na/r1;1,234\n", columns=["x"])


def test_encodings_other_than_utf8_are_named(store: Path) -> None:
    csv = store.with_name("labels.csv")
    csv.write_bytes("record_id,ward,x\na/r0,K\u00f6ln,1\n".encode("latin-1"))
    assert label_store(store, csv).columns == ("x",)
    with pytest.raises(ConfigError, match=r"'ward' .* is not UTF-8 text; save the table as CSV"):
        label_store(store, csv, columns=["ward"])
    csv.write_bytes("record_id,x\na/r0,1\n".encode("utf-16"))
    with pytest.raises(ConfigError, match="got UTF-16, allowed UTF-8"):
        label_store(store, csv)


@pytest.mark.parametrize("name", ["K\u00f6ln", "J\u00e4ne Doe"])
def test_a_line_with_a_cell_too_many_is_named_by_its_number_alone(
    store: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    csv = store.with_name("labels.csv")
    for encoding in ("latin-1", "utf-8"):
        csv.write_bytes(f"record_id,x\na/r0,1\n{name},1,2\n".encode(encoding))
        with pytest.raises(ConfigError, match="line 3 has 3 cells, the header 2") as refusal:
            label_store(store, csv)
        assert name[-3:] not in str(refusal.value)
        assert refusal.value.__cause__ is None
    assert "Exception" not in capfd.readouterr().err
