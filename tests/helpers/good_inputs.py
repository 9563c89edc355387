"""One good input of each kind that a convert reads, written into a folder, to be damaged."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dicom_files
import h5py
import mfer_files
import numpy as np
import scp_files
import xml_files
from scipy.io import savemat

from ecgfast.records import LEADS

SIGNAL = np.random.default_rng(0).integers(-900, 900, (12, 5000)).astype(np.int16)


def header(name: str, storage: str = "16", comments: str = "# Age: 61\n# Dx: 426783006\n") -> bytes:
    """A WFDB header of 12 leads."""
    lines = "".join(f"{name}.dat {storage} 200(0)/mV 16 0 0 0 0 {lead}\n" for lead in LEADS)
    return f"{name} 12 500 5000 12:00:00 01/02/1990\n{lines}{comments}".encode()


def wfdb_16(folder: Path) -> None:
    """A record in format 16."""
    (folder / "a.hea").write_bytes(header("a"))
    (folder / "a.dat").write_bytes(SIGNAL.T.tobytes())


def wfdb_212(folder: Path) -> None:
    """A record of 12 bits."""
    (folder / "a.hea").write_bytes(header("a", "212"))
    samples = SIGNAL.T.reshape(-1, 2) & 0xFFF
    packed = samples[:, 0] + (samples[:, 1].astype(np.uint32) << 12)
    triples = packed.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3]
    (folder / "a.dat").write_bytes(triples.tobytes())


def wfdb_24(folder: Path) -> None:
    """A record that the wfdb package reads."""
    (folder / "a.hea").write_bytes(header("a", "24"))
    (folder / "a.dat").write_bytes(bytes(12 * 5000 * 3))


def segments(folder: Path) -> None:
    """A record joined from two."""
    (folder / "a.hea").write_bytes(b"a/3 12 500 10100\nb 5000\n~ 100\nb 5000\n# Sex: F\n")
    (folder / "b.hea").write_bytes(header("b"))
    (folder / "b.dat").write_bytes(SIGNAL.T.tobytes())


def npy(folder: Path) -> None:
    """Two records in one array, at another rate, with a sidecar."""
    np.save(folder / "a.npy", np.stack([SIGNAL, SIGNAL]))
    meta = {
        **{"sampling_rate_hz": 400, "scale_uv": [4.88] * 12, "offset_adc": 0.0, "leads": LEADS},
        **{"patient_id": "P7", "site": "2", "age": 61, "sex": "F", "ejection_fraction": 35},
        **{"note": "text", "qrs_ms": 97.5},
    }
    (folder / "a.json").write_text(json.dumps(meta))


def npz(folder: Path) -> None:
    """Floats and their metadata in one archive."""
    np.savez(
        folder / "a.npz", signal=SIGNAL / 1000, sampling_rate_hz=500.0, scale_uv=1000, note="x"
    )


def packed_npz(folder: Path) -> None:
    """The same, compressed."""
    np.savez_compressed(folder / "a.npz", signal=SIGNAL, sampling_rate_hz=500, scale_uv=1, age=61)


def dicom(folder: Path) -> None:
    """A waveform object: a rhythm and an averaged beat."""
    beat = dicom_files.group(SIGNAL[:, :600], originality="DERIVED")
    dicom_files.write(folder / "a", beat, dicom_files.group(SIGNAL), PatientID="P7")


def scp(folder: Path) -> None:
    """SCP-ECG without checksums, which would find whatever is damaged."""
    content = bytearray(scp_files.ecg_file(SIGNAL.astype(np.int64), order=1, coding="default"))
    content[:2] = b"\0\0"
    for at in range(22, 6 + content[10], 10):
        start = int.from_bytes(content[at + 6 : at + 10], "little") - 1
        content[start : start + 2] = b"\0\0"
    (folder / "a").write_bytes(content)


def mfer(folder: Path) -> None:
    """MFER in sequences of 500 timesteps."""
    (folder / "a").write_bytes(mfer_files.ecg_file(SIGNAL, block=500))


def edf(folder: Path) -> None:
    """EDF of five frames."""
    fields = ("", "uV", "-32768", "32767", "-32768", "32767", "HP:0.05Hz LP:150Hz", "1000", "")
    widths = (80, 8, 8, 8, 8, 8, 80, 8, 32)
    head = "0".ljust(8) + "X F 01-JAN-1960 X".ljust(80) + " " * 80 + "01.02.9003.04.05"
    head += f"{256 * 13:<8}{'EDF+C':<44}{5:<8}{2:<8}{12:<4}"
    head += "".join(lead.ljust(16) for lead in LEADS)
    head += "".join(field.ljust(width) * 12 for field, width in zip(fields, widths, strict=True))
    frames = [SIGNAL[:, at : at + 1000].tobytes() for at in range(0, 5000, 1000)]
    (folder / "a").write_bytes(head.encode() + b"".join(frames))


def hdf5(folder: Path) -> None:
    """Two records in one dataset."""
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("ecg", data=np.stack([SIGNAL, SIGNAL]) / 1000, compression="gzip")
    (folder / "a.json").write_text('{"sampling_rate_hz": 500, "scale_uv": 1000, "array": "ecg"}')


def matlab(folder: Path) -> None:
    """A packed matrix."""
    savemat(folder / "a.mat", {"val": SIGNAL}, do_compression=True)
    (folder / "a.json").write_text('{"sampling_rate_hz": 500, "scale_uv": 5}')


def matlab_4(folder: Path) -> None:
    """A matrix as the challenges store it."""
    savemat(folder / "a.mat", {"val": SIGNAL}, format="4")
    (folder / "a.json").write_text('{"sampling_rate_hz": 500, "scale_uv": 5}')


def text(folder: Path) -> None:
    """Columns below the names of the leads."""
    lines = [",".join(map(str, row)) for row in SIGNAL.T.tolist()]
    (folder / "a.csv").write_text("\n".join([",".join(LEADS), *lines]))
    (folder / "a.json").write_text('{"sampling_rate_hz": 500, "scale_uv": 5}')


def _xml(folder: Path, write: xml_files.Write) -> None:
    """A short document, so that damage hits more than its samples."""
    leads = dict(zip(LEADS, SIGNAL[:, :2000], strict=True))
    content = write(leads, rate=200).decode("utf-16" if write is xml_files.philips else "latin-1")
    (folder / "a.xml").write_bytes(content.replace('"utf-16"', '"utf-8"').encode())


def muse_xml(folder: Path) -> None:
    """GE MUSE without checksums."""
    _xml(folder, partial(xml_files.muse, checksum=False))


def aecg_xml(folder: Path) -> None:
    """HL7 aECG."""
    _xml(folder, xml_files.aecg)


def philips_xml(folder: Path) -> None:
    """Philips Sierra, packed."""
    _xml(folder, xml_files.philips)


def cardiosoft_xml(folder: Path) -> None:
    """GE CardioSoft."""
    _xml(folder, xml_files.cardiosoft)


def eli_xml(folder: Path) -> None:
    """Mortara ELI."""
    _xml(folder, xml_files.eli)


def schiller_xml(folder: Path) -> None:
    """Schiller."""
    _xml(folder, xml_files.schiller)


def csv(folder: Path) -> None:
    """A table of labels."""
    lines = ["record_id,patient_id,ejection_fraction,label_date,sex,note"]
    lines += [f"r{n},p{n},{30 + n},2020-01-{n + 1:02d},F,text" for n in range(9)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


KINDS: tuple[Callable[[Path], None], ...] = (
    *(wfdb_16, wfdb_16, wfdb_212, wfdb_24, segments, npy, npy, npz, packed_npz, csv),
    *(dicom, dicom, scp, mfer, edf, hdf5, matlab, matlab_4, text),
    *(muse_xml, aecg_xml, philips_xml, cardiosoft_xml, eli_xml, schiller_xml),
)
