"""Damaged files are refused with a reason, whatever the damage; nothing else may come out."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecgfast.errors import FormatError
from ecgfast.ingest import read_record
from ecgfast.ingest.inventory import discover
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.records import NUM_LEADS, EcgRecord

Edits = list[tuple[int, int, bytes]]

# (position in per mille, bytes removed, bytes put in)
EDITS = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 12), st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)
COMMON = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _damaged(content: bytes, edits: Edits) -> bytes:
    for position, removed, inserted in edits:
        at = len(content) * position // 1000
        content = content[:at] + inserted + content[at + removed :]
    return content


def _read(folder: Path) -> EcgRecord | None:
    """Read the only record of a folder; None when it is refused as it should be."""
    reason, record = "", None
    try:
        record = read_record(discover([folder])[0])
    except FormatError as error:
        reason = str(error)
    if record is None:
        assert reason
        assert "\n" not in reason
        return None
    assert record.signal.shape[0] == NUM_LEADS
    assert record.signal.dtype in (np.int16, np.float32)
    assert np.isfinite(record.scale_uv).all()
    assert record.sampling_rate_hz > 0
    return record


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "cohort"
    write_cohort(folder, num_records=1, num_sites=1, seed=0)
    return folder / "site1"


@COMMON
@given(edits=EDITS)
def test_wfdb_header(pristine: Path, tmp_path: Path, edits: Edits) -> None:
    (tmp_path / "000000.dat").write_bytes((pristine / "000000.dat").read_bytes())
    header = _damaged((pristine / "000000.hea").read_bytes(), edits)
    (tmp_path / "000000.hea").write_bytes(header)
    _read(tmp_path)


@COMMON
@given(edits=EDITS)
def test_wfdb_samples(pristine: Path, tmp_path: Path, edits: Edits) -> None:
    content = (pristine / "000000.dat").read_bytes()
    (tmp_path / "000000.hea").write_bytes((pristine / "000000.hea").read_bytes())
    (tmp_path / "000000.dat").write_bytes(_damaged(content, edits))
    record = _read(tmp_path)
    if record is not None:  # 16-bit sums miss what cancels out, but never a changed length
        assert record.signal.shape == (NUM_LEADS, 5000)


@COMMON
@given(edits=EDITS)
def test_npy(tmp_path: Path, edits: Edits) -> None:
    np.save(tmp_path / "a.npy", np.arange(12 * 40, dtype=np.int16).reshape(12, 40))
    (tmp_path / "a.json").write_text(json.dumps({"sampling_rate_hz": 500, "scale_uv": 1}))
    (tmp_path / "a.npy").write_bytes(_damaged((tmp_path / "a.npy").read_bytes(), edits))
    _read(tmp_path)


@COMMON
@given(edits=EDITS)
def test_npz(tmp_path: Path, edits: Edits) -> None:
    signal = np.arange(12 * 40, dtype=np.int16).reshape(12, 40)
    np.savez_compressed(tmp_path / "a.npz", signal=signal, sampling_rate_hz=500, scale_uv=1.0)
    (tmp_path / "a.npz").write_bytes(_damaged((tmp_path / "a.npz").read_bytes(), edits))
    _read(tmp_path)


@COMMON
@given(edits=EDITS)
def test_sidecar(tmp_path: Path, edits: Edits) -> None:
    np.save(tmp_path / "a.npy", np.zeros((12, 40), np.int16))
    meta = {"sampling_rate_hz": 500, "scale_uv": [1.5] * 12, "age": 61, "x": [1]}
    (tmp_path / "a.json").write_bytes(_damaged(json.dumps(meta).encode(), edits))
    _read(tmp_path)
