"""Tables that call their columns and records otherwise than a store does."""

from pathlib import Path

import pytest

from ecgfast.errors import ConfigError
from ecgfast.labels.naming import Naming
from ecgfast.labels.table import read_labels

PTB_XL = (
    "ecg_id,patient_id,age,sex,site,scp_codes,strat_fold,filename_lr,filename_hr\n"
    "1,15709.0,56.0,1,0.0,{'NORM': 100.0},3,records100/00000/00001_lr,records500/00000/00001_hr\n"
    "2,13243.0,300.0,0,,{},2,records100/00000/00002_lr,records500/00000/00002_hr\n"
)


def table(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text)
    return folder / "labels.csv"


def test_the_table_of_ptb_xl(tmp_path: Path) -> None:
    naming = Naming(id_column="filename_hr", id_prefix="records500/")
    found = read_labels(table(tmp_path, PTB_XL), naming)
    assert found["record_id"].to_pylist() == ["00000/00001_hr", "00000/00002_hr"]
    assert found["patient_id"].to_pylist() == ["15709", "13243"]
    assert found["sex"].to_pylist() == ["female", "male"]
    assert found["age"].to_pylist() == [56, 300]
    assert found["site"].to_pylist() == ["0", None]


def test_sex_as_a_number_is_guessed_in_no_other_table(tmp_path: Path) -> None:
    path = table(tmp_path, "record_id,sex,strat_fold\nr,1,3\n")
    with pytest.raises(ConfigError, match="sex of row 1 below the header must be female, male"):
        read_labels(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_an_id_column_of_another_name_tells_the_separator(tmp_path: Path, separator: str) -> None:
    path = table(tmp_path, "file,lvh,text\nr.hea,1,a\n".replace(",", separator))
    found = read_labels(path, Naming(id_column="file"))
    assert found.to_pydict() == {"record_id": ["r"], "lvh": [1], "text": ["a"]}


def test_the_named_column_goes_before_record_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ecgfast")
    path = table(tmp_path, "record_id,patient_id,file,x\n77,p,r,1\n")
    found = read_labels(path, Naming(id_column="file"))
    assert found.to_pydict() == {"patient_id": ["p"], "record_id": ["r"], "x": [1]}
    assert "record_id is not used, --id-column names file" in caplog.text
    assert read_labels(path, Naming(id_column="record_id"))["record_id"].to_pylist() == ["77"]
    by_patient = read_labels(path, Naming(id_column="patient_id"))
    assert by_patient.column_names == ["patient_id", "file", "x"]


def test_renamed_columns(tmp_path: Path) -> None:
    path = table(tmp_path, "MRN;LVEF;echo day\n7,0;35-40;2020-05-31\n")
    renamed = {"MRN": "patient_id", "LVEF": "ejection_fraction", "echo day": "label_date"}
    found = read_labels(path, Naming(renamed=renamed))
    assert found["patient_id"].to_pylist() == ["7,0"]
    assert found["ejection_fraction"].to_pylist() == [37.5]
    assert found["label_date"].to_pylist() == ["2020-05-31"]


def test_a_prefix_is_text_and_only_a_prefix(tmp_path: Path) -> None:
    path = table(tmp_path, "record_id,x\na.b/r,1\naxb/r,2\nc/a.b/r,3\n,4\n")
    found = read_labels(path, Naming(id_prefix="a.b/"))
    assert found["record_id"].to_pylist() == ["r", "axb/r", "c/a.b/r", None]


@pytest.mark.parametrize(
    ("naming", "message"),
    [
        (Naming(id_column="file"), r"--id-column: 'file' is not in .*; it has record_id, x, y"),
        (Naming(renamed={"LVEF": "ejection_fraction"}), "--rename: 'LVEF' is not in"),
        (Naming(renamed={"x": "y"}), "column 'y' occurs twice"),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, naming: Naming, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_labels(table(tmp_path, "record_id,x,y\nr,1,2\n"), naming)


def test_the_published_table_of_ptb_xl(shared_data: Path) -> None:
    """Against the hand-made table of the same recordings, which spells ids as a store does."""
    folder = shared_data / "ptbxl500"
    naming = Naming(id_column="filename_hr", id_prefix="records500/")
    found = read_labels(folder / "ptbxl_database.csv", naming)
    expected = read_labels(folder / "labels.csv")
    assert found.num_rows == 500
    for name in ("record_id", "age", "sex"):
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    patients = [f"P{name}" for name in found["patient_id"].to_pylist()]
    assert patients == expected["patient_id"].to_pylist()
    assert len(set(patients)) == 466
