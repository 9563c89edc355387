"""Result rows: quantiles, the file they go to, and lines that are not rows."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from ecgfast.bench import run
from ecgfast.bench.rows import append_rows, device_slug, make_row, read_rows
from ecgfast.errors import ConfigError, FormatError

RIGHT = asdict(make_row(case="c", provider="p", values=[1.0], metric="time", unit="ms"))
WRONG_P50, WRONG_CASE = json.dumps({**RIGHT, "p50": "1"}), json.dumps({**RIGHT, "case": 3})


def test_row_holds_quantiles_and_the_machine() -> None:
    row = make_row(
        case="c", provider="ecgfast", values=[1, 2, 3, 4, 5, 6], metric="time", unit="ms"
    )
    assert (row.p20, row.p50, row.p80, row.n) == (2.0, 3.5, 5.0, 6)
    assert row.device
    assert row.torch
    assert row.cuda == ""  # a CPU number names no GPU software
    assert len(row.date) == 10


def test_no_repeats_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one repeat"):
        make_row(case="c", provider="p", values=[], metric="time", unit="ms")


def test_rows_append_and_read_back_from_file_and_folder(tmp_path: Path) -> None:
    rows = [
        make_row(case=f"c{i}", provider="p", values=[i + 1.0], metric="time", unit="ms")
        for i in range(3)
    ]
    append_rows(tmp_path / "deep" / "a.jsonl", rows[:1])
    append_rows(tmp_path / "deep" / "a.jsonl", rows[1:2])
    append_rows(tmp_path / "deep" / "b.jsonl", rows[2:])
    assert read_rows(tmp_path / "deep" / "a.jsonl") == rows[:2]
    assert read_rows(tmp_path) == rows


@pytest.mark.parametrize("line", ["{", "{}", "3", "[" * 100_000, "9" * 5000, WRONG_P50, WRONG_CASE])
def test_a_line_that_is_no_row_names_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + line + "\n")
    with pytest.raises(FormatError, match=r"a\.jsonl:2"):
        read_rows(path)


def test_what_is_no_text_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(FormatError, match=r"a\.jsonl is no file of result rows"):
        read_rows(tmp_path / "a.jsonl")


def test_rows_are_appended_to_rows_alone(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{\n")
    with pytest.raises(FormatError, match="is not a result row"):
        run("codec", json=tmp_path / "manifest.json")
    (tmp_path / "store/signals.zarr").mkdir(parents=True)
    with pytest.raises(ConfigError, match="lies in the store"):
        run("codec", json=tmp_path / "store/rows.jsonl")
    assert (tmp_path / "manifest.json").read_text() == "{\n"


def test_device_slug_is_a_plain_folder_name() -> None:
    slug = device_slug("cpu")
    assert slug
    assert slug == slug.strip("-")
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
