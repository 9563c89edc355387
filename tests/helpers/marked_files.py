"""A file of every vendor format, in several encodings, with a marker wherever a name may stand."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import dicom_files
import good_inputs
import h5py
import mfer_files
import numpy as np
import pydicom
import scp_files
import xml_files
from markers import Markers
from scipy.io import savemat

from ecgfast.records import LEADS

SIGNAL = good_inputs.SIGNAL
ENCODINGS = ("utf-8", "utf-16", "iso-8859-1")
EAST_ASIAN = ("shift_jis", "gb18030", "big5", "euc-kr")
WRITERS: tuple[xml_files.Write, ...] = (
    *(xml_files.muse, xml_files.aecg, xml_files.philips, xml_files.cardiosoft),
    *(xml_files.eli, xml_files.schiller),
)


def write_marked(folder: Path, mark: Markers) -> int:
    """Write the files, and each one cut in its middle; returns how many there are of both."""
    folder.mkdir(parents=True, exist_ok=True)
    for write in WRITERS:
        for encoding in (*ENCODINGS, *(EAST_ASIAN if write is xml_files.aecg else ())):
            content = _document(write, encoding, mark)
            (folder / f"{mark(f'name of a file in {encoding}')}.xml").write_bytes(content)
    others: tuple[Callable[[Path, Markers], None], ...] = (_dicom, _scp, _mfer, _edf)
    for write_one in (*others, _hdf5, _matlab, _text):
        write_one(folder / mark("name of a file"), mark)
    whole = [path for path in folder.iterdir() if path.suffix != ".json"]
    for path in whole:
        cut = path.with_name(f"{mark('name of a cut file')}{path.suffix}")
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return len(whole)


def _document(write: xml_files.Write, encoding: str, mark: Markers) -> bytes:
    leads = dict(zip(LEADS, SIGNAL[:, :1000], strict=True))
    content = write(leads, rate=100)
    text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8")
    text = re.sub(r"<\?xml.*?\?>", "", text)
    for word in (xml_files.NAME, xml_files.PATIENT):
        text = re.sub(word, lambda _: mark(f"text in {encoding}"), text)
    return f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding)


def _dicom(path: Path, mark: Markers) -> None:
    group = dicom_files.group(SIGNAL)
    for channel in group.ChannelDefinitionSequence:
        channel.ChannelSourceSequence[0].CodeMeaning = mark("meaning of a code")
        channel.ChannelLabel = mark("label of a channel")
    group.MultiplexGroupLabel = mark("label of a group")
    names = ("PatientID", "PatientName", "InstitutionName", "OperatorsName", "StudyID")
    texts = ("PatientComments", "StudyDescription", "DeviceSerialNumber", "ManufacturerModelName")
    dicom_files.write(path, group, **{each: mark(each) for each in (*names, *texts)})
    dataset = pydicom.dcmread(path)
    block = dataset.private_block(0x11, mark("creator of private elements"), create=True)
    block.add_new(1, "LO", mark("private element"))
    block.add_new(2, "OB", mark("private bytes").encode("utf-16-le"))
    dataset.save_as(path)


def _scp(path: Path, mark: Markers) -> None:
    """Names, id, devices, hospital, physicians, texts; sections 8 and 11: statements."""
    texts = (0, 1, 2, 3, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 30, 31, 33, 35, 200)
    tags = {tag: mark(f"tag {tag}").encode() + b"\0" for tag in texts}
    tags[13] = mark("diagnosis in UTF-16").encode("utf-16-le")
    tags[14] = bytes(8) + mark("model")[:6].encode() + bytes([20, 0, 7]) + bytes(23)
    tags[14] += mark("serial number").encode() + b"\0"
    extra = {each: mark(f"section {each}").encode() * 3 for each in (8, 10, 11)}
    signal = SIGNAL.astype(np.int64)
    path.write_bytes(scp_files.ecg_file(signal, order=1, patient=tags, extra=extra))


def _mfer(path: Path, mark: Markers) -> None:
    """The text encoding changes between names, as it may."""
    define = mfer_files.definition
    before = define(0x03, b"Shift_JIS") + define(0x81, f"山田 {mark('name')}".encode("shift_jis"))
    before += define(0x16, f"所見 {mark('comment')}".encode("shift_jis"))
    before += define(0x17, f"{mark('maker')}^{mark('model')}^1".encode())
    before += define(0x03, b"UTF-16LE") + define(0x82, mark("id").encode("utf-16-le"))
    before += define(0x41, bytes(6) + mark("event").encode()) + define(0x87, mark("uid").encode())
    own = {0: define(0x09, struct.pack("<H", 1) + mark("name of a lead").encode())}
    path.write_bytes(mfer_files.ecg_file(SIGNAL, block=500, before=before, own=own))


def _edf(path: Path, mark: Markers) -> None:
    """EDF+: patient, recording, and the transducer and filters of each lead."""
    folder = path.with_name(f"{path.name}-edf")
    folder.mkdir()
    good_inputs.edf(folder)
    content = bytearray((folder / "a").read_bytes())
    content[8:88] = f"{mark('code')} F 01-JAN-1960 {mark('name')}".encode().ljust(80)
    content[88:168] = f"Startdate X {mark('technician')} {mark('device')}".encode().ljust(80)
    for lead in range(12):
        for first in (256 + 12 * 16, 256 + 12 * (16 + 80 + 8 * 5)):  # transducer, filters
            at = first + 80 * lead
            content[at : at + 80] = mark("text of a lead").encode().ljust(80)
    (folder / "a").unlink()
    folder.rmdir()
    path.write_bytes(content)


def _sidecar(path: Path, mark: Markers, **more: str) -> None:
    meta = {"sampling_rate_hz": 500, "scale_uv": 5, "patient_id": mark("patient of a sidecar")}
    path.with_suffix(".json").write_text(json.dumps(meta | more | {mark("key"): mark("value")}))


def _hdf5(path: Path, mark: Markers) -> None:
    path = path.with_suffix(".h5")
    with h5py.File(path, "w") as file:
        file.attrs[mark("attribute of a file")] = mark("its value")
        dataset = file.create_dataset("ecg", data=SIGNAL)
        dataset.attrs["name"] = mark("attribute in UTF-8")
        file[mark("name of a dataset")] = mark("text of a dataset")
    _sidecar(path, mark, array="ecg")


def _matlab(path: Path, mark: Markers) -> None:
    path = path.with_suffix(".mat")
    savemat(path, {"val": SIGNAL, mark("variable"): mark("text of a variable")})
    _sidecar(path, mark, array="val")


def _text(path: Path, mark: Markers) -> None:
    path = path.with_suffix(".csv")
    lines = [",".join([*map(str, row), mark("cell")]) for row in SIGNAL.T[:300].tolist()]
    lines += [",".join([*map(str, row), "x"]) for row in SIGNAL.T[300:].tolist()]
    path.write_text("\n".join([",".join([*LEADS, mark("name of a column")]), *lines]))
    _sidecar(path, mark)
