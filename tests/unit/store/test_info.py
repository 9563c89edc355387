"""Counts of files in words: one of a kind is in the singular."""

import pytest

from ecgfast.store.info import kinds_in_words


@pytest.mark.parametrize(
    ("kind", "one"),
    [
        ("tables and texts", "1 table or text"),
        ("pipes, sockets and devices", "1 pipe, socket or device"),
        ("PDFs (no resting ECG)", "1 PDF (no resting ECG)"),
        ("links to folders", "1 link to folders"),
        ("folders named as records", "1 folder named as records"),
        ("files that cannot be opened", "1 file that cannot be opened"),
        ("DICOM", "1 DICOM (of no format that is read)"),
        ("other signal formats", "1 other signal format (of no format that is read)"),
    ],
)
def test_one_file_of_a_kind_is_one(kind: str, one: str) -> None:
    assert kinds_in_words({kind: 1}) == one


def test_several_stand_in_the_order_of_their_numbers() -> None:
    counts = {"archives": 1, "XML": 2000, "hidden files": 3}
    assert (
        kinds_in_words(counts) == "2,000 XML (of no format that is read); 3 hidden files, 1 archive"
    )
