"""The input list: complete, sorted, unique."""

import os
from pathlib import Path

import numpy as np
import pytest

from ecgfast.errors import FormatError
from ecgfast.ingest import read_record
from ecgfast.ingest.inventory import discover


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_ids_are_relative_paths_without_suffix_in_order(tmp_path: Path) -> None:
    _touch(tmp_path, "b/2.hea", "b/2.dat", "a/x.y/10.HEA", "b/1.hea", "z.npz", "note.txt")
    found = discover([tmp_path])
    assert [item.record_id for item in found] == ["a/x.y/10", "b/1", "b/2", "z"]
    assert all(item.path.is_file() and item.source == tmp_path for item in found)


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    _touch(tmp_path, "1.hea", "._1.hea", ".snapshot/1.hea")
    assert [item.record_id for item in discover([tmp_path])] == ["1"]


def test_several_sources_merge_and_collisions_name_both(tmp_path: Path) -> None:
    _touch(tmp_path, "a/1.hea", "b/2.hea")
    assert [i.record_id for i in discover([tmp_path / "b", tmp_path / "a"])] == ["1", "2"]
    _touch(tmp_path, "b/1.hea")
    with pytest.raises(FormatError, match=r"'1' is claimed by .*a/1\.hea and .*b/1\.hea"):
        discover([tmp_path / "a", tmp_path / "b"])


def test_one_stem_in_two_formats_is_a_collision(tmp_path: Path) -> None:
    _touch(tmp_path, "1.hea", "1.npz")
    with pytest.raises(FormatError, match="claimed by"):
        discover([tmp_path])


def test_a_file_is_a_source(tmp_path: Path) -> None:
    _touch(tmp_path, "deep/7.hea")
    (item,) = discover([tmp_path / "deep/7.hea"])
    assert item.record_id == "7"


def test_batch_files_expand(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((11, 12, 5), np.int16))
    found = discover([tmp_path])
    assert {item.record_id for item in found} == {f"x/{row}" for row in range(11)}
    assert all(item.record_id == f"x/{item.row}" for item in found)


def test_overlapping_sources_are_refused(tmp_path: Path) -> None:
    _touch(tmp_path, "a/1.hea")
    with pytest.raises(FormatError, match="read twice"):
        discover([tmp_path, tmp_path / "a"])


@pytest.mark.parametrize("name", ["missing", "empty", "note.txt"])
def test_sources_without_records_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    _touch(tmp_path, "note.txt")
    with pytest.raises(FormatError, match=r"does not exist|holds no ECG file"):
        discover([tmp_path / name])


def test_broken_links_are_lost_recordings_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.hea").symlink_to("nowhere.hea")
    (tmp_path / "b.hea").symlink_to("b.hea")
    (tmp_path / "c.npy").symlink_to("nowhere.npy")
    items = discover([tmp_path])
    assert [item.record_id for item in items] == ["a", "b", "c"]
    for item in items[:2]:
        with pytest.raises(FormatError, match=f"{item.record_id}.hea: "):
            read_record(item)


def test_names_that_are_no_text_get_an_id_that_is(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/M\xfcller.hea"
    try:
        open(path, "wb").close()
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    (item,) = discover([tmp_path])
    assert item.record_id == r"M\xfcller"
    assert item.path.exists()


def test_a_folder_in_place_of_a_signal_file_concerns_one_record(tmp_path: Path) -> None:
    (tmp_path / "r.hea").write_text("r 1 500 10\nr.dat 16 1000 16 0 0 0 0 I\n")
    (tmp_path / "r.dat").mkdir()
    (item,) = discover([tmp_path])
    with pytest.raises(FormatError):
        read_record(item)
