"""A new records.parquet: whole on the disk before the manifest names it, and in its place after."""

from pathlib import Path

import pyarrow as pa
import pytest
from disk_calls import recorded_calls
from recordings import make_store

import ecgfast
from ecgfast.errors import ShapeError
from ecgfast.store.reader import StoreReader
from ecgfast.store.table import replace_records


@pytest.fixture
def reader(tmp_path: Path) -> StoreReader:
    return ecgfast.open_store(make_store(tmp_path, 2)[0])


def test_the_manifest_is_between_the_two_names_of_the_table(
    reader: StoreReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = reader.records.append_column("lvef", pa.array([35.0, 60.0]))
    calls = recorded_calls(reader.path, monkeypatch)
    replace_records(reader, records, {"labels": {"columns": ["x"]}})
    renamed = [call.split(" to ")[1] for call in calls if call.startswith("rename")]
    assert renamed == ["records.parquet.next", "manifest.json", "records.parquet"]
    behind = [calls[n + 1] for n, call in enumerate(calls) if call.startswith("rename")]
    assert behind == ["fsync ./"] * 3
    again = ecgfast.open_store(reader.path)
    assert again.records["lvef"].to_pylist() == [35, 60]
    assert (again.manifest["labels"], again.identity) == (
        {"columns": ["x"]},
        reader.identity,
    )


def test_a_table_of_other_length_is_not_written(reader: StoreReader) -> None:
    before = (reader.path / "manifest.json").read_bytes()
    with pytest.raises(ShapeError, match="records must have 2 rows, got 1"):
        replace_records(reader, reader.records.slice(1), {})
    assert (reader.path / "manifest.json").read_bytes() == before
