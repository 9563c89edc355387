"""Fields of recordings that enter a store: by default none that can name a patient."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from recordings import convert_quietly, ecg_like, snapshot, write_wfdb

import ecgfast
from ecgfast.convert import run
from ecgfast.convert.work import FREE_TEXT, OTHERS, stored_labels
from ecgfast.errors import ResumeError

SIDECAR = {
    "sampling_rate_hz": 500,
    "scale_uv": 5.0,
    "patient_name": "JANE DOE",
    "mrn": 4711,
    "birth_date": "1951-04-29",
    "JANE DOE": True,
    "device": {"serial": "SN1951"},
    "ejection_fraction": 35,
    "qrs_ms": 91,
    "age": 45.372,
}


def records(store: Path) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = ecgfast.open_store(store).records.to_pydict()
    return columns


@pytest.fixture
def source(tmp_path: Path) -> Path:
    signals = ecg_like(4, seed=0)
    text = ["<diagnoses>:", "Sinus rhythm", "Patient name: JANE DOE born 1951-04-29"]
    write_wfdb(tmp_path / "in/a", signals[0], comments=text)
    write_wfdb(tmp_path / "in/b", signals[1], comments=["Dx: 426783006,164865005", "Age: 103"])
    np.save(tmp_path / "in/c.npy", signals[2])
    (tmp_path / "in/c.json").write_text(json.dumps(SIDECAR))
    np.savez(tmp_path / "in/d.npz", signal=signals[3], **{**SIDECAR, "device": "SN1951"})
    return tmp_path / "in"


def test_unnamed_fields_stay_out_and_are_counted(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        convert_quietly([source], tmp_path / "store")
    found = records(tmp_path / "store")
    assert found["diagnosis"] == [None, "426783006,164865005", None, None]
    assert found["ejection_fraction"] == [None, None, 35, 35]
    assert found["age"] == [None, 90, 45, 45]
    assert not {"mrn", "patient_name", "JANE DOE", "device", "qrs_ms"} & set(found)
    for name, content in snapshot(tmp_path / "store").items():
        for mark in (b"JANE", b"DOE", b"1951", b"4711", b"qrs_ms"):
            assert name.startswith("signals.zarr") or mark not in content
    manifest = ecgfast.open_store(tmp_path / "store").manifest
    assert manifest["left_out"] == {FREE_TEXT: 1, OTHERS: 2}
    assert manifest["retained"] == {
        "identifiers": False,
        "ages_over_89": False,
        "dates": False,
        "sites": False,
        "columns": ["diagnosis"],
    }
    assert (
        "diagnoses in free text of 1 records, other fields of 2 records; --columns" in caplog.text
    )
    assert "JANE" not in caplog.text


def test_named_fields_are_taken_as_they_are(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["diagnosis", "qrs_ms", "grade"]
    convert_quietly([source], tmp_path / "store", columns=names, keep_ages_over_89=True)
    found = records(tmp_path / "store")
    assert found["diagnosis"][0] == "Sinus rhythm Patient name: JANE DOE born 1951-04-29"
    assert found["qrs_ms"] == [None, None, 91, 91]
    assert found["age"] == [None, 103, 45, 45]
    assert "mrn" not in found
    assert "no recording has a field 'grade'" in caplog.text
    manifest = ecgfast.open_store(tmp_path / "store").manifest
    assert manifest["retained"]["columns"] == ["diagnosis", "qrs_ms"]
    assert manifest["retained"]["ages_over_89"] is True


def test_another_choice_is_another_store(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "run_units", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_quietly([source], tmp_path / "store")
    with pytest.raises(ResumeError, match=r"begun with columns = \[\], got \['qrs_ms'\]"):
        convert_quietly([source], tmp_path / "store", columns=["qrs_ms"])


def test_a_store_is_transcoded_without_choices(source: Path, tmp_path: Path) -> None:
    convert_quietly([source], tmp_path / "store", columns=["qrs_ms"])
    for options in (
        {"columns": ["x"]},
        {"keep_identifiers": True},
        {"keep_ages_over_89": True},
        {"key_file": tmp_path / "k"},
    ):
        with pytest.raises(ecgfast.errors.ConfigError, match="is transcoded alone and as it is"):
            convert_quietly([tmp_path / "store"], tmp_path / "again", **options)
    convert_quietly([tmp_path / "store"], tmp_path / "again", codec="none")
    manifest = ecgfast.open_store(tmp_path / "again").manifest
    assert manifest["retained"]["columns"] == ["diagnosis", "qrs_ms"]


def test_names_of_the_store_are_no_fields() -> None:
    assert stored_labels({"flags": "JANE DOE", "diagnosis": 4711.0}, {"flags"}) == ({}, [OTHERS])


@pytest.mark.parametrize("value", [19510429.0, -1.0, "JANE DOE", True])
def test_an_ejection_fraction_is_a_percentage(value: str | float) -> None:
    assert stored_labels({"ejection_fraction": value}, ()) == ({}, [OTHERS])
    assert stored_labels({"ejection_fraction": 35.0}, ()) == ({"ejection_fraction": 35.0}, [])


@pytest.mark.parametrize("site", ["a\nb", "a\x1b[2Jb", "x" * 101])
def test_a_site_is_one_line(tmp_path: Path, site: str) -> None:
    np.save(tmp_path / "r.npy", ecg_like(1, seed=0)[0])
    (tmp_path / "r.json").write_text(json.dumps({**SIDECAR, "site": site}))
    convert_quietly([tmp_path / "r.npy"], tmp_path / "store")
    found = records(tmp_path / "store")
    assert found["site"] == [None]
    assert "site_implausible" in str(found["flags"][0])
    lines = list(csv.DictReader((tmp_path / "store.sources.csv").read_text().splitlines()))
    assert [line["record_id"] for line in lines] == found["record_id"]
