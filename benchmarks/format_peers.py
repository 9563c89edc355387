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

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer
from plot import RESULTS

from ecgfast.bench import Call, device_slug, make_rows, per_second, show, time_interleaved
from ecgfast.ingest import read_record
from ecgfast.ingest.inventory import discover
from ecgfast.records import LEADS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import good_inputs
import xml_files


def _dicom(library: Any, path: Path) -> object:  # noqa: ANN401 (a module)
    """Raw samples of the rhythm, and the code and scale of each lead."""
    dataset = library.dcmread(path)
    channels = dataset.WaveformSequence[0].ChannelDefinitionSequence
    leads = [(c.ChannelSourceSequence[0].CodeValue, c.ChannelSensitivity) for c in channels]
    return dataset.waveform_array(0), leads


def _hdf5(library: Any, path: Path) -> object:  # noqa: ANN401 (a module)
    with library.File(path) as file:
        return file["ecg"][()]


READERS: dict[str, Callable[[Any, Path], object]] = {  # of a library: itself, a path -> all leads
    "ecgdatakit": lambda library, path: [
        lead.samples for lead in library.FileParser().parse(path, auto_scale=False).leads
    ],
    "sierraecg": lambda library, path: [
        lead.samples for lead in library.read_file(str(path)).leads
    ],
    "pydicom": _dicom,
    "edfio": lambda library, path: np.stack(
        [signal.digital for signal in library.read_edf(path).signals]
    ),
    "h5py": _hdf5,
    "scipy": lambda library, path: library.loadmat(path)["val"],
    "pandas": lambda library, path: library.read_csv(path).to_numpy().T,
    "wfdb": lambda library, path: (
        library.rdrecord(str(path.with_suffix("")), physical=False).d_signal
    ),
}


class Case(NamedTuple):
    """A format: a real file below the folder of data, or a writer, and who else reads it."""

    name: str
    source: str | Callable[[Path], None]
    peers: str = ""


def hdf5(folder: Path) -> None:
    """A file of one record: a batch keeps the rows that it has unpacked."""
    with import_module("h5py").File(folder / "a.h5", "w") as file:
        file.create_dataset("ecg", data=good_inputs.SIGNAL, compression="gzip", shuffle=True)
    (folder / "a.json").write_text('{"sampling_rate_hz": 500, "scale_uv": 5}')


def xml(write: xml_files.Write, folder: Path) -> None:
    (folder / "a.xml").write_bytes(write(dict(zip(LEADS, good_inputs.SIGNAL, strict=True))))


CASES = (
    Case("WFDB 16", good_inputs.wfdb_16, "wfdb"),
    Case("WFDB 212", good_inputs.wfdb_212, "wfdb"),
    Case("GE MUSE XML", "vendor/muse/guangxi_teaching_sinus_rhythm.xml", "ecgdatakit"),
    Case("HL7 aECG", "vendor/triple/Example.xml", "ecgdatakit"),
    Case("Philips XML", "vendor/philips/3191723_ZZDEMOPTONLY_1-04_orig.xml",
         "ecgdatakit sierraecg"),
    Case("Mortara ELI XML", partial(xml, xml_files.eli), "ecgdatakit"),
    Case("CardioSoft XML", partial(xml, xml_files.cardiosoft)),
    Case("Schiller XML", partial(xml, xml_files.schiller)),
    Case("DICOM", "vendor/triple/Example.dcm", "pydicom ecgdatakit"),
    Case("SCP-ECG", "vendor/triple/Example.scp", "ecgdatakit"),
    Case("MFER", good_inputs.mfer, "ecgdatakit"),
    Case("EDF", good_inputs.edf, "edfio ecgdatakit"),
    Case("HDF5", hdf5, "h5py"),
    Case("MATLAB 5", good_inputs.matlab, "scipy"),
    Case("MATLAB 4", good_inputs.matlab_4, "scipy"),
    Case("text", good_inputs.text, "pandas"),
)  # fmt: skip


def main(data: Path, repeats: int = 20) -> None:
    """Read each file in turns, on one core; `data` holds vendor/."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    warnings.simplefilter("ignore")  # of the peers
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as name:
            folder = Path(name)
            if isinstance(case.source, str):
                path = data / case.source
                (folder / path.name).symlink_to(path.resolve())
            else:
                case.source(folder)
            item = discover([folder])[0]
            calls: dict[str, Call] = {"ecgfast": partial(read_record, item)}
            for peer in filter(find_spec, case.peers.split()):
                module = import_module("scipy.io" if peer == "scipy" else peer)
                calls[peer] = partial(READERS[peer], module, item.path)
            times = time_interleaved(calls, repeats=repeats, warmup=1, clock=time.process_time_ns)
            kilobytes = sum(path.stat().st_size for path in folder.iterdir()) // 1000
        for name, ms in times.items():
            rates = {("throughput", "records/s"): per_second(ms, 1)}
            shape = f"{case.name}, {kilobytes:,} KB"
            rows = make_rows(rates, case="format", provider=name, shape=shape)
            show(rows, RESULTS / device_slug() / "formats.jsonl")


if __name__ == "__main__":
    typer.run(main)
