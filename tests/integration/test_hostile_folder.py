"""A folder of files that want to harm: a line each in quarantine.csv, and nothing else."""

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import dicom_files
import good_inputs
import h5py
import mfer_files
import pytest
import scp_files
import xml_files

from ecgfast.records import LEADS

SIGNAL = good_inputs.SIGNAL
BILLION = 10**9
ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
Writer = Callable[..., bytes]
# Each writer, and what says in its documents how many samples there are.
XML: dict[Writer, tuple[str, str]] = {
    xml_files.muse: ("<LeadSampleCountTotal>", "<LeadSampleCountTotal>1000000"),
    xml_files.cardiosoft: ("<ChannelSampleCountTotal>", "<ChannelSampleCountTotal>1000000"),
    xml_files.eli: ('DURATION="', 'DURATION="1000000'),
    xml_files.philips: ('durationperchannel="', 'durationperchannel="1000000'),
    xml_files.aecg: ("", ""),  # their samples are as many as there are
    xml_files.schiller: ("", ""),
}


def documents(secret: Path) -> Iterator[tuple[str, bytes]]:
    """XML that grows, that reads another file, and that claims a billion samples."""
    leads = dict(zip(LEADS, SIGNAL[:, :1000], strict=True))
    for write, (old, new) in XML.items():
        content = write(leads)
        utf16 = write is xml_files.philips
        text = content.decode("utf-16" if utf16 else "latin-1").replace('"utf-16"', '"utf-8"')
        body = text[re.search(r"<[A-Za-z]", text).start() :]  # behind declarations and comments
        for name, entity in (
            ("bomb", f'<!ENTITY e0 "{"x" * 1000}">{ENTITIES}'),
            ("external", f'<!ENTITY e9 SYSTEM "file://{secret}">'),
        ):
            content = f"<!DOCTYPE x [{entity}]>{body.replace('>', '>&e9;', 4)}".encode()
            yield f"{name}-{write.__name__}.xml", content
        if old:
            assert old in text
            yield f"billion-{write.__name__}.xml", text.replace(old, new).encode()


def binaries(folder: Path) -> None:
    """A billion samples in headers of a few bytes, and samples that lie elsewhere."""
    group = dicom_files.group(SIGNAL)
    group.NumberOfWaveformSamples = BILLION
    dicom_files.write(folder / "billion.dcm", group)
    spans = [(1, BILLION)] * 12
    (folder / "billion.scp").write_bytes(scp_files.ecg_file(SIGNAL.astype(int), spans=spans))
    (folder / "billion.mwf").write_bytes(mfer_files.ecg_file(SIGNAL, sequences=BILLION))
    good_inputs.edf(folder)
    edf = (folder / "a").read_bytes()
    (folder / "a").unlink()
    (folder / "billion.edf").write_bytes(edf[:236] + f"{BILLION:<8}"[:8].encode() + edf[244:])
    header = good_inputs.header("billion").replace(b" 5000 ", b" 1000000000 ")
    (folder / "billion.hea").write_bytes(header)
    (folder / "billion.dat").write_bytes(SIGNAL.T.tobytes())
    with h5py.File(folder / "billion.h5", "w") as file:
        file.create_dataset("ecg", (BILLION, 12), "i2", chunks=(1000, 12))
    with h5py.File(folder / "elsewhere.h5", "w") as file:
        file["ecg"] = h5py.ExternalLink("../secret.h5", "/ecg")
    for name in ("billion", "elsewhere"):
        (folder / f"{name}.json").write_text('{"sampling_rate_hz": 500, "scale_uv": 5}')
    traversal = good_inputs.header("traversal").replace(b"traversal.dat", b"../secret.dat")
    (folder / "traversal.hea").write_bytes(traversal)


pytestmark = pytest.mark.slow

# From a small process: one that is started by a large one has its peak of memory, too.
MEASURED = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "ecgfast", *sys.argv[1:]], stderr=subprocess.STDOUT)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime, used.ru_maxrss, file=sys.stderr)
sys.exit(done.returncode)
"""


def test_each_is_one_line_and_nothing_else_happens(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    source, secret = tmp_path / "in", tmp_path / "secret.dat"
    source.mkdir()
    secret.write_bytes(SIGNAL.T.tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["ecg"] = SIGNAL
    for name, content in documents(secret):
        (source / name).write_bytes(content)
    binaries(source)
    hostile = {path.name for path in source.iterdir()} - {"billion.dat"}
    hostile -= {name for name in hostile if name.endswith(".json")}
    (source / "sound.xml").write_bytes(xml_files.aecg(dict(zip(LEADS, SIGNAL, strict=True))))
    (source / "loop").symlink_to(source)
    (source / "round.dcm").symlink_to(source / "about.dcm")
    (source / "about.dcm").symlink_to(source / "round.dcm")
    os.mkfifo(source / "pipe.xml")
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "in"}

    out = tmp_path / "out"
    options = ["convert", source, "--out", out, "--workers", "1", "--keep-identifiers"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, options)], capture_output=True, text=True
    )
    text = done.stdout
    assert done.returncode == 0, text + done.stderr
    seconds, kibibytes = map(float, done.stderr.splitlines()[-1].split())
    assert seconds < 60, "of processor time"
    assert kibibytes < 1 << 20, "under a GiB"

    with (tmp_path / "out.sources.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert Counter(Path(line["source"]).name for line in lines) == Counter([*hostile, "sound.xml"])
    with (out / "quarantine.csv").open() as file:
        reasons = {line["record_id"]: line["reason"] for line in csv.DictReader(file)}
    assert len(reasons) == len(hostile)
    assert set(reasons.values()) <= {
        *("the file is damaged", "the header is damaged", "the file is too large"),
        *("a signal file is cut short", "cannot be read as a 12-lead ECG", "a checksum differs"),
        "the array has another shape or type",
    }
    assert "1 pipe, socket or device" in text
    assert "2 broken links" in text
    after = {
        path: path.lstat().st_mtime_ns
        for path in tmp_path.rglob("*")
        if path.name != "in" and not path.relative_to(tmp_path).parts[0].startswith("out")
    }
    assert after == before
