"""No name in a file of a vendor leaves it, whatever the format and the encoding."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from marked_files import write_marked
from markers import MARKER, Markers, search

from ecgfast.cli import main

pytestmark = pytest.mark.slow


def test_no_marker_of_a_vendor_file_leaves(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mark = Markers()
    source, out = tmp_path / "private", tmp_path / "out"
    num_files = write_marked(source, mark)
    out.mkdir()
    store = out / "store"
    assert main(["convert", str(source), "--out", str(store), "--workers", "1"]) == 0
    for command in ("info", "verify"):
        assert main([command, str(store)]) == 0
    printed = "".join(capfd.readouterr()).encode()

    rows = pq.read_table(store / "records.parquet")
    assert rows.num_rows == num_files, "each is read, so that what it holds could leave"
    assert None not in rows["patient_id"].to_pylist()
    assert len((store / "quarantine.csv").read_text().splitlines()) > num_files - 5
    private = {out / f"store{end}" for end in (".sources.csv", ".passed_over.csv", ".key")}
    hits, searched = search(out, private)
    assert hits == []
    assert MARKER.findall(printed) == []
    assert len(mark.places) > 600
    assert searched > 100_000
    table = (out / "store.sources.csv").read_bytes()
    assert len(set(MARKER.findall(table))) > 2 * num_files, "the search finds what is there"
