"""Variants timed in turns, quantiles, the file of rows, and lines that are not rows."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from ecgfast.bench import (
    Row,
    append_rows,
    device_slug,
    make_rows,
    per_second,
    read_rows,
    render,
    run,
    time_interleaved,
)
from ecgfast.errors import ConfigError, FormatError


def row_of(*values: float, case: str = "c", provider: str = "p") -> Row:
    (row,) = make_rows({("time", "ms"): values}, case=case, provider=provider)
    return row


RIGHT = asdict(row_of(1.0))
WRONG_P50, WRONG_CASE = json.dumps({**RIGHT, "p50": "1"}), json.dumps({**RIGHT, "case": 3})


def test_row_holds_quantiles_and_the_machine() -> None:
    row = row_of(1, 2, 3, 4, 5, 6)
    assert (row.p20, row.p50, row.p80, row.n) == (2.0, 3.5, 5.0, 6)
    assert row.device
    assert row.torch
    assert row.cuda == ""  # a CPU number names no GPU software
    assert len(row.date) == 10


def test_no_repeats_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one repeat"):
        row_of()


def test_rows_append_and_read_back_from_file_and_folder(tmp_path: Path) -> None:
    rows = [row_of(i + 1.0, case=f"c{i}") for i in range(3)]
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


def test_variants_run_in_turns_and_warmup_is_not_counted() -> None:
    calls: list[str] = []
    times = time_interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=2
    )
    assert "".join(calls) == "ab" * 5
    assert {name: len(ms) for name, ms in times.items()} == {"a": 3, "b": 3}


def test_times_are_milliseconds() -> None:
    times = time_interleaved({"sleep": lambda: time.sleep(0.01)}, repeats=3, warmup=0)
    assert 10 <= min(times["sleep"]) < 1000


def test_per_second() -> None:
    assert per_second([500.0, 2000.0], 256) == [512.0, 128.0]


def test_a_row_is_rendered_with_its_unit() -> None:
    row = row_of(12.345, provider="ecgfast")
    assert render(row).split()[-4:] == ["ecgfast", "time", "12.35", "ms"]


@pytest.mark.parametrize("case", ["decode", "kernels"])
def test_cases_of_a_gpu_are_left_out_on_a_cpu(case: str, caplog: pytest.LogCaptureFixture) -> None:
    assert run(case, device="cpu") == []
    assert f"{case} was not measured: it needs a GPU" in caplog.text
