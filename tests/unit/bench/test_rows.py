"""Result rows: quantiles, the file they go to, and lines that are not rows."""

from pathlib import Path

import pytest

from ecgfast.bench.rows import append_rows, device_slug, make_row, read_rows
from ecgfast.errors import FormatError


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


@pytest.mark.parametrize("line", ["{", "{}", "3"])
def test_a_line_that_is_no_row_names_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + line + "\n")
    with pytest.raises(FormatError, match=r"a\.jsonl:2"):
        read_rows(path)


def test_device_slug_is_a_plain_folder_name() -> None:
    slug = device_slug("cpu")
    assert slug
    assert slug == slug.strip("-")
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
