"""A new file format is one module in `FORMATS`: it is found, sorted out and read."""

import errno
from pathlib import Path

import numpy as np
import pytest

import ecgfast.ingest
from ecgfast.errors import FormatError
from ecgfast.ingest import FORMATS, InputFile, read_record
from ecgfast.ingest.format import Format, Head
from ecgfast.ingest.inventory import discover, take_inventory
from ecgfast.records import NUM_LEADS, EcgRecord


def toy(root: str, rows: int | None) -> Format:
    """A format that shares its suffix with another one, and with files of other kinds."""

    def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
        return EcgRecord(
            record_id=record_id,
            signal=np.full((NUM_LEADS, 10), -1 if row is None else row, np.int16),
            scale_uv=np.ones(NUM_LEADS, np.float32),
            offset_adc=np.zeros(NUM_LEADS, np.float32),
            sampling_rate_hz=500.0,
        )

    return Format(
        name="Toy",
        tried=False,
        keeps="nothing",
        recognises=lambda head: head.xml_root == root,
        read=read,
        num_rows=lambda path: rows,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toys = toy("batch", 2), toy("single", None)
    monkeypatch.setattr(ecgfast.ingest, "FORMATS", (*FORMATS, *toys))
    (tmp_path / "a.xml").write_bytes(b"<batch>")
    (tmp_path / "b.XML").write_bytes(b"<invoice>")
    (tmp_path / "c.hea").write_bytes(b"")
    (tmp_path / "d.txt").write_bytes(b"<single>")
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
    with pytest.raises(
        FormatError, match=r"holds no ECG file that is read .*found 1 \.xml.*--list-formats"
    ):
        discover([folder / "b.XML"])
    item = InputFile(record_id="b", path=folder / "b.XML", source=folder)
    with pytest.raises(FormatError, match=r"b\.XML: is of no format that is read"):
        read_record(item)


def test_vendor_files_of_one_stem_keep_their_suffixes(folder: Path) -> None:
    """As exports hold one ECG in several formats; other records keep their ids."""
    for name in ("a.dcm", "c.xml", "1.2.840.5", "1.2.840.6"):
        (folder / name).write_bytes(b"<single>")
    ids = [item.record_id for item in discover([folder])]
    assert ids == ["1.2.840.5", "1.2.840.6", "a", "a/0", "a/1", "c", "c.xml", "d"]
    (folder / "a.XML").write_bytes(b"<single>")
    assert "a.dcm" in [item.record_id for item in discover([folder])]


def test_a_file_that_cannot_be_opened_is_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Head:
        raise PermissionError(errno.EACCES, "refused", str(path))

    monkeypatch.setattr("ecgfast.ingest.kinds.read_head", refuse)
    passed_over = take_inventory([folder]).passed_over
    assert passed_over == {"files that cannot be opened": 3}


def test_an_error_of_the_share_ends_the_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> Head:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr("ecgfast.ingest.kinds.read_head", fail)
    with pytest.raises(OSError, match="lost"):
        take_inventory([folder])
    for number in range(50):  # several are opened at a time
        (folder / f"{number}.txt").write_bytes(b"<single>")
    with pytest.raises(OSError, match="lost"):
        take_inventory([folder])


def test_many_files_are_recognised_as_few_are(folder: Path) -> None:
    for number in range(60):
        root = ("single", "batch", "invoice")[number % 3]
        (folder / f"{number:02}.xml").write_text(f"<{root}>")
    inventory = take_inventory([folder])
    ids = {item.record_id for item in inventory.inputs} - {"a/0", "a/1", "c", "d"}
    singles = {f"{number:02}" for number in range(0, 60, 3)}
    assert ids == singles | {f"{number:02}/{row}" for number in range(1, 60, 3) for row in (0, 1)}
    assert inventory.passed_over == {"XML": 21}
