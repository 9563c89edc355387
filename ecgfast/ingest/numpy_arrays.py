"""Format NumPy: one record or a batch in a .npy with a sidecar (`sidecar`), or one in a .npz.

ecg.npy    (12, T), (T, 12) or a batch (N, 12, T)
ecg.npz    the same in one file: array "signal", and each key of the sidecar as an array
"""

from pathlib import Path

from ecgfast.ingest.format import Format
from ecgfast.ingest.numpy_files import batch_size, read_npy, read_npz
from ecgfast.ingest.sidecar import companions, read_sidecar, record_of
from ecgfast.records import EcgRecord


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read one record of a NumPy file.

    Args:
        path: .npy or .npz.
        record_id: of the record.
        row: position in a batch file, None otherwise.
    Returns:
        int16 ADC units where the array holds integers that fit, else float32 microvolt.
    Raises:
        FormatError: the file is damaged, or array and sidecar do not describe an ECG.
    """
    if path.suffix.lower() == ".npz":
        meta = read_npz(path)
        array = meta["signal"]
    else:
        array = read_npy(path, row)  # first: a file that is lost or empty needs no sidecar
        meta = read_sidecar(path)
    return record_of(array, meta, name=path.name, record_id=record_id, code="numpy")


def _num_rows(path: Path) -> int | None:
    return batch_size(path) if path.suffix.lower() == ".npy" else None


FORMAT = Format(
    name="NumPy arrays (.npy with .json, .npz)",
    tried=True,
    keeps="ADC units, rate; age, sex, site, patient, ejection fraction; other keys by --columns",
    recognises=lambda head: head.content.startswith(b"\x93NUMPY"),
    read=read,
    has_sidecar=True,
    num_rows=_num_rows,
    suffixes=(".npy", ".npz"),
    companions=companions,
)
