"""The page of `ecgfast quality`: counts by site and device, examples, and what it must not show."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from recordings import convert_quietly, ecg_like, write_wfdb

from ecgfast.errors import ConfigError
from ecgfast.evaluate.quality import page, write_page
from ecgfast.labels.columns import set_column
from ecgfast.store.reader import open_store
from ecgfast.store.table import replace_records


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six records of two sites: flat, noisy, large, and three that are good."""
    folder = tmp_path_factory.mktemp("quality")
    signals = ecg_like(6, seed=0, largest=500)
    signals[0, 8] = 17
    signals[1, 9] += np.random.default_rng(0).normal(0, 20, 5000).astype(np.int16)
    signals[2] *= 3  # its noise too
    for number, signal in enumerate(signals):
        comments = [f"patient: Doe{number}", f"site: {'A' if number < 4 else 'B'}"]
        write_wfdb(folder / f"in/Doe{number}", signal, comments=comments)
    convert_quietly([folder / "in"], folder / "store")
    return folder / "store"


def test_counts_by_site(store: Path) -> None:
    reader = open_store(store)
    assert reader.records["site"].to_pylist() == ["A"] * 4 + ["B"] * 2
    table = page(reader)["checks"]["site"]
    assert table.header == ("site", "A", "B", "all")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["noise"] == ("2 (50.0 %)", "0", "2 (33.3 %)")
    for flag in ("flat_lead", "amplitude"):
        assert rows[flag] == ("1 (25.0 %)", "0", "1 (16.7 %)")
    assert rows["any of these"] == ("3 (75.0 %)", "0", "3 (50.0 %)")
    assert rows["records"] == ("4", "2", "6")


def test_the_page_has_an_example_of_each_flag_and_no_name(store: Path, tmp_path: Path) -> None:
    html = write_page(store, tmp_path / "new" / "quality.html").read_text()
    assert html.startswith("<!doctype html>")
    examples = html[html.index("<h2>Examples") : html.index("<h2>Limits")]
    assert re.findall("<h3>(.*?)</h3>", examples) == ["amplitude", "flat_lead", "noise"]
    assert examples.count("data:image/png") == 4
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "Doe" not in re.sub('"data:[^"]*"', "", html)


def test_examples_draw_the_lead_at_fault(store: Path) -> None:
    examples = {each["flag"]: each["figures"] for each in page(open_store(store))["examples"]}
    texts = [text.get_text() for text in examples["flat_lead"][0].axes[0].texts]
    assert {"V3", "II"} <= set(texts)
    assert "V4" not in texts
    noisy = [text.get_text() for text in examples["noise"][0].axes[0].texts]
    assert {"V4", "II"} <= set(noisy)


def test_devices_and_filters_where_a_store_knows_them(store: Path, tmp_path: Path) -> None:
    copy = convert_quietly([store], tmp_path / "store").store
    reader = open_store(copy)
    assert "device" not in page(reader)["checks"]
    devices = pa.array(["mac-5500"] * 3 + ["eli-250", None, None], pa.string())
    records = set_column(reader.records, "device", devices)
    high_pass = pa.array([0.05, 0.05, 0.5, None, 0.5, 0.5], pa.float64())
    records = set_column(records, "high_pass_hz", high_pass)
    replace_records(reader, records, {})
    found = page(open_store(copy))
    assert found["checks"]["device"].header == ("device", "unknown", "eli-250", "mac-5500", "all")
    table = found["filters"]["site"]
    assert table.header == ("site", "records", "recorded at", "high-pass")
    assert table.rows[0] == ("A", "4", "500 Hz: 4", "0.05 Hz: 2; 0.5 Hz: 1; unknown: 1")


def test_a_page_lies_outside_of_stores_and_replaces_no_other_file(
    store: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="lies in the store"):
        write_page(store, store / "quality.html")
    (tmp_path / "ecg.html").write_text("an ECG")
    with pytest.raises(ConfigError, match="exists and is no page"):
        write_page(store, tmp_path / "ecg.html")


def test_a_store_of_before_has_no_measures(store: Path, tmp_path: Path) -> None:
    copy = convert_quietly([store], tmp_path / "store").store
    reader = open_store(copy)
    replace_records(reader, reader.records.drop_columns(["quality"]), {})
    with pytest.raises(ConfigError, match="was made by an earlier version"):
        write_page(copy, tmp_path / "quality.html")
