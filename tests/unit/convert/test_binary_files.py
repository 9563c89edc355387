"""A folder of binary vendor files and arrays through convert: what enters the store."""

import json
import struct
from pathlib import Path

import mfer_files
import numpy as np
import pytest
import scp_files
from recordings import convert_quietly, ecg_like, snapshot
from scipy.io import savemat

from ecgfast import open_store
from ecgfast.records import LEADS
from ecgfast.store.verify import verify_store

pytest.importorskip("pydicom", reason="pydicom is not installed")
h5py = pytest.importorskip("h5py", reason="h5py is not installed")
import dicom_files  # noqa: E402 - below what it needs

NAME, PATIENT = "Ysabella", "PAT-4711-X"
FORMATS = ("dicom", "scp-ecg", "mfer", "hdf5", "hdf5", "matlab", "text")
SIGNALS = ecg_like(len(FORMATS), seed=9, largest=500)
SIDECAR = json.dumps({"sampling_rate_hz": 500, "scale_uv": 5, "note": NAME, "patient_id": PATIENT})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One file of each format, those with a signature without a suffix, and a damaged one."""
    folder = tmp_path / "in"
    folder.mkdir()
    private = {"PatientName": NAME, "PatientComments": NAME, "InstitutionName": NAME}
    known = {"PatientID": PATIENT, "PatientSex": "F", "PatientAge": "061Y"}
    elements = {**private, **known, "ManufacturerModelName": "MAC 5500"}
    dicom_files.write(folder / "IM0001", dicom_files.group(SIGNALS[0]), **elements)
    tags = {0: NAME.encode(), 2: PATIENT.encode(), 4: struct.pack("<HB", 61, 1), 8: b"\2"}
    tags |= {14: bytes(8) + b"ELI250" + bytes(30) + NAME.encode(), 30: NAME.encode()}
    (folder / "scp").write_bytes(scp_files.ecg_file(SIGNALS[1].astype(np.int64), patient=tags))
    texts = [(0x03, b"UTF-16LE")] + [(tag, NAME.encode("utf-16-le")) for tag in (0x81, 0x16)]
    texts += [(0x82, PATIENT.encode("utf-16-le")), (0x84, b"\2"), (0x83, bytes([61]))]
    before = b"".join(mfer_files.definition(tag, text) for tag, text in texts)
    (folder / "mfer").write_bytes(mfer_files.ecg_file(SIGNALS[2], before=before, block=500))
    with h5py.File(folder / "many.h5", "w") as file:
        file["tracings"], file["name"] = SIGNALS[3:5], NAME
    savemat(folder / "one.mat", {"val": SIGNALS[5], "name": NAME})
    rows = [",".join(map(str, row)) for row in SIGNALS[6].T]
    (folder / "columns.csv").write_text("\n".join([",".join(LEADS), *rows]))
    (folder / "signals.json").write_text(SIDECAR)
    (folder / "cut").write_bytes((folder / "IM0001").read_bytes()[:9000])
    (folder / f"{NAME}.csv").write_text(f"name\n{NAME}\n")
    return folder


def test_samples_enter_the_store_and_names_do_not(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "store"
    with caplog.at_level("DEBUG"):
        summary = convert_quietly([source], out)
    assert (summary.num_inputs, summary.num_converted, summary.num_quarantined) == (8, 7, 1)
    assert summary.passed_over == {"tables and texts": 1}
    store = open_store(out)
    rows = store.records.to_pylist()
    assert sorted(row["format"] for row in rows) == sorted(FORMATS)
    stored = store.read(list(range(7)))
    for signal, name in zip(SIGNALS, FORMATS, strict=True):
        found = [n for n in range(7) if np.array_equal(stored[n], signal)]
        assert [rows[n]["format"] for n in found] == [name]
    assert len({row["patient_id"] for row in rows}) == 1  # one id in all formats: one patient
    for row in rows:
        if row["format"] in ("dicom", "scp-ecg", "mfer"):
            assert (row["age"], row["sex"]) == (61, "female")
    assert {row["device"] for row in rows} == {"mac-5500", "eli-250", None}
    assert verify_store(out) == []

    content = b"".join(snapshot(out).values())
    details = (tmp_path / "store.sources.csv").read_text()
    for word in (NAME, PATIENT):
        encodings = (word.encode(coding) for coding in ("utf-8", "utf-16-le"))
        assert not [each for each in encodings if each in content]
        assert word not in caplog.text
    assert NAME not in details  # it has the patients, for the hospital
    assert "a signal file is cut short" in (out / "quarantine.csv").read_text()
