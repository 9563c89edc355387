"""A new file format is one module in `FORMATS`: it is found, sorted out and read."""

from pathlib import Path

import numpy as np
import pytest

import ecgfast.ingest
from ecgfast.errors import FormatError
from ecgfast.ingest import FORMATS, InputFile, read_record
from ecgfast.ingest.inventory import discover, take_inventory
from ecgfast.records import NUM_LEADS, EcgRecord


class Toy:
    """A format that shares its suffix with another one, and with files of other kinds."""

    SUFFIXES = (".xml",)

    def __init__(self, start: bytes, rows: int | None) -> None:
        self._start, self._rows = start, rows

    def recognises(self, path: Path) -> bool:
        return path.read_bytes().startswith(self._start)

    def num_rows(self, path: Path) -> int | None:
        return self._rows

    def read(self, path: Path, record_id: str, row: int | None) -> EcgRecord:
        return EcgRecord(
            record_id=record_id,
            signal=np.full((NUM_LEADS, 10), -1 if row is None else row, np.int16),
            scale_uv=np.ones(NUM_LEADS, np.float32),
            offset_adc=np.zeros(NUM_LEADS, np.float32),
            sampling_rate_hz=500.0,
        )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toys = Toy(b"<batch>", 2), Toy(b"<single>", None)
    monkeypatch.setattr(ecgfast.ingest, "FORMATS", (*FORMATS, *toys))
    (tmp_path / "a.xml").write_bytes(b"<batch>")
    (tmp_path / "b.XML").write_bytes(b"<invoice>")
    (tmp_path / "c.hea").write_bytes(b"")
    (tmp_path / "d.xml").write_bytes(b"<single>")
    return tmp_path


def test_a_format_in_the_list_is_found_by_content_and_read(folder: Path) -> None:
    inventory = take_inventory([folder])
    assert [item.record_id for item in inventory.inputs] == ["a/0", "a/1", "c", "d"]
    assert inventory.num_record_files == 3
    assert inventory.passed_over == {"XML": 1}
    assert inventory.examples == {"XML": [f"{folder}/b.XML"]}
    for index, value in ((0, 0), (1, 1), (3, -1)):
        np.testing.assert_array_equal(read_record(inventory.inputs[index]).signal, value)


def test_a_file_of_no_format_is_refused(folder: Path) -> None:
    with pytest.raises(FormatError, match=r"holds no ECG file that is read .*, \.npz, \.xml;"):
        discover([folder / "b.XML"])
    item = InputFile(record_id="b", path=folder / "b.XML", source=folder)
    with pytest.raises(FormatError, match=r"b\.XML: is of no format that is read"):
        read_record(item)
