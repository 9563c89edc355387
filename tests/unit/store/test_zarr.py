"""zarr-python as the oracle: it reads our stores, and our reader reads its shards."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from changed_stores import change_manifest
from recordings import ecg_like, make_store

import ecgfast
from ecgfast.errors import ShapeError
from ecgfast.store.format import CODECS, LEAD_ARRAYS
from ecgfast.store.zarr_codec import EcgpackCodec  # registers it in a source checkout, too
from ecgfast.vocabulary import Codec

NUM_RECORDS = 40


@pytest.mark.parametrize("codec", CODECS)
def test_zarr_reads_what_we_write(codec: Codec, tmp_path: Path) -> None:
    path, signal = make_store(tmp_path, NUM_RECORDS, codec=codec)
    store, group = ecgfast.open_store(path), zarr.open_group(path / "signals.zarr", mode="r")
    np.testing.assert_array_equal(group["signal"][:], signal)
    for name in LEAD_ARRAYS:
        np.testing.assert_array_equal(group[name][:], getattr(store, name))
    assert group["signal"].shards == (1024, 12, 5000)
    assert group["signal"].chunks == (1, 12, 5000)


@pytest.mark.parametrize("codec", CODECS)
def test_we_read_what_zarr_writes(codec: Codec, tmp_path: Path) -> None:
    path, _ = make_store(tmp_path, NUM_RECORDS, codec=codec)
    other = ecg_like(NUM_RECORDS, seed=99)
    other[7] = 0
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_group(path / "signals.zarr", mode="r+")["signal"][:] = other
    change_manifest(path)  # the digests of the shards, as they are now
    np.testing.assert_array_equal(ecgfast.open_store(path).read(range(NUM_RECORDS)), other)


def test_plain_process(tmp_path: Path) -> None:
    path, signal = make_store(tmp_path, 3)
    # The entry point of an installation, for a checkout that was never installed.
    info = tmp_path / "site" / "ecgfast_entry-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ecgfast-entry\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[zarr.codecs]\necgfast.ecgpack = ecgfast.store.zarr_codec:EcgpackCodec\n"
    )
    code = (
        f"import sys; sys.path.append({str(info.parent)!r}); import zarr\n"
        f"a = zarr.open_group({str(path / 'signals.zarr')!r}, mode='r')['signal']\n"
        f"sys.stdout.buffer.write(a[1].tobytes())"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    assert output == signal[1].tobytes()


def test_all_zero_record_survives(tmp_path: Path) -> None:
    from recordings import convert_quietly, write_wfdb

    write_wfdb(tmp_path / "in" / "zero", np.zeros((12, 5000), np.int16))
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    store = ecgfast.open_store(tmp_path / "store")
    assert not store.read([0]).any()
    assert not store.lead_std.any()
    assert "flat_lead" in store.records["quality"][0].as_py()


def test_a_chunk_of_several_records_is_refused(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "array",
        shape=(4, 12, 5000),
        chunks=(2, 12, 5000),
        dtype="int16",
        serializer=EcgpackCodec(),
        compressors=None,
        fill_value=0,
    )
    with pytest.raises(ShapeError, match=r"must have shape \(1, leads, timesteps\), got \(2, 12"):
        array[:] = ecg_like(4, seed=0)
