"""The formats that the comparison of loaders writes: those of the chosen peers, and no others."""

import sys
from pathlib import Path

import numpy as np
import pytest
from recordings import convert_quietly, ecg_like, write_wfdb

from ecgfast.store import open_store

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_only_the_chosen_formats_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(sys.modules, "h5py", None)  # as where it is not installed
    from loader_peers import PEERS, prepare

    signal_NCT = ecg_like(3, seed=0)
    for number, signal in enumerate(signal_NCT):
        write_wfdb(tmp_path / f"in/{number}", signal)
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    store = open_store(tmp_path / "store")
    prepare(store, tmp_path, ["memmap-int16", "wfdb.rdsamp"])
    written = {path.name for path in tmp_path.iterdir() if path.is_dir()} - {"in", "store"}
    assert written == {"memmap-int16", "wfdb.rdsamp"}
    raw = np.fromfile(tmp_path / "memmap-int16/signal", np.int16)
    np.testing.assert_array_equal(np.sort(raw), np.sort(signal_NCT.ravel()))
    headers = {path.name for path in (tmp_path / "wfdb.rdsamp").glob("*.hea")}
    assert headers == {f"{number}.hea" for number in range(3)}
    with pytest.raises(ImportError):
        prepare(store, tmp_path, [name for name in PEERS if name == "h5py"])
