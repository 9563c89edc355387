"""What files of a folder are by their names, and suffixes in words."""

from collections import Counter
from pathlib import Path

import pytest

from ecgfast.ingest.kinds import sort_names, suffix_of, suffixes_in_words


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


def sorted_names(folder: Path, *names: str) -> tuple[dict[str, int], dict[str, list[str]]]:
    by_suffix: dict[str, list[str]] = {}
    for name in names:
        by_suffix.setdefault(suffix_of(name), []).append(name)
    content = sort_names(str(folder), by_suffix)
    return dict(content.belonging), content.passed_over


def test_files_of_a_record_have_its_stem(tmp_path: Path) -> None:
    names = ("a.hea", "a.dat", "a.b.dat", "b.mat", "a.atr", "c.atr", "a.ecg", "b.ecg", "a.json")
    assert sorted_names(tmp_path, *names) == (
        {"signal files": 1, "annotations": 2},
        {
            "signal files without a header": ["a.b.dat", "b.mat"],
            "annotations without a header": ["c.atr"],
            "other signal formats": ["b.ecg"],
            "tables and texts": ["a.json"],
        },
    )


def test_sidecars_stand_beside_arrays(tmp_path: Path) -> None:
    names = ("a.npy", "b.npz", "a.json", "b.json", "signals.json")
    assert sorted_names(tmp_path, *names) == ({"sidecars": 2}, {"tables and texts": ["b.json"]})
    assert sorted_names(tmp_path, "b.npz", "signals.json") == (
        {},
        {"tables and texts": ["signals.json"]},
    )


def test_a_header_names_files_of_other_stems(tmp_path: Path) -> None:
    """The first words of its lines, where it has no signal file of its own stem."""
    text = "a 2 500 10\n# of.odd\nshared.dat 16\n  of.Doe 16\n"
    (tmp_path / "a.hea").write_text(text)
    names = ("a.hea", "shared.dat", "of.Doe", "of.odd", "lost.dat")
    assert sorted_names(tmp_path, *names) == (
        {"signal files": 2},
        {"signal files without a header": ["lost.dat"], "other files": ["of.odd"]},
    )
    assert sorted_names(tmp_path, *names, "a.dat") == (  # then nobody reads the header
        {"signal files": 1},
        {
            "signal files without a header": ["shared.dat", "lost.dat"],
            "other files": ["of.Doe", "of.odd"],
        },
    )


def test_segments_are_those_that_the_record_line_promises(tmp_path: Path) -> None:
    (tmp_path / "m.hea").write_text("m/2 12 500 20\ns1 10\n~ 3\ns3 10\n")
    (tmp_path / "n.hea").write_text("n/x 12 500 20\ns3 10\n")
    for name in ("s1", "s3"):
        (tmp_path / f"{name}.hea").write_text(f"{name} 12 500 10\n")
    names = {"hea": ["m.hea", "n.hea", "s1.hea", "s3.hea"]}
    content = sort_names(str(tmp_path), names)
    assert content.segments == {"s1.hea"}
    assert dict(content.belonging) == {"segments of joined records": 1}
