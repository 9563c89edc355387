"""One odd file is one line of quarantine.csv: the convert continues, and ends with the others."""

import csv
import io
import json
import os
import socket
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from recordings import convert_quietly, ecg_like, write_wfdb

import ecgfast
from ecgfast.errors import FormatError, Reason
from ecgfast.ingest import read_record
from ecgfast.ingest.files import MAX_TEXT_BYTES
from ecgfast.ingest.inventory import discover
from ecgfast.records import LEADS
from ecgfast.store.verify import verify_store

SIGNAL = ecg_like(1, seed=3)[0]
Odd = Callable[[Path], None]


def npy(array: object = SIGNAL, **meta: object) -> Odd:
    def write(folder: Path) -> None:
        np.save(folder / "odd.npy", np.asarray(array))
        sidecar = {"sampling_rate_hz": 500, "scale_uv": 1.0, **meta}
        (folder / "odd.json").write_text(json.dumps(sidecar))

    return write


def npz(**arrays: object) -> Odd:
    def write(folder: Path) -> None:
        own = {"signal": SIGNAL, "sampling_rate_hz": 500, "scale_uv": 1.0, **arrays}
        np.savez_compressed(folder / "odd.npz", **own)

    return write


def wfdb(
    storage: str = "16", gain: str = "200/mV", name: str = "odd.dat", rate: str = "500 5000"
) -> Odd:
    def write(folder: Path) -> None:
        lines = [f"odd 12 {rate}", *(f"{name} {storage} {gain} 16 0 0 0 0 {x}" for x in LEADS)]
        (folder / "odd.hea").write_text("\n".join(lines) + "\n")
        if "/" not in name:
            (folder / name).write_bytes(SIGNAL.T.astype("<i2").tobytes())

    return write


def commented(text: str) -> Odd:
    def write(folder: Path) -> None:
        wfdb()(folder)
        with (folder / "odd.hea").open("a", encoding="utf-8") as file:
            file.write(f"# {text}\n")

    return write


def with_text(odd: Odd, name: str, text: str) -> Odd:
    def write(folder: Path) -> None:
        odd(folder)
        (folder / name).write_text(text)

    return write


def with_fifo(odd: Odd, name: str) -> Odd:
    def write(folder: Path) -> None:
        odd(folder)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return write


def with_socket(folder: Path) -> None:
    wfdb()(folder)
    (folder / "odd.dat").unlink()
    before = os.getcwd()
    os.chdir(folder)  # the path of a socket has at most 107 letters
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("odd.dat")
    finally:
        os.chdir(before)


def sparse(odd: Odd, name: str) -> Odd:
    def write(folder: Path) -> None:
        odd(folder)
        os.truncate(folder / name, 20 << 30)  # takes no space on the disk

    return write


def shaped(shape: str, descr: str = "<i2", num_bytes: int = 1000) -> Odd:
    """A .npy whose header claims any shape."""

    def write(folder: Path) -> None:
        npy()(folder)
        text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
        head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        (folder / "odd.npy").write_bytes(head + bytes(num_bytes))

    return write


def member(name: str, content: bytes, *, packed: int = zipfile.ZIP_DEFLATED) -> Odd:
    """A good .npz with one more member."""

    def write(folder: Path) -> None:
        npz()(folder)
        with zipfile.ZipFile(folder / "odd.npz", "a", packed) as archive:
            archive.writestr(name, content)

    return write


def twice(name: str) -> Odd:
    """A good .npz with one of its arrays twice, the second one of other values."""

    def write(folder: Path) -> None:
        other = SIGNAL[:, ::-1] if name == "signal.npy" else 250.0
        with pytest.warns(UserWarning, match="Duplicate name"):
            member(name, saved(other))(folder)

    return write


def saved(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def joined(segment: str, lines: int = 1) -> Odd:
    def write(folder: Path) -> None:
        wfdb()(folder)
        (folder / "odd.hea").rename(folder / "odd_0001.he_")  # no input of its own
        each = [f"{segment} 5000"] * lines
        (folder / "odd.hea").write_text("\n".join([f"odd/{lines} 12 500", *each]) + "\n")

    return write


VALUE: Reason = "a value of the sidecar is not allowed"
SCALE: Reason = "a gain, scale or offset is not allowed"
SHAPE: Reason = "the array has another shape or type"
LARGE: Reason = "the file is too large"
SPECIAL: Reason = "it is no regular file"
DAMAGED: Reason = "the file is damaged"
HEADER: Reason = "the header is damaged"

ODD: dict[str, tuple[Odd, Reason]] = {
    "ejection fraction in words": (npy(ejection_fraction="35%"), VALUE),
    "ejection fraction of a list": (npy(ejection_fraction=[35]), VALUE),
    "ejection fraction of true": (npy(ejection_fraction=True), VALUE),
    "ejection fraction of false in an archive": (npz(ejection_fraction=False), VALUE),
    "patient of a list": (npy(patient_id=["7"]), VALUE),
    "patient of an object": (npy(patient_id={"id": 7}), VALUE),
    "patient of true": (npy(patient_id=True), VALUE),
    "patients of an archive": (npz(patient_id=["7"]), VALUE),
    "patient of a NUL": (npy(patient_id="\0a/r0"), VALUE),
    "patient of two lines": (npy(patient_id="7\n8"), VALUE),
    "patient of an escape in an archive": (npz(patient_id="7\x1b[2J"), VALUE),
    "patient of a NUL in a comment": (commented("patient: \0a/r0"), HEADER),
    "patient of an escape in a comment": (commented("<subject_id>: 7\x9b2J"), HEADER),
    "site of a list": (npy(site=[]), VALUE),
    "age of true": (npy(age=True), VALUE),
    "sex of an object": (npy(sex={}), VALUE),
    "infinite ejection fraction": (npy(ejection_fraction=float("inf")), VALUE),
    "no list of leads": (npy(leads=None), VALUE),
    "leads that are numbers": (npy(leads=list(range(12))), VALUE),
    "leads of one text": (npy(leads="I,II"), VALUE),
    "rate of 5000 digits": (npy(sampling_rate_hz=10**4000), VALUE),
    "scale beyond 64 bits": (npy(scale_uv=10**30), SCALE),
    "scale beyond float64": (npy(scale_uv=10**400), VALUE),
    "scale beyond float32": (npy(scale_uv=1e39), SCALE),
    "scale of 0": (npy(scale_uv=0), SCALE),
    "one scale of 0": (npy(scale_uv=[1.0] * 11 + [0]), SCALE),
    "scale below float32": (npy(scale_uv=1e-47), SCALE),
    "offset beyond float32": (npy(offset_adc=1e39), SCALE),
    "float signal of 1e30 volt": (npy(SIGNAL * 1e36), SCALE),
    "deep sidecar": (with_text(npy(), "odd.json", "[" * 100_000), "the sidecar is damaged"),
    "deep object": (with_text(npy(), "odd.json", '{"a":' * 100_000), "the sidecar is damaged"),
    "key of a sidecar twice": (
        with_text(npy(), "odd.json", '{"scale_uv": 1, "sampling_rate_hz": 500, "scale_uv": 2}'),
        "the sidecar is damaged",
    ),
    "long sidecar": (with_text(npy(), "odd.json", " " * (MAX_TEXT_BYTES + 1)), LARGE),
    "sparse sidecar": (sparse(npy(), "odd.json"), LARGE),
    "pipe as sidecar": (with_fifo(npy(), "odd.json"), SPECIAL),
    "date": (npz(day=np.datetime64("2020-01-01")), VALUE),
    "bytes": (npz(code=b"x"), VALUE),
    "complex number": (npz(number=1j), VALUE),
    "complex signal": (npz(signal=SIGNAL * 1j), SHAPE),
    "structured signal": (npz(signal=np.zeros((12, 9), "i4,i4")), SHAPE),
    "signal of no dimension": (npz(signal=5), SHAPE),
    "long label": (npz(more=np.zeros(MAX_TEXT_BYTES + 1, np.uint8)), LARGE),
    "label of many empty lists": (member("x.npy", saved(np.zeros((10**9, 0)))), LARGE),
    "labels that are long together": (
        npz(**{f"x{n}": np.zeros(1 << 19, np.uint8) for n in range(3)}), LARGE,
    ),
    "labels of many empty lists together": (
        npz(**{f"x{n}": np.zeros((1 << 19, 0)) for n in range(3)}), LARGE,
    ),
    "signal twice": (twice("signal.npy"), DAMAGED),
    "rate twice": (twice("sampling_rate_hz.npy"), DAMAGED),
    "packed by another method": (
        member("x.npy", saved(1), packed=zipfile.ZIP_BZIP2), DAMAGED,
    ),
    "sparse archive": (sparse(npz(), "odd.npz"), LARGE),
    "negative side": (shaped("(2, -12, -5000)"), DAMAGED),
    "batch of -1": (shaped("(-1, 12, 5000)"), DAMAGED),
    "batch of none": (shaped("(0, 12, 5000)"), SHAPE),
    "batch of empty rows": (shaped("(10000000000, 0, 5000)"), SHAPE),
    "batch of one value each": (shaped("(10000000000, 1, 1)", "|i1"), "a signal file is cut short"),
    "side of no number": (shaped("(True, 12, 5000)"), DAMAGED),
    "type without bytes": (shaped("(12, 5000)", "<U0"), "a signal file is cut short"),
    "sparse header": (sparse(with_text(npy(), "odd.npy", ""), "odd.npy"), DAMAGED),
    "sparse array": (sparse(shaped("(12, 800000000)"), "odd.npy"), LARGE),
    "sparse batch": (sparse(shaped("(1, 12, 300000000)"), "odd.npy"), LARGE),
    "baseline of 400 digits": (wfdb(gain=f"200({'9' * 400})/mV"), HEADER),
    "baseline beyond float32": (wfdb(gain=f"200({'9' * 40})/mV"), HEADER),
    "baseline beyond 32 bits": (wfdb(gain=f"200({'9' * 15})/mV"), SCALE),
    "gain of 1e50": (wfdb(gain="1e50/mV"), SCALE),
    "infinite gain": (wfdb(gain="1e999/mV"), SCALE),
    "gain of 1e-30": (wfdb(gain="1e-30/mV"), SCALE),
    "sparse header of WFDB": (sparse(wfdb(), "odd.hea"), LARGE),
    "pipe in format 16": (with_fifo(wfdb(), "odd.dat"), SPECIAL),
    "pipe in format 212": (with_fifo(wfdb("212"), "odd.dat"), SPECIAL),
    "pipe in format 24": (with_fifo(wfdb("24"), "odd.dat"), SPECIAL),
    "pipe in format 508": (with_fifo(wfdb("508"), "odd.dat"), SPECIAL),
    "socket": (with_socket, "the file cannot be opened"),
    "lost segment": (joined("lost"), "a segment is missing"),
    "device": (wfdb("212", name="../../../../../../../../dev/zero"), HEADER),
    "address": (wfdb("24", name="a::b"), HEADER),
    "segment of itself": (joined("odd"), "the segments make no record"),
    "many segments": (joined("odd", lines=20_000), LARGE),
    "long skew": (wfdb("212:999999999999"), LARGE),
    "many samples a frame": (wfdb("212x999999999"), LARGE),
    "long in format 24": (wfdb("24", rate="500 999999999999"), LARGE),
    "long in format 212": (wfdb("212", rate="500 999999999999"), "a signal file is cut short"),
    "sparse in format 24": (sparse(wfdb("24", rate="500"), "odd.dat"), LARGE),
    "sparse in format 212": (sparse(wfdb("212", rate="500"), "odd.dat"), LARGE),
    "rate of 0": (wfdb(rate="0 5000"), HEADER),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_one_odd_file_is_quarantined(tmp_path: Path, name: str) -> None:
    odd, reason = ODD[name]
    write_wfdb(tmp_path / "in/good", SIGNAL)
    odd(tmp_path / "in")
    tracemalloc.start()
    try:
        summary = convert_quietly([tmp_path / "in"], tmp_path / "store")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (summary.num_inputs, summary.num_quarantined) == (2, 1)
    with (tmp_path / "store/quarantine.csv").open() as file:
        assert [line["reason"] for line in csv.DictReader(file)] == [reason]
    with (tmp_path / "store.sources.csv").open() as file:
        details = {Path(line["source"]).stem: line["detail"] for line in csv.DictReader(file)}
    assert details["odd"]
    assert not details["good"]
    assert verify_store(tmp_path / "store") == []
    assert peak < 200 << 20  # the sizes above are gigabytes


@pytest.mark.parametrize(
    "odd",
    [
        npy(ejection_fraction="n/a"),
        npy(ejection_fraction=None),
        npz(code="x", flag=True, numbers=[1.5, 2]),
        with_text(npy(), "odd.json", '\ufeff{"scale_uv": 1, "sampling_rate_hz": 500}'),
        member("readme.txt", b"an archive can hold more than arrays"),
        wfdb(gain="1000000/mV"),
    ],
)
def test_what_is_odd_but_clear_is_converted(tmp_path: Path, odd: Odd) -> None:
    (tmp_path / "in").mkdir()
    odd(tmp_path / "in")
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    store = ecgfast.open_store(tmp_path / "store")
    np.testing.assert_array_equal(store.read([0])[0], SIGNAL)
    assert store.records["ejection_fraction"].to_pylist() == [None]
    assert verify_store(tmp_path / "store") == []


def test_a_record_that_grows_when_it_is_resampled_is_refused(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/good", SIGNAL)
    write_wfdb(tmp_path / "in/slow", np.tile(SIGNAL, 10), rate=1)  # 25 million timesteps at 500 Hz
    summary = convert_quietly([tmp_path / "in"], tmp_path / "store")
    assert summary.num_quarantined == 1
    assert "25,000,000 timesteps of 12 signals" in (tmp_path / "store.sources.csv").read_text()


def test_a_packed_array_is_no_larger_than_it_says(tmp_path: Path) -> None:
    """The archive claims 1 KiB for what unpacks to 64 MiB."""
    shaped(f"(12, {(64 << 20) // 12})", "|i1", num_bytes=0)(tmp_path)
    head = (tmp_path / "odd.npy").read_bytes()
    (tmp_path / "odd.npy").unlink()
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("signal.npy", head + bytes(64 << 20))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    size = (len(head) + (64 << 20)).to_bytes(4, "little")
    assert content.count(size) == 2  # of the member and of the directory
    (tmp_path / "a.npz").write_bytes(content.replace(size, (1024).to_bytes(4, "little")))
    (item,) = discover([tmp_path])
    tracemalloc.start()
    with pytest.raises(FormatError):
        read_record(item)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize("dtype", ["<i2", ">i2"])
def test_the_marker_of_invalid_timesteps_holds_in_either_byte_order(
    tmp_path: Path, dtype: str
) -> None:
    signal = SIGNAL.copy()
    signal[3, 10:20] = -32768
    npy(signal.astype(dtype))(tmp_path)
    (item,) = discover([tmp_path])
    record = read_record(item)
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, signal)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """Folders 1,300 deep, each with a header: from the 1,000th on they are too long to open."""
    write_wfdb(tmp_path / "in/good", SIGNAL)
    before = os.getcwd()
    os.chdir(tmp_path / "in")
    try:
        for _ in range(1300):
            os.mkdir("deep")
            os.chdir("deep")
            Path("r.hea").write_bytes(b"")
        yield tmp_path / "in"
        for _ in range(1300):  # what pytest itself could not remove
            os.remove("r.hea")
            os.chdir("..")
            os.rmdir("deep")
    finally:
        os.chdir(before)


def test_folders_of_any_depth_are_counted(deep: Path, tmp_path: Path) -> None:
    summary = convert_quietly([deep], tmp_path / "store")
    assert summary.num_converted == 1
    assert summary.num_quarantined > 700
    assert summary.passed_over["folders whose path is too long"] == 1
