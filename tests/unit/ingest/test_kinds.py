"""What files are that nothing reads, companions of records, and suffixes in words."""

from collections import Counter
from pathlib import Path

import pytest

from ecgfast.ingest import FORMATS
from ecgfast.ingest.kinds import kind_of, known_suffix, suffix_of, suffixes_in_words


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.HEA", "hea"), ("a.b.dat", "dat"), (".hea", ""), ("a.", ""), ("a", ""), ("x.y", "y")],
)
def test_suffixes(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


def test_the_five_most_frequent_suffixes_are_named() -> None:
    five = Counter({"xml": 8, "": 1234, "dcm": 3, "b": 1, "a": 1})
    words = "1,234 without suffix, 8 .xml, 3 .dcm, 1 .a, 1 .b"
    assert suffixes_in_words(five) == words
    assert suffixes_in_words(five + Counter(c=1)) == f"{words} and 1 other suffixes"
    assert suffixes_in_words(five + Counter(c=1, d=1)) == f"{words} and 2 other suffixes"
    assert suffixes_in_words(Counter()) == ""


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.xml", b"%PDF-1.7", "PDFs (no resting ECG)"),
        ("a", b"\x89PNG\r\n\x1a\n", "images (no resting ECG)"),
        ("a.ecg", b"ISHNE1.0", "Holter recordings (no resting ECG)"),
        ("a.dat", b"\0" * 128 + b"DICM", "DICOM"),
        ("a.dat", b"", "signal files without a header"),
        ("a.ECG", b"", "other signal formats"),
        ("a.qrs", b"", "annotations without a header"),
        ("DICOMDIR", b"", "DICOM"),
        ("Jane.Doe", b"", "other files"),
    ],
)
def test_content_decides_before_the_name(name: str, content: bytes, kind: str) -> None:
    assert kind_of(name, content) == kind


def test_only_common_suffixes_are_repeated() -> None:
    names = ("a.hea", "a.NPZ", "a.xml", "a.Doe", "a")
    assert [known_suffix(name) for name in names] == ["hea", "npz", "xml", "", ""]


def belonging(folder: Path, *names: str) -> dict[str, list[str]]:
    """Companions of all formats' records among files, by kind."""
    by_suffix: dict[str, list[str]] = {}
    for name in names:
        by_suffix.setdefault(suffix_of(name), []).append(name)
    found: dict[str, list[str]] = {}
    for each in FORMATS:
        found |= each.companions(str(folder), by_suffix)
    return found


def test_files_of_a_record_have_its_stem(tmp_path: Path) -> None:
    names = ("a.hea", "a.dat", "a.b.dat", "b.mat", "a.atr", "c.atr", "a.ecg", "b.ecg", "a.json")
    assert belonging(tmp_path, *names) == {
        "signal files": ["a.dat"],
        "annotations": ["a.atr", "a.ecg"],
    }
    assert belonging(tmp_path, *names[1:]) == {}


def test_sidecars_stand_beside_arrays(tmp_path: Path) -> None:
    names = ("a.npy", "b.npz", "a.json", "b.json", "signals.json")
    assert belonging(tmp_path, *names) == {"sidecars": ["a.json", "signals.json"]}
    assert belonging(tmp_path, "b.npz", "signals.json") == {}


def test_a_header_names_files_of_other_stems(tmp_path: Path) -> None:
    """The first words of its lines, where it has no signal file of its own stem."""
    text = "a 2 500 10\n# of.odd\nshared.dat 16\n  of.Doe 16\n"
    (tmp_path / "a.hea").write_text(text)
    names = ("a.hea", "shared.dat", "of.Doe", "of.odd", "lost.dat")
    assert belonging(tmp_path, *names) == {"signal files": ["of.Doe", "shared.dat"]}
    # Then nobody reads the header.
    assert belonging(tmp_path, *names, "a.dat") == {"signal files": ["a.dat"]}


def test_segments_are_those_that_the_record_line_promises(tmp_path: Path) -> None:
    (tmp_path / "m.hea").write_text("m/2 12 500 20\ns1 10\n~ 3\ns3 10\n")
    (tmp_path / "n.hea").write_text("n/x 12 500 20\ns3 10\n")
    for name in ("s1", "s3"):
        (tmp_path / f"{name}.hea").write_text(f"{name} 12 500 10\n")
    names = ("m.hea", "n.hea", "s1.hea", "s3.hea")
    assert belonging(tmp_path, *names) == {"segments of joined records": ["s1.hea"]}
