"""A folder of vendor files through convert: what enters the store, and what stays out of it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import xml_files
from recordings import convert_quietly, ecg_like, snapshot
from xml_files import NAME, PATIENT

from ecgfast import open_store
from ecgfast.labels.commands import label_store
from ecgfast.records import LEADS
from ecgfast.store.verify import verify_store

WRITERS = {
    "muse": xml_files.muse,
    "aecg": xml_files.aecg,
    "philips": xml_files.philips,
    "cardiosoft": xml_files.cardiosoft,
    "eli": xml_files.eli,
    "schiller": xml_files.schiller,
}
SIGNALS = ecg_like(len(WRITERS), seed=8, largest=500)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One file of each format without a telling suffix, and four that hold no ECG."""
    folder = tmp_path / "in"
    folder.mkdir()
    for signal, (name, write) in zip(SIGNALS, WRITERS.items(), strict=True):
        (folder / f"{name}.txt").write_bytes(write(dict(zip(LEADS, signal, strict=True))))
    bomb = f'<!DOCTYPE x [<!ENTITY a "{NAME}">]><RestingECG>&a;</RestingECG>'
    (folder / "bomb.xml").write_text(bomb)
    (folder / "cut.xml").write_bytes((folder / "muse.txt").read_bytes()[:9000])
    (folder / f"invoice.{NAME}").write_text(f"<invoice>{NAME}</invoice>")
    (folder / "report.xml").write_bytes(b"%PDF-1.7")
    return folder


def test_samples_and_settings_of_devices_enter_the_store(source: Path, tmp_path: Path) -> None:
    summary = convert_quietly([source], tmp_path / "store")
    assert (summary.num_inputs, summary.num_converted, summary.num_quarantined) == (8, 6, 2)
    assert summary.passed_over == {"other files": 1, "PDFs (no resting ECG)": 1}
    store = open_store(tmp_path / "store")
    rows = {row["format"]: (n, row) for n, row in enumerate(store.records.to_pylist())}
    for signal, name in zip(SIGNALS, WRITERS, strict=True):
        number, row = rows[f"{name}-xml"]
        np.testing.assert_array_equal(store.read([number])[0], signal)
        assert (row["age"], row["sex"]) == (60 if name == "aecg" else 61, "female")
    muse = rows["muse-xml"][1]
    assert (muse["device"], muse["site"]) == ("mac-5500", None)
    assert (muse["high_pass_hz"], muse["low_pass_hz"], muse["notch_hz"]) == (0.05, 150, 0)
    assert rows["schiller-xml"][1]["low_pass_hz"] is None
    assert len({row["patient_id"] for _, row in rows.values()}) == 1  # one id in all of them
    assert verify_store(tmp_path / "store") == []


def test_names_enter_neither_the_store_nor_the_log(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        convert_quietly([source], tmp_path / "store")
    content = b"".join(snapshot(tmp_path / "store").values())
    for word in (NAME, PATIENT):
        assert word.encode() not in content
        assert word not in caplog.text
    with (tmp_path / "store.sources.csv").open() as file:
        details = {
            line["source"].rpartition("/")[2]: line["detail"] for line in csv.DictReader(file)
        }
    assert NAME not in "".join(details.values())
    assert details["bomb.xml"].startswith("bomb.xml: the XML has declarations of its own")
    assert "is no well-formed XML" in details["cut.xml"]
    assert (tmp_path / "store/quarantine.csv").read_text().count("the file is damaged") == 2


def test_labels_name_files_with_and_without_suffix(source: Path, tmp_path: Path) -> None:
    """Of two files of one stem both keep their suffix, which a label must then have."""
    (source / "eli.dcm").write_bytes((source / "schiller.txt").read_bytes())
    convert_quietly([source], tmp_path / "store")
    table = tmp_path / "labels.csv"
    lines = ["record_id,lvh", "muse,1", "aecg.txt,1", "philips.XML,1", "eli.txt,1", "eli,0"]
    table.write_text("\n".join(lines) + "\n")
    summary = label_store(tmp_path / "store", table)
    assert (summary.num_matched, summary.num_unused_lines) == (4, 1)
    rows = open_store(tmp_path / "store").records.to_pylist()
    labelled = {row["format"] for row in rows if row["lvh"]}
    assert labelled == {"muse-xml", "aecg-xml", "philips-xml", "eli-xml"}
