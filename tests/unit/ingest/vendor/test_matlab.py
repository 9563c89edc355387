"""MATLAB files against scipy, and signal files of the challenges against WFDB's reading of them."""

import json
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import check_damage
from scipy.io import loadmat, savemat

from ecgfast.errors import FormatError
from ecgfast.ingest import read_record
from ecgfast.ingest.format import Head
from ecgfast.ingest.inventory import discover, take_inventory
from ecgfast.ingest.vendor.matlab import FORMAT

SIGNAL = np.random.default_rng(0).integers(-900, 900, (12, 300)).astype(np.int16)


def write(path: Path, arrays: dict[str, Any], *, changes: Any = None, **settings: Any) -> Path:
    savemat(path, arrays, **settings)
    meta = {"sampling_rate_hz": 500, "scale_uv": 4.88, **(changes or {})}
    path.with_suffix(".json").write_text(json.dumps(meta))
    return path


def read(path: Path) -> Any:
    return FORMAT.read(path, "r", None)


@pytest.mark.parametrize("settings", [{}, {"do_compression": True}, {"format": "4"}])
@pytest.mark.parametrize("dtype", ["i2", "i4", "u2", "f4", "f8"])
def test_matrices_equal_those_of_scipy(tmp_path: Path, settings: Any, dtype: str) -> None:
    path = write(tmp_path / "a.mat", {"val": np.abs(SIGNAL).astype(dtype), "fs": 500}, **settings)
    record = read(path)
    theirs = loadmat(path)["val"]
    if dtype[0] == "f":
        np.testing.assert_allclose(record.signal, theirs * 4.88, rtol=1e-6)
    else:
        np.testing.assert_array_equal(record.signal, theirs)
        np.testing.assert_allclose(record.scale_uv, 4.88)
    assert record.sampling_rate_hz == 500
    assert record.provenance == {"format": "matlab"}


def test_integers_that_matlab_calls_double_stay_adc_units(tmp_path: Path) -> None:
    """MATLAB stores doubles as integers where they are some; scipy reads them so, too."""
    path = write(tmp_path / "a.mat", {"val": SIGNAL})
    content = path.read_bytes()
    flags = content.index(struct.pack("<I", 10), 128)  # class int16
    path.write_bytes(content[:flags] + struct.pack("<I", 6) + content[flags + 4 :])
    assert loadmat(path)["val"].dtype == np.int16
    record = read(path)
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, SIGNAL)


def test_big_endian_files(tmp_path: Path) -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    matrix = element(6, struct.pack(">II", 10, 0)) + element(5, struct.pack(">ii", 12, 300))
    matrix += element(1, b"val") + element(3, SIGNAL.T.astype(">i2").tobytes())
    text = b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI"
    path = write(tmp_path / "a.mat", {"val": SIGNAL})
    path.write_bytes(text + element(14, matrix))
    np.testing.assert_array_equal(loadmat(path)["val"], SIGNAL)
    np.testing.assert_array_equal(read(path).signal, SIGNAL)


def test_a_struct_of_the_2018_challenge(tmp_path: Path) -> None:
    ecg = {"sex": "Male", "age": 61, "data": SIGNAL.astype(np.float64) / 100}
    path = write(tmp_path / "A0001.mat", {"ECG": ecg}, changes={"scale_uv": 1000})
    np.testing.assert_allclose(read(path).signal, SIGNAL * 10, rtol=1e-6)
    path = write(tmp_path / "b.mat", {"ECG": ecg}, changes={"array": "ECG.data"})
    assert read(path).signal.shape == (12, 300)


def test_one_of_several_matrices_is_named_by_the_sidecar(tmp_path: Path) -> None:
    arrays = {"raw": SIGNAL, "filtered": SIGNAL // 2}
    with pytest.raises(FormatError, match="got 2 matrices of numbers"):
        read(write(tmp_path / "a.mat", arrays))
    path = write(tmp_path / "a.mat", arrays, changes={"array": "filtered"})
    np.testing.assert_array_equal(read(path).signal, SIGNAL // 2)
    with pytest.raises(FormatError, match="got 0 matrices of numbers"):
        read(write(tmp_path / "a.mat", arrays, changes={"array": "patients"}))


def test_signal_files_of_the_challenges_equal_what_wfdb_reads(
    shared_data: Path, tmp_path: Path
) -> None:
    """They are MATLAB 4: without their headers they are arrays, with them WFDB's."""
    compared = 0
    for header in sorted((shared_data / "cinc2020").glob("*.hea"))[:12]:
        theirs = read_record(discover([header])[0])
        shutil.copy(header.with_suffix(".mat"), tmp_path / "a.mat")
        rate, leads = theirs.sampling_rate_hz, header.read_text().splitlines()[1:13]
        meta = {
            "sampling_rate_hz": rate,
            "scale_uv": 1,
            "leads": [each.split()[-1] for each in leads],
        }
        (tmp_path / "a.json").write_text(json.dumps(meta))
        np.testing.assert_array_equal(read(tmp_path / "a.mat").signal, theirs.signal)
        compared += 1
    assert compared == 12
    inventory = take_inventory([shared_data / "cinc2020"])
    assert not [item for item in inventory.inputs if item.path.suffix != ".hea"]


def test_what_is_recognised(tmp_path: Path) -> None:
    for settings in ({}, {"format": "4"}):
        content = write(tmp_path / "a.mat", {"v_1": SIGNAL}, **settings).read_bytes()
        assert FORMAT.recognises(Head(content, "no_suffix"))
    others = (
        b"",
        bytes(200),
        b"MATLAB 7.3 MAT-file".ljust(126) + b"IM",
        struct.pack("<5i", 30, 12, 9, 0, 4),
    )
    assert not [each for each in others if FORMAT.recognises(Head(each, "a.mat"))]


def test_without_a_sidecar_the_record_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", {"val": SIGNAL})
    (tmp_path / "a.json").unlink()
    with pytest.raises(FormatError, match="no sidecar"):
        read(path)


def test_claims_bombs_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", {"val": SIGNAL})
    content = path.read_bytes()
    sides = content.index(struct.pack("<ii", 12, 300))
    path.write_bytes(content[:sides] + struct.pack("<ii", 12, 10**9) + content[sides + 8 :])
    with pytest.raises(FormatError) as refusal:
        read(path)
    assert refusal.value.reason == "the file is too large"
    path.write_bytes(content[:sides] + struct.pack("<ii", 12, 301) + content[sides + 8 :])
    with pytest.raises(FormatError, match="holds 7200 bytes of a matrix of 7224"):
        read(path)
    for end in range(128, len(content), 501):
        path.write_bytes(content[:end])
        with pytest.raises(FormatError):
            read(path)
    packer = zlib.compressobj()
    bomb = packer.compress(struct.pack("<II", 14, 1 << 31))
    bomb += b"".join(packer.compress(bytes(1 << 20)) for _ in range(260)) + packer.flush()
    path.write_bytes(content[:128] + struct.pack("<II", 15, len(bomb)) + bomb)
    with pytest.raises(FormatError, match="unpacks to over 268,435,456 bytes"):
        read(path)


def test_a_matrix_of_countless_parts_takes_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", {"val": SIGNAL})
    content = path.read_bytes()
    size = int.from_bytes(content[132:136], "little")
    empty = bytes(8) * 1_000_000
    path.write_bytes(content[:132] + struct.pack("<I", size + len(empty)) + content[136:] + empty)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(read(path).signal, SIGNAL)
        assert tracemalloc.get_traced_memory()[1] < 60 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cases", [300, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{}, {"do_compression": True}, {"format": "4"}])
def test_damage_ends_in_a_record_or_one_refusal(tmp_path: Path, settings: Any, cases: int) -> None:
    path = write(tmp_path / "a.mat", {"fs": 500.0, "val": SIGNAL}, **settings)
    with np.errstate(all="ignore"):
        outcomes = check_damage(FORMAT.read, path, cases=cases)
    assert outcomes["read"] > 10
    assert sum(outcomes.values()) - outcomes["read"] > 10
