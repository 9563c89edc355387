"""The list of inputs is complete, sorted and unique; every other file has one kind."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from recordings import ecg_like, write_wfdb

from ecgfast.errors import FormatError
from ecgfast.ingest import read_record
from ecgfast.ingest.inventory import Inventory, discover, take_inventory, walk_list
from ecgfast.ingest.kinds import PASSED_OVER


def entries(root: Path) -> int:
    """What `os.walk` finds: hidden folders, links to folders and x.hea folders count as one."""
    count = 0
    for folder, folders, files in os.walk(root):
        count += len(files)
        for name in folders[:]:
            if name.startswith(".") or (Path(folder) / name).is_symlink():
                folders.remove(name)
                count += 1
            elif name.lower().endswith((".hea", ".npy", ".npz")):
                count += 1
    return count


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def check_sum(inventory: Inventory, root: Path) -> None:
    assert inventory.num_files == entries(root)
    kinds = {"signal files", "sidecars", "annotations", "segments of joined records"}
    assert set(inventory.belonging) <= kinds
    assert set(inventory.passed_over) <= set(PASSED_OVER)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    write_wfdb(root / "a/1", ecg_like(1, seed=0)[0])
    touch(root, "a/1.atr", "a/1.xml", "a/2.mat", "a/3.atr", "b/muse.XML", "b/x.dcm", "b/DICOMDIR")
    touch(
        root, "b/y.scp", "b/y.pdf", "b/list.csv", "b/RECORDS", "b/data.zip", "b/noname", "b/q.edf"
    )
    touch(
        root, "b/Doe.Jane", ".hidden.hea", ".snapshot/1.hea", ".snapshot/2.hea", "folder.hea/9.hea"
    )
    np.save(root / "b/batch.npy", np.zeros((3, 12, 5), np.int16))
    touch(root, "b/batch.json", "b/signals.json", "b/other.json", "c/signals.json")
    os.mkfifo(root / "c/pipe.hea")
    os.mkfifo(root / "c/pipe.dat")
    (root / "c/link").symlink_to(tmp_path)
    (root / "c/lost.txt").symlink_to("nowhere")
    (root / "c/lost.hea").symlink_to("nowhere")
    (root / "c/copy.hea").symlink_to(root / "a/1.hea")
    return root


def test_a_mixed_folder_adds_up(mixed: Path) -> None:
    inventory = take_inventory([mixed])
    check_sum(inventory, mixed)
    ids = [item.record_id for item in inventory.inputs]
    assert ids == ["a/1", "b/batch/0", "b/batch/1", "b/batch/2", "c/copy", "c/lost", "folder.hea/9"]
    assert inventory.num_record_files == 5
    assert inventory.belonging == {"signal files": 1, "annotations": 1, "sidecars": 2}
    assert inventory.passed_over == {
        "XML": 2, "DICOM": 2, "SCP-ECG": 1, "PDFs (no resting ECG)": 1, "archives": 1,
        "other signal formats": 1, "signal files without a header": 1,
        "annotations without a header": 1, "tables and texts": 4, "hidden files": 1,
        "hidden folders": 1, "links to folders": 1, "broken links": 1,
        "folders named as records": 1, "pipes, sockets and devices": 2, "other files": 2,
    }  # fmt: skip
    assert inventory.examples["XML"] == [f"{mixed}/a/1.xml", f"{mixed}/b/muse.XML"]
    assert inventory.examples["signal files without a header"] == [f"{mixed}/a/2.mat"]


def test_examples_are_the_first_three_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "r.hea", *(f"{folder}/{n}.xml" for folder in "cab" for n in range(4)))
    inventory = take_inventory([tmp_path])
    assert inventory.passed_over == {"XML": 12}
    assert inventory.examples == {"XML": [f"{tmp_path}/a/{n}.xml" for n in range(3)]}


def test_signal_files_that_headers_name_otherwise_are_no_orphans(tmp_path: Path) -> None:
    touch(tmp_path, "shared.dat", "lead.ecgdata", "lost.dat", "r.d0", "r.d1", "s.dat")
    for name in ("r", "s"):
        (tmp_path / f"{name}.hea").write_text(f"{name} 1 500 10\n{name}.dat 16 200 16 0 0 0 0 I\n")
    (tmp_path / "t.hea").write_text(
        "t 2 500 10\nshared.dat 16 200\nlead.ecgdata 16 200\n# lost.dat\n"
    )
    inventory = take_inventory([tmp_path])
    assert inventory.belonging == {"signal files": 5}
    assert inventory.passed_over == {"signal files without a header": 1}
    check_sum(inventory, tmp_path)


def test_files_of_records_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "1.hea", "1.dat", "1.atr", "2.hea", "2.mat", "3.npz")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr("builtins.open", never)
    assert take_inventory([tmp_path]).num_files == 6


def test_a_folder_of_other_files_is_refused_with_their_suffixes(tmp_path: Path) -> None:
    touch(
        tmp_path, *(f"{n}.xml" for n in range(8)), "a.dcm", "b.DCM", "c.dcm", "d.scp", "noname", "x"
    )
    with pytest.raises(FormatError) as refusal:
        discover([tmp_path])
    assert "found 8 .xml, 3 .dcm, 2 without suffix, 1 .scp" in str(refusal.value)


def test_an_empty_batch_is_an_input_that_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((0, 12, 5000), np.int16))
    (tmp_path / "none.json").write_text('{"sampling_rate_hz": 500, "scale_uv": 1}')
    (item,) = discover([tmp_path])
    assert item.record_id == "none"
    with pytest.raises(FormatError, match=r"shape \(0, 12, 5000\)"):
        read_record(item)


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.hea")
    with pytest.raises(FormatError, match="is a pipe or a device"):
        discover([tmp_path / "pipe.hea"])


def test_real_recordings_add_up(shared_data: Path) -> None:
    inventory = take_inventory([shared_data])
    check_sum(inventory, shared_data)
    suffixes = Counter(item.path.suffix.lower() for item in inventory.inputs)
    assert suffixes[".hea"] == len(list(shared_data.rglob("*.hea")))
    assert (suffixes[".xml"], suffixes[".dcm"], suffixes[".scp"]) == (8, 3, 1)
    assert not {"XML", "DICOM", "SCP-ECG"} & set(inventory.passed_over)
    assert inventory.belonging["annotations"] == 200
    assert "other files" not in inventory.passed_over


def test_segments_belong_to_the_record_that_is_joined_from_them(tmp_path: Path) -> None:
    signal = ecg_like(1, seed=0)[0]
    for name in ("m_1", "m_2", "other"):
        write_wfdb(tmp_path / f"in/{name}", signal)
        write_wfdb(tmp_path / f"in/elsewhere/{name}", signal)
    header = "# made by hand\n\nm/4 12 500 15000\nm_layout 0\nm_1 5000\n~ 5000\n m_2 5000\n"
    (tmp_path / "in/m.hea").write_text(header + "#other\nother 5000\n")  # a line too many
    (tmp_path / "in/m_layout.hea").write_text("m_layout 1 500 0\n~ 0 1/mV 0 0 0 0 0 I\n")
    inventory = take_inventory([tmp_path / "in"])
    ids = [item.record_id for item in inventory.inputs]
    assert ids == ["elsewhere/m_1", "elsewhere/m_2", "elsewhere/other", "m", "other"]
    assert inventory.belonging == {"signal files": 6, "segments of joined records": 3}
    check_sum(inventory, tmp_path / "in")
    joined = read_record(inventory.inputs[3])
    np.testing.assert_array_equal(joined.signal[:, 10000:], signal)


@pytest.mark.parametrize("text", ["a/1 12 500 5000\na 5000\n", "a/1 12 500 5000\nb 5000\n"])
def test_records_that_call_each_other_segments_are_inputs(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.hea").write_text(text)
    (tmp_path / "b.hea").write_text("b/1 12 500 5000\na 5000\n")
    inventory = take_inventory([tmp_path])
    assert [item.record_id for item in inventory.inputs] == ["a", "b"]


def test_ids_are_relative_paths_without_suffix_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.hea", "b/2.dat", "a/x.y/10.HEA", "b/1.hea", "z.npz", "note.txt")
    found = discover([tmp_path])
    assert [item.record_id for item in found] == ["a/x.y/10", "b/1", "b/2", "z"]
    assert all(item.path.is_file() and item.source == tmp_path for item in found)


def test_records_come_in_the_order_of_the_bytes_of_their_paths(tmp_path: Path) -> None:
    names = ["a-1.hea", "a.hea", "a.x.hea", "a/1.hea", "a/1/2.hea", "a1.hea", "b.hea"]
    for root in ("one", "two"):
        touch(tmp_path, *(f"{root}/{name}" for name in names if (name < "a/1") == (root == "one")))
    items = discover([tmp_path / "two", tmp_path / "one"])
    assert [f"{item.record_id}.hea" for item in items] == names == sorted(names)


def test_a_list_stands_for_a_walk(tmp_path: Path) -> None:
    touch(tmp_path, "a.hea", "a.dat", "b/1.hea", "b/.x/2.hea", "b/2.hea")
    np.save(tmp_path / "c.npy", np.zeros((2, 12, 5), np.int16))
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    table, inventory = tmp_path / "list", Inventory()
    for prefix, begins in (("", ""), ("./", ""), (f"{tmp_path}/", ""), ("", "\ufeff")):
        table.write_text(begins + "".join(f"{prefix}{name}\n" for name in names))
        items = list(walk_list(table, tmp_path, inventory))
        assert items == discover([tmp_path])
    assert inventory.num_files == 4 * 4


def test_a_list_names_vendor_files_of_one_stem_as_a_walk_does(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.hea", "a/b.hea")
    for name in ("a/1.dcm", "a/1.edf", "a/1.xml", "a/2.xml"):
        text = "0".ljust(256) if name == "a/1.edf" else "<RestingECG>"  # content decides
        (tmp_path / name).write_text(text)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    (tmp_path / "list").write_text("".join(f"{name}\n" for name in names))
    items = list(walk_list(tmp_path / "list", tmp_path, Inventory()))
    (tmp_path / "list").unlink()
    assert items == discover([tmp_path])
    assert {"a/1", "a/1.dcm", "a/1.xml", "a/2"} <= {item.record_id for item in items}


def test_files_of_a_list_that_cannot_be_opened_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.hea", "b.txt")
    (tmp_path / "list").write_text("a.hea\nb.txt\ngone.dcm\n")
    inventory = Inventory()
    assert len(list(walk_list(tmp_path / "list", tmp_path, inventory))) == 1
    assert inventory.passed_over == {"files that cannot be opened": 1}
    assert inventory.num_files == 2


def test_a_source_that_is_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "in").symlink_to("in")
    with pytest.raises(FormatError, match="does not exist, allowed a file or a folder"):
        discover([tmp_path / "in"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.hea\n\0b.hea\n", "line 2 is no path, got a zero byte"),
        ("b.hea\na.hea\n", "line 2 is not behind the one before it; sort"),
        ("a.hea\na.hea\n", "line 2 is not behind"),
        ("../a.hea\n", "line 1 leads out of"),
        ("/elsewhere/a.hea\n", "line 1 leads out of"),
        ("a.txt\n", "names no ECG file"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(FormatError, match=message):
        list(walk_list(tmp_path / "list", tmp_path, Inventory()))


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "1.hea", "._1.hea", ".snapshot/1.hea")
    assert [item.record_id for item in discover([tmp_path])] == ["1"]


def test_several_sources_merge_and_collisions_name_both(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.hea", "b/2.hea")
    assert [i.record_id for i in discover([tmp_path / "b", tmp_path / "a"])] == ["1", "2"]
    touch(tmp_path, "b/1.hea")
    with pytest.raises(FormatError, match=r"'1' is claimed by .*a/1\.hea and .*b/1\.hea"):
        discover([tmp_path / "a", tmp_path / "b"])


def test_one_stem_in_two_formats_is_a_collision(tmp_path: Path) -> None:
    touch(tmp_path, "1.hea", "1.npz")
    with pytest.raises(FormatError, match="claimed by"):
        discover([tmp_path])


def test_a_file_is_a_source(tmp_path: Path) -> None:
    touch(tmp_path, "deep/7.hea")
    (item,) = discover([tmp_path / "deep/7.hea"])
    assert item.record_id == "7"


def test_batch_files_expand(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((11, 12, 5), np.int16))
    found = discover([tmp_path])
    assert {item.record_id for item in found} == {f"x/{row}" for row in range(11)}
    assert all(item.record_id == f"x/{item.row}" for item in found)


def test_overlapping_sources_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.hea")
    with pytest.raises(FormatError, match="read twice"):
        discover([tmp_path, tmp_path / "a"])
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(FormatError, match=r"sources .*a and .*link are one; give it once"):
        discover([tmp_path / "a", tmp_path / "link"])


@pytest.mark.parametrize("name", ["missing", "empty", "note.txt"])
def test_sources_without_records_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "note.txt")
    with pytest.raises(FormatError, match=r"does not exist|holds no ECG file"):
        discover([tmp_path / name])


def test_broken_links_are_lost_recordings_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.hea").symlink_to("nowhere.hea")
    (tmp_path / "b.hea").symlink_to("b.hea")
    (tmp_path / "c.npy").symlink_to("nowhere.npy")
    items = discover([tmp_path])
    assert [item.record_id for item in items] == ["a", "b", "c"]
    for item, name in zip(items, ("a.hea", "b.hea", "c.npy"), strict=True):
        with pytest.raises(FormatError, match=f"{name}: is a link to no file") as refusal:
            read_record(item)
        assert refusal.value.reason == "the file cannot be opened"
    touch(tmp_path, "d.npy")
    with pytest.raises(FormatError, match=r"d.npy: is empty"):
        read_record(discover([tmp_path / "d.npy"])[0])


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
