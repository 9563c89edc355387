"""What is written down holds: the worked example, checksums, ratios, the NumPy fallback."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from codec_records import KINDS, NATIVE, make
from ecgfast_kernels import codec
from ecgfast_kernels.codec import native
from ecgfast_kernels.codec.format import (
    ERRORS,
    FLAG_WIDE,
    NO_QUANTUM,
    CodecError,
    Header,
    check_shape,
)
from ecgfast_kernels.codec.reference import crc32c, decode_chunk
from ecgfast_kernels.codec.reference_encode import encode_chunk
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"


def test_worked_example() -> None:
    page = (ROOT / "docs" / "format.md").read_text()
    block = re.search(r"### 2\.7.*?```\n(.*?)```", page, re.DOTALL)
    assert block is not None
    chunk = bytes.fromhex(block[1])
    record = np.full((1, 250), 12, np.int16)
    record[0, 100] = 17
    np.testing.assert_array_equal(decode_chunk(chunk), record)
    assert encode_chunk(record) == chunk
    assert codec.encode(record[None]) == [chunk]


def test_every_refusal_has_its_words() -> None:
    page = (ROOT / "docs" / "format.md").read_text()
    table = page[page.index("### 2.4") : page.index("### 2.5")]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)] == list(ERRORS)
    for code, words in ERRORS.items():
        assert words in str(CodecError.from_code(code)), words


def test_an_error_of_no_chunk_and_one_of_no_rule() -> None:
    own = CodecError("x")
    assert (own.code, own.index) == (0, -1)
    unknown = CodecError.from_code(99)
    assert (unknown.code, unknown.index) == (99, 0)
    assert "chunk 0 of the call: status 99" in str(unknown)


def test_where_the_parts_of_a_chunk_begin() -> None:
    """20 columns: 40 bytes of ends behind 16 of header, or 80; 3 columns: 6, and 2 of padding."""
    offsets = [
        Header(flags=flags, num_timesteps=timesteps, num_leads=12, quantum=NO_QUANTUM).data_offset
        for flags, timesteps in ((0, 5000), (FLAG_WIDE, 5000), (0, 750))
    ]
    assert offsets == [56, 96, 24]


@pytest.mark.parametrize("shape", [(1, 250), (16, 65_500)])
def test_allowed_sizes(shape: tuple[int, int]) -> None:
    check_shape(*shape)


@pytest.mark.parametrize(
    "shape", [(0, 250), (17, 250), (1, 0), (1, 249), (1, 251), (1, 65_750), (1, -250)]
)
def test_other_sizes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(CodecError, match=r"must be (in 1\.\.16|a multiple of 250 up to 65500)"):
        check_shape(*shape)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1535, 1536, 1537, 5000, 12_345])
def test_crc32c(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    assert codec.crc32c(data) == codec.crc32c(data.tobytes()) == crc32c(data.tobytes())


def test_crc32c_of_the_standard() -> None:
    assert codec.crc32c(b"123456789") == 0xE3069283  # the check value of every CRC catalogue


def _read(folder: Path, pattern: str) -> NDArray[np.int16]:
    import wfdb

    names = sorted(path.with_suffix("") for path in folder.rglob(pattern))
    signals = [wfdb.rdrecord(str(name), physical=False).d_signal.T for name in names]
    return np.stack(signals).astype(np.int16)


@pytest.mark.parametrize(("folder", "least"), [("ludb", 4.8), ("ptbxl/hr_gt", 4.4)])
def test_ratio_of_real_records(shared_data: Path, folder: str, least: float) -> None:
    signal = _read(shared_data / folder, "*.hea")
    chunks = codec.encode(signal)
    assert signal.nbytes / sum(len(chunk) + 16 for chunk in chunks) >= least  # 16: shard index


def test_ratio_of_georgia_records(shared_data: Path) -> None:
    """Their leads lie on a grid of 4.88, the augmented ones on half of it, all cut."""
    from ecgfast.ingest import read_record
    from ecgfast.ingest.inventory import discover

    items = [i for i in discover([shared_data / "cinc2020"]) if i.record_id.startswith("E")]
    signal = np.stack([read_record(item).signal for item in items])
    chunks = codec.encode(signal)
    assert {(chunk[3], chunk[8:12]) for chunk in chunks} == {(2, (159908).to_bytes(4, "little"))}
    assert signal.nbytes / sum(len(chunk) + 16 for chunk in chunks) >= 5.2


def test_ratio_on_a_coarse_grid(shared_data: Path) -> None:
    """PTB-XL's records, put on the 4.88 grid that the challenge's files have."""
    signal = _read(shared_data / "ptbxl/hr_gt", "*.hea")
    grid = np.trunc(4.88 * np.round(signal / 4.88)).astype(np.int16)
    chunks = codec.encode(grid)
    assert {int.from_bytes(chunk[8:12], "little") for chunk in chunks} == {319816}
    assert grid.nbytes / sum(len(chunk) + 16 for chunk in chunks) >= 5.2


FALLBACK = """
import hashlib, sys, numpy as np
sys.path.insert(0, sys.argv[1])
from codec_records import KINDS, make
from ecgfast_kernels import codec
from ecgfast_kernels.codec import philox, signals
assert codec.backend() == sys.argv[2]
assert not {"torch", "triton"} & set(sys.modules)
signal = np.stack([make(kind, 12, 500) for kind in sorted(KINDS)])
chunks = codec.encode(signal)
lengths = np.array([len(chunk) for chunk in chunks])
at = (b"".join(chunks), np.cumsum(lengths) - lengths, lengths)
mean, std = codec.lead_statistics(signal)
decoded = codec.decode(*at, num_leads=12, num_timesteps=500)
patches = codec.decode_patches(*at, mean, 1 / np.maximum(std, 1), num_timesteps=500)
rows, sums = signals.deinterleave(np.ascontiguousarray(signal[0].T))
parts = (at[0], decoded, patches, mean, std, philox.epoch_order(5000, seed=3, epoch=2), rows, sums)
print(hashlib.sha256(b"".join(bytes(part) for part in parts)).hexdigest(), codec.crc32c(at[0]))
"""


def _digest(backend: str) -> str:
    environment = os.environ | {native.BACKEND_VARIABLE: backend}
    command = [sys.executable, "-W", "error", "-c", FALLBACK, str(HELPERS), backend]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not NATIVE, reason="the native codec was not built")
def test_numpy_gives_the_same_bits_without_torch() -> None:
    assert _digest("numpy") == _digest("portable")


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.BACKEND_VARIABLE, "sse9")
    with pytest.raises(CodecError, match="must be one of avx512vbmi"):
        native.load.__wrapped__()


def test_a_missing_library_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(native.BACKEND_VARIABLE, raising=False)
    monkeypatch.setattr(native, "_NAME", "libnowhere.so")
    monkeypatch.setattr(native._logger, "propagate", True)
    native.load.cache_clear()
    try:
        assert [codec.backend() for _ in range(3)] == ["numpy"] * 3
        assert len(caplog.records) == 1
        assert "install g++" in caplog.text
        record = make("walk", 2, 250)
        assert codec.encode(record[None]) == [encode_chunk(record)]
    finally:
        native.load.cache_clear()


def test_kinds_are_what_they_say() -> None:
    """The shared signals reach RAW, quanta and predictions; else the tests above test little."""
    chunks = {kind: encode_chunk(make(kind, 12, 500)) for kind in KINDS}
    assert chunks["noise"][3] == 1
    assert chunks["gains"][8:12] != chunks["walk"][8:12]
    start = 16 + 4  # after the table of two columns
    assert int.from_bytes(chunks["limb"][start : start + 2], "little") == 0b111110111100
    digests = {hashlib.sha256(chunk).digest() for chunk in chunks.values()}
    assert len(digests) == len(KINDS)
