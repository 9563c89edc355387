"""Who is the same patient: two hospitals that both number from 1, files without ids, duplicates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from recordings import KEY, convert_quietly, ecg_like, snapshot, write_wfdb

import ecgfast
from ecgfast.errors import ConfigError
from ecgfast.labels.commands import label_store
from ecgfast.records import known_id
from ecgfast.store.patients import Pseudonyms, patient_groups
from ecgfast.store.verify import verify_store

NUM_PATIENTS = 20


def hospitals(folder: Path, sites: Sequence[str] = ("1", "2")) -> Path:
    """Two hospitals that both number their patients from 1; nobody was at both."""
    for number, site in enumerate(sites):
        for patient, signal in enumerate(ecg_like(NUM_PATIENTS, seed=number), 1):
            comments = [f"patient: {patient}", f"site: {site}"]
            write_wfdb(folder / f"hospital{site}/r{patient}", signal, comments=comments)
    return folder


def columns(store: Path, *names: str) -> list[list[object]]:
    records = ecgfast.open_store(store).records
    return [records[name].to_pylist() for name in names]


@pytest.mark.parametrize(("ids", "people"), [("site", 2 * NUM_PATIENTS), ("global", NUM_PATIENTS)])
def test_a_number_is_a_person_of_one_hospital(tmp_path: Path, ids: str, people: int) -> None:
    convert_quietly([hospitals(tmp_path / "in")], tmp_path / "store", patient_ids=ids)
    (patients,) = columns(tmp_path / "store", "patient_id")
    assert len(set(patients)) == people
    assert ecgfast.open_store(tmp_path / "store").manifest["patients"]["ids"] == ids


def test_labels_of_one_hospital_stay_there(tmp_path: Path) -> None:
    convert_quietly([hospitals(tmp_path / "in")], tmp_path / "store")
    echo = tmp_path / "echo.csv"
    rows = "".join(f"{patient},1,30\n" for patient in range(1, NUM_PATIENTS + 1))
    echo.write_text(f"patient_id,site,ejection_fraction\n{rows}")
    label_store(tmp_path / "store", echo)
    site, fraction = columns(tmp_path / "store", "site", "ejection_fraction")
    assert [value for where, value in zip(site, fraction, strict=True) if where == "2"] == (
        [None] * NUM_PATIENTS
    )
    assert fraction.count(30.0) == NUM_PATIENTS


def test_a_table_that_does_not_say_whose_numbers_it_has_is_refused(tmp_path: Path) -> None:
    convert_quietly([hospitals(tmp_path / "in")], tmp_path / "store")
    echo = tmp_path / "echo.csv"
    echo.write_text("patient_id,ejection_fraction\n3,30\n")
    before = snapshot(tmp_path / "store")
    with pytest.raises(ConfigError, match="got no column site, needed as the store has 2 sites"):
        label_store(tmp_path / "store", echo)
    assert snapshot(tmp_path / "store") == before
    convert_quietly([tmp_path / "in"], tmp_path / "everybody", patient_ids="global")
    label_store(tmp_path / "everybody", echo)
    assert columns(tmp_path / "everybody", "ejection_fraction")[0].count(30.0) == 2


def test_sites_that_a_table_gives_tell_patients_apart(tmp_path: Path) -> None:
    """The recordings name no site: until the table does, equal numbers are one person."""
    for number in (1, 2):
        signal = ecg_like(1, seed=number)[0]
        write_wfdb(tmp_path / f"in/h{number}/r", signal, comments=["patient: 7"])
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    (patients,) = columns(tmp_path / "store", "patient_id")
    ours = Pseudonyms(bytes.fromhex(KEY))
    assert patients == [ours.of("patient", "7")] * 2
    labels = tmp_path / "labels.csv"
    labels.write_text("record_id,site,x\nh1/r,1,5\nh2/r,2,6\n")
    for _ in range(2):  # the second time, the sites are known already
        label_store(tmp_path / "store", labels)
        (patients,) = columns(tmp_path / "store", "patient_id")
        assert patients == [ours.of("patient", "1/7"), ours.of("patient", "2/7")]
    labels.write_text("record_id,site,x\nh1/r,3,5\n")
    label_store(tmp_path / "store", labels)
    assert columns(tmp_path / "store", "patient_id")[0][0] == ours.of("patient", "3/7")


def test_a_patient_moves_from_a_site_with_a_slash(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/r", ecg_like(1, seed=1)[0], comments=["patient: 7", "site: a/b"])
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    ours = Pseudonyms(bytes.fromhex(KEY))
    labels = tmp_path / "labels.csv"
    labels.write_text("patient_id,site,x\n7,a/b,1\n")
    label_store(tmp_path / "store", labels)
    assert columns(tmp_path / "store", "patient_id", "x") == [[ours.of("patient", "a%2Fb/7")], [1]]
    labels.write_text("record_id,site\nr,c\n")
    label_store(tmp_path / "store", labels, columns=[])
    assert columns(tmp_path / "store", "patient_id", "site") == [
        [ours.of("patient", "c/7")],
        ["c"],
    ]


@pytest.mark.parametrize("where", ["1", "north/50 %"])
def test_a_number_at_a_site_and_without_one_is_said(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of patients 1 to 4, some recordings name the hospital and some do not."""
    for number, signal in enumerate(ecg_like(8, seed=0)):
        site = [f"site: {where}"] if number < 4 else []
        comments = [f"patient: {1 + number % 4 if number != 7 else 9}", *site]
        write_wfdb(tmp_path / f"in/r{number}", signal, comments=comments)
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    warning = "3 patient ids occur both at a site and on records without one"
    assert warning in caplog.text
    caplog.clear()
    convert_quietly([tmp_path / "in"], tmp_path / "everybody", patient_ids="global")
    assert "records without one" not in caplog.text
    labels = tmp_path / "labels.csv"
    rows = "".join(f"r{number},{where}\n" for number in range(4, 8))
    labels.write_text(f"record_id,site\n{rows}")
    label_store(tmp_path / "store", labels)
    assert "records without one" not in caplog.text
    (patients,) = columns(tmp_path / "store", "patient_id")
    assert len(set(patients)) == 5


def test_moving_patients_needs_their_readable_ids(tmp_path: Path) -> None:
    convert_quietly([hospitals(tmp_path / "in")], tmp_path / "store")
    (tmp_path / "store.sources.csv").unlink()
    labels = tmp_path / "labels.csv"
    labels.write_text("record_id,site\nhospital1/r1,9\n")
    with pytest.raises(ConfigError, match="no readable id is known of them; give patient_id too"):
        label_store(tmp_path / "store", labels, columns=[])


def test_two_sites_for_one_number_without_a_site_is_refused(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/r", ecg_like(1, seed=0)[0], comments=["patient: 7"])
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    labels = tmp_path / "labels.csv"
    labels.write_text("patient_id,site,x\n7,1,1\n7,2,0\n")
    with pytest.raises(ConfigError, match="one patient_id at 2 sites, and recordings of it name"):
        label_store(tmp_path / "store", labels)
    labels.write_text("patient_id,site,x\n7,1,1\n")
    label_store(tmp_path / "store", labels)
    assert columns(tmp_path / "store", "x", "site") == [[1.0], ["1"]]


def test_without_patients_nothing_is_split_until_the_user_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, signal in enumerate(ecg_like(20, seed=0)):
        comments = [] if number < 15 else [f"patient: {number}"]
        write_wfdb(tmp_path / f"in/r{number}", signal, comments=comments)
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    loud = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(loud) == 1
    assert loud[0].message.startswith("15 of 20 records name no patient, so nobody knows")
    assert "15 of them in no split" in loud[0].message
    assert "--assume-one-ecg-per-patient" in loud[0].message
    (split,) = columns(tmp_path / "store", "split")
    assert split.count(None) == 15
    caplog.clear()
    convert_quietly([tmp_path / "in"], tmp_path / "each", one_ecg_per_patient=True)
    assert "15 of 20 records name no patient and count as one patient each" in caplog.text
    assert None not in columns(tmp_path / "each", "split")[0]
    labels = tmp_path / "labels.csv"
    labels.write_text("record_id,patient_id\nr0,4711\n")
    caplog.clear()
    label_store(tmp_path / "store", labels)
    assert "14 of 20 records name no patient" in caplog.text
    assert columns(tmp_path / "store", "split")[0].count(None) == 14


@pytest.mark.parametrize("value", ["nan", "NaN", "", "  ", "unknown", "None", "null", "-", "N/A"])
def test_words_that_name_nobody(value: str) -> None:
    assert known_id(value) is None


@pytest.mark.parametrize("value", [7, 7.0, " 7", "7.0", "7 "])
def test_one_number_however_it_is_written(value: object) -> None:
    assert known_id(value) == "7"


@pytest.mark.parametrize("value", ["007", "P7", "7.5", "1-7"])
def test_other_ids_stay(value: str) -> None:
    assert known_id(value) == value


def test_one_name_however_its_accents_are_written() -> None:
    assert known_id("Mu\u0308ller") == known_id("M\u00fcller") == "M\u00fcller"


def test_ids_of_sidecars_and_tables_are_read_alike(tmp_path: Path) -> None:
    values = ['"nan"', '""', '"unknown"', "7", "7.0", '" 7"', "null"]
    (tmp_path / "in").mkdir()
    for number, value in enumerate(values):
        np.save(tmp_path / f"in/r{number}.npy", ecg_like(1, seed=number)[0])
        (tmp_path / f"in/r{number}.json").write_text(
            f'{{"sampling_rate_hz": 500, "scale_uv": 4.88, "patient_id": {value}, "site": 1.0}}'
        )
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    patients, flags, site = columns(tmp_path / "store", "patient_id", "flags", "site")
    assert ["no_patient_id" in str(text) for text in flags] == [True] * 3 + [False] * 3 + [True]
    assert set(patients[3:6]) == {Pseudonyms(bytes.fromhex(KEY)).of("patient", "1/7")}
    assert set(site) == {"1"}
    labels = tmp_path / "labels.csv"
    labels.write_text("record_id,patient_id,x\nr0,7.0,1\nr1,nan,2\n")
    label_store(tmp_path / "store", labels)
    (patients,) = columns(tmp_path / "store", "patient_id")
    assert patients[0] == patients[3] != patients[1]


def test_a_duplicate_makes_two_ids_one_patient() -> None:
    table = pa.table(
        {
            "record_id": ["a", "b", "c", "d", "e"],
            "patient_id": ["p", "q", "q", "r", "s"],
            "duplicate_of": [None, "a", None, "c", None],
        }
    )
    groups = patient_groups(table)
    assert len(set(groups[:4].tolist())) == 1  # a = b by content, b and c by id, c = d by content
    assert groups[4] != groups[0]


@pytest.mark.parametrize("keep", [False, True])
def test_two_machines_draw_one_split(tmp_path: Path, keep: bool) -> None:
    """Other folders, keys and kept ids: the same patients in the same splits and folds."""
    labels = tmp_path / "labels.csv"
    rows = "".join(
        f"hospital{site}/r{n},{30 if n % 4 == 0 else 60}\n" for site in (1, 2) for n in range(1, 21)
    )
    labels.write_text(f"record_id,ejection_fraction\n{rows}")
    here, there = tmp_path / "here/store", tmp_path / "there/store"
    there.parent.mkdir()
    there.with_name("store.key").write_text("77" * 32)
    convert_quietly([hospitals(tmp_path / "in")], here)
    label_store(here, labels)
    convert_quietly(
        [hospitals(tmp_path / "copy")], there, keep_identifiers=keep, workers=1, labels=labels
    )
    assert columns(here, "split", "fold") == columns(there, "split", "fold")
    assert columns(here, "patient_id") != columns(there, "patient_id")
    assert verify_store(there) == []
