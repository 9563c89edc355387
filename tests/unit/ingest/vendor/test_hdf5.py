"""HDF5 files that h5py writes, in the layouts of CODE-15 and SPH, and those of MATLAB 7.3."""

import errno
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import check_damage

from ecgfast.errors import BackendUnavailableError, FormatError
from ecgfast.ingest import read_record
from ecgfast.ingest.format import Head
from ecgfast.ingest.inventory import discover
from ecgfast.ingest.vendor import hdf5
from ecgfast.ingest.vendor.hdf5 import FORMAT

h5py = pytest.importorskip("h5py", reason="h5py is not installed")

RNG = np.random.default_rng(0)
SIDECAR = {"sampling_rate_hz": 400, "scale_uv": 1000}


def sidecar(path: Path, **changes: Any) -> None:
    path.with_suffix(".json").write_text(json.dumps({**SIDECAR, **changes}))


def code15(path: Path, num_rows: int = 5) -> Any:
    """The layout of CODE-15: (N, 4096, 12), short exams with zeros on both sides."""
    tracings = RNG.normal(0, 1, (num_rows, 4096, 12)).astype(np.float32)
    tracings[1, :600] = tracings[1, -700:] = 0
    with h5py.File(path, "w") as file:
        file["exam_id"] = np.arange(1000, 1000 + num_rows)
        file["tracings"] = tracings
    sidecar(path)
    return tracings


def test_each_row_of_a_batch_is_a_record(tmp_path: Path) -> None:
    tracings = code15(tmp_path / "exams.hdf5")
    items = discover([tmp_path])
    assert [item.record_id for item in items] == [f"exams/{row}" for row in range(5)]
    for row in (0, 2, 3, 4):
        record = read_record(items[row])
        np.testing.assert_array_equal(record.signal, tracings[row].T * np.float32(1000))
        assert record.sampling_rate_hz == 400
        assert record.flags == ()
        assert record.provenance == {"format": "hdf5"}


def test_zeros_on_both_sides_of_a_row_are_cut(tmp_path: Path) -> None:
    tracings = code15(tmp_path / "exams.hdf5")
    record = read_record(discover([tmp_path])[1])
    np.testing.assert_array_equal(record.signal, tracings[1, 600:-700].T * np.float32(1000))
    assert record.flags == ("padding_cut",)


def test_a_row_of_zeros_has_no_timesteps(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ecg"] = np.zeros((2, 12, 100), np.float32)
    sidecar(tmp_path / "a.h5")
    assert FORMAT.read(tmp_path / "a.h5", "r", 1).signal.shape == (12, 0)


def test_a_batch_is_never_read_whole(tmp_path: Path) -> None:
    """A dataset of 196 GB, of which two rows were written."""
    path = tmp_path / "a.h5"
    rows = RNG.normal(0, 1, (2, 4096, 12)).astype(np.float32)
    with h5py.File(path, "w") as file:
        settings = {"dtype": "f4", "chunks": (1, 4096, 12), "compression": "gzip"}
        data = file.create_dataset("tracings", (1_000_000, 4096, 12), **settings)
        data[0], data[999_999] = rows
    sidecar(path)
    assert FORMAT.num_rows(path) == 1_000_000
    for row, expected in ((0, rows[0]), (999_999, rows[1])):
        signal = FORMAT.read(path, "r", row).signal
        np.testing.assert_array_equal(signal, expected.T * np.float32(1000))


def test_rows_that_share_packed_chunks_are_unpacked_together(tmp_path: Path) -> None:
    """Row by row, every row would unpack all of its neighbours: some 70 times the work here."""
    path = tmp_path / "a.h5"
    tracings = RNG.normal(0, 1, (100, 512, 12)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("tracings", data=tracings, chunks=(70, 64, 1), compression="gzip")
    sidecar(path)
    for row in (0, 1, 69, 70, 99, 3):
        signal = FORMAT.read(path, "r", row).signal
        np.testing.assert_array_equal(signal, tracings[row].T * np.float32(1000))
    before = hdf5._block.cache_info()
    for row in range(70):
        FORMAT.read(path, "r", row)
    assert hdf5._block.cache_info().misses - before.misses <= 1
    with h5py.File(path, "r+") as file:  # the file has changed: what was read of it is forgotten
        file["tracings"][5] = 1
        file.attrs["longer"] = "x" * 5000
    np.testing.assert_array_equal(FORMAT.read(path, "r", 5).signal, np.full((12, 512), 1000))


def test_the_layout_of_sph(tmp_path: Path) -> None:
    path = tmp_path / "A0001.h5"
    signal = RNG.normal(0, 1, (12, 5000)).astype(np.float16)
    with h5py.File(path, "w") as file:
        file.create_dataset("ecg", data=signal, compression="gzip")
    sidecar(path, sampling_rate_hz=500, age=61, sex="F", site="2")
    (item,) = discover([tmp_path])
    assert (item.record_id, item.row) == ("A0001", None)
    record = read_record(item)
    np.testing.assert_array_equal(record.signal, signal.astype(np.float32) * 1000)
    assert (record.age, record.sex, record.site) == (61.0, "female", "2")


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", "<u2"])
def test_integers_stay_adc_units_while_they_fit(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.h5"
    signal = RNG.integers(0, 900, (12, 100)).astype(dtype)
    with h5py.File(path, "w") as file:
        file["ecg"] = signal
    sidecar(path, scale_uv=4.88)
    record = FORMAT.read(path, "r", None)
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, signal)
    np.testing.assert_allclose(record.scale_uv, 4.88)


def test_matlab_files_are_read_with_their_axes_turned(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    signal = RNG.integers(-900, 900, (12, 100)).astype(np.int16)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["val"] = signal.T  # MATLAB's columns are HDF5's rows
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM"
    content = path.read_bytes()
    path.write_bytes(text.ljust(512, b"\0") + content[512:])
    sidecar(path)
    assert FORMAT.recognises(Head(path.read_bytes()[:65536], "a.mat"))
    np.testing.assert_array_equal(read_record(discover([tmp_path])[0]).signal, signal)


def test_without_a_sidecar_the_record_is_refused(tmp_path: Path) -> None:
    code15(tmp_path / "exams.hdf5")
    (tmp_path / "exams.json").unlink()
    with pytest.raises(FormatError, match="no sidecar") as refusal:
        read_record(discover([tmp_path])[3])
    assert refusal.value.reason == "there is no sidecar"


def test_one_of_several_arrays_is_named_by_the_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["raw"], file["filtered"] = np.ones((12, 50), np.int16), np.zeros((12, 50), np.int16)
    sidecar(path)
    with pytest.raises(FormatError, match="got 2 datasets of numbers"):
        FORMAT.read(path, "r", None)
    sidecar(path, array="raw")
    record = FORMAT.read(path, "r", None)
    assert record.signal.all()
    assert record.labels == {}
    sidecar(path, array="patients")
    with pytest.raises(FormatError, match="got 0 datasets of numbers"):
        FORMAT.read(path, "r", None)


def test_what_lies_in_other_files_is_not_followed(tmp_path: Path) -> None:
    path, other = tmp_path / "a.h5", str(tmp_path / "other.h5")
    code15(Path(other))
    sidecar(path)
    with h5py.File(path, "w") as file:
        file["ecg"] = h5py.ExternalLink(other, "/tracings")
    with pytest.raises(FormatError, match="got 0 datasets"):
        FORMAT.read(path, "r", None)
    sidecar(path, array="way/tracings")
    with h5py.File(path, "w") as file:
        file["way"] = h5py.ExternalLink(other, "/")
    with pytest.raises(FormatError, match="got 0 datasets"):
        FORMAT.read(path, "r", None)
    sidecar(path)
    with h5py.File(path, "w") as file:
        external = [(other, 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("ecg", (12, 50), dtype="i2", external=external)
    with pytest.raises(FormatError, match="lies in other files"):
        FORMAT.read(path, "r", None)
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((12, 50), "i2")
        layout[:] = h5py.VirtualSource(other, "tracings", (12, 50))
        file.create_virtual_dataset("ecg", layout)
    with pytest.raises(FormatError, match="lies in other files"):
        FORMAT.read(path, "r", None)


def test_claims_of_a_billion_samples_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    sidecar(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("ecg", (12, 10**9), dtype="f4", chunks=(12, 1000))
    with pytest.raises(FormatError) as refusal:
        FORMAT.read(path, "r", None)
    assert refusal.value.reason == "the file is too large"
    with h5py.File(path, "w") as file:
        settings = {"dtype": "f4", "chunks": (9000, 4096, 12), "compression": "gzip"}
        file.create_dataset("ecg", (20_000, 4096, 12), **settings)
    with pytest.raises(FormatError, match="chunks of 1,769,472,000 bytes"):
        FORMAT.read(path, "r", 0)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    code15(tmp_path / "exams.hdf5")
    content = (tmp_path / "exams.hdf5").read_bytes()
    for end in (0, 8, 100, 2000, len(content) // 2, len(content) - 1):
        (tmp_path / "exams.hdf5").write_bytes(content[:end])
        assert FORMAT.num_rows(tmp_path / "exams.hdf5") is None
        with pytest.raises(FormatError, match="cannot be parsed") as refusal:
            FORMAT.read(tmp_path / "exams.hdf5", "r", None)
        assert refusal.value.reason == "the file is damaged"


def test_without_h5py_the_source_is_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code15(tmp_path / "exams.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'ecgfast\[hdf5\]'"):
        discover([tmp_path])


def test_an_error_of_the_share_is_none_of_the_file() -> None:
    """The words that HDF5 1.14 has for a failed read."""
    words = "Can't synchronously read data (file read failed: errno = {}, error message = 'x')"
    error = hdf5._of_share(OSError(words.format(errno.EIO)))
    assert error is not None
    assert error.errno == errno.EIO
    assert hdf5._of_share(OSError(words.format(errno.EINVAL))) is None
    assert hdf5._of_share(OSError("Unable to synchronously open file (truncated file)")) is None


@pytest.mark.parametrize("cases", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_damage_ends_in_a_record_or_one_refusal(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["exam_id"] = np.arange(3)
        file.create_dataset("ecg", data=RNG.normal(0, 1, (3, 12, 50)), compression="gzip")
    sidecar(path)
    with warnings.catch_warnings(action="ignore"):  # of overflows, which read_record silences
        outcomes = check_damage(FORMAT.read, path, cases=cases, row=1)
    assert outcomes["read"] > 10
    assert outcomes["the file is damaged"] > 10
