"""The readers of `ecgfast convert` beside the best library for each format, on one core.

    pip install ecgdatakit sierraecg
    python benchmarks/format_peers.py ../shared/data [--repeats 20]

Real files where the folder has them, else 12 x 5000 samples from the writers of the tests. Ours is
all that a convert does to get an `EcgRecord`: format recognised, sizes and checksums checked, leads
by name, fields kept, int16. The peers give an array of all leads, and what else they do by
themselves. The page cache is warm; readers take turns, and the time is that of the processor, so
that other work on the machine counts less. Libraries that are not installed are left out. Rows go
to benchmarks/results/DEVICE/formats.jsonl.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import good_inputs
import h5py as h5py_package
import xml_files
from plot import RESULTS

from ecgfast.bench.measuring import append_rows, device_slug, make_rows
from ecgfast.ingest import read_record
from ecgfast.ingest.inventory import discover
from ecgfast.records import LEADS

Read = Callable[[Path], object]


def ecgdatakit(path: Path) -> object:
    from ecgdatakit import FileParser

    return [lead.samples for lead in FileParser().parse(path, auto_scale=False).leads]


def sierraecg(path: Path) -> object:
    import sierraecg

    return [lead.samples for lead in sierraecg.read_file(str(path)).leads]


def pydicom(path: Path) -> object:
    """Raw samples of the rhythm, and the code and scale of each lead."""
    import pydicom

    dataset = pydicom.dcmread(path)
    channels = dataset.WaveformSequence[0].ChannelDefinitionSequence
    leads = [
        (each.ChannelSourceSequence[0].CodeValue, each.ChannelSensitivity) for each in channels
    ]
    return dataset.waveform_array(0), leads


def edfio(path: Path) -> object:
    import edfio

    return np.stack([signal.digital for signal in edfio.read_edf(path).signals])


def h5py(path: Path) -> object:
    with h5py_package.File(path) as file:
        return file["ecg"][()]


def scipy(path: Path) -> object:
    from scipy.io import loadmat

    return loadmat(path)["val"]


def pandas(path: Path) -> object:
    import pandas

    return pandas.read_csv(path).to_numpy().T


def wfdb(path: Path) -> object:
    import wfdb

    return wfdb.rdrecord(str(path.with_suffix("")), physical=False).d_signal


class Case(NamedTuple):
    """A format: a real file below the folder of data, or a writer, and who else reads it."""

    name: str
    source: str | Callable[[Path], None]
    peers: tuple[Read, ...]


def hdf5(folder: Path) -> None:
    """A file of one record: a batch keeps the rows that it has unpacked."""
    with h5py_package.File(folder / "a.h5", "w") as file:
        file.create_dataset("ecg", data=good_inputs.SIGNAL, compression="gzip", shuffle=True)
    (folder / "a.json").write_text('{"sampling_rate_hz": 500, "scale_uv": 5}')


def xml(write: xml_files.Write, folder: Path) -> None:
    (folder / "a.xml").write_bytes(write(dict(zip(LEADS, good_inputs.SIGNAL, strict=True))))


CASES = (
    Case("WFDB 16", good_inputs.wfdb_16, (wfdb,)),
    Case("WFDB 212", good_inputs.wfdb_212, (wfdb,)),
    Case("GE MUSE XML", "vendor/muse/guangxi_teaching_sinus_rhythm.xml", (ecgdatakit,)),
    Case("HL7 aECG", "vendor/triple/Example.xml", (ecgdatakit,)),
    Case("Philips XML", "vendor/philips/3191723_ZZDEMOPTONLY_1-04_orig.xml",
         (ecgdatakit, sierraecg)),
    Case("Mortara ELI XML", partial(xml, xml_files.eli), (ecgdatakit,)),
    Case("CardioSoft XML", partial(xml, xml_files.cardiosoft), ()),
    Case("Schiller XML", partial(xml, xml_files.schiller), ()),
    Case("DICOM", "vendor/triple/Example.dcm", (pydicom, ecgdatakit)),
    Case("SCP-ECG", "vendor/triple/Example.scp", (ecgdatakit,)),
    Case("MFER", good_inputs.mfer, (ecgdatakit,)),
    Case("EDF", good_inputs.edf, (edfio, ecgdatakit)),
    Case("HDF5", hdf5, (h5py,)),
    Case("MATLAB 5", good_inputs.matlab, (scipy,)),
    Case("MATLAB 4", good_inputs.matlab_4, (scipy,)),
    Case("text", good_inputs.text, (pandas,)),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that holds vendor/")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    warnings.simplefilter("ignore")  # of the peers
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as name:
            folder = Path(name)
            if isinstance(case.source, str):
                path = args.data / case.source
                (folder / path.name).symlink_to(path.resolve())
            else:
                case.source(folder)
            measure(case, folder, args.repeats)


def measure(case: Case, folder: Path, repeats: int) -> None:
    """Time the readers of one file in turns, and add their rows."""
    item = discover([folder])[0]
    calls: dict[str, Callable[[], object]] = {"ecgfast": lambda: read_record(item)}
    for peer in case.peers:
        try:
            peer(item.path)
        except ImportError:
            continue
        calls[peer.__name__] = partial(peer, item.path)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):  # the first turn is not counted
        for name, call in calls.items():
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    kilobytes = sum(path.stat().st_size for path in folder.iterdir()) // 1000
    shape = f"{case.name}, {kilobytes:,} KB"
    for name, values in seconds.items():
        numbers = {("throughput", "records/s"): [1 / each for each in values[1:]]}
        rows = list(make_rows(numbers, case="format", provider=name, shape=shape))
        append_rows(RESULTS / device_slug() / "formats.jsonl", rows)
        print(f"{shape:28} {name:12} {rows[0].p50:9,.0f} records/s", flush=True)


if __name__ == "__main__":
    main()
