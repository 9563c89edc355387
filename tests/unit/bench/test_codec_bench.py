"""The codec case measures every installed codec, and only those that give their input back."""

from pathlib import Path

import numpy as np
import pytest
from recordings import make_store

from ecgfast.bench import codec
from ecgfast.store import open_store


def test_rows_of_every_codec(tmp_path: Path) -> None:
    make_store(tmp_path, 3)
    rows = list(codec.measure_store(open_store(tmp_path / "store"), "walk", repeats=2))
    of = {
        metric: {r.provider: r for r in rows if r.metric == metric}
        for metric in ("ratio", "encode", "decode")
    }
    assert {"ecgfast", "zstd-3"} <= set(of["encode"])
    assert set(of["ratio"]) == {*of["encode"], codec.STORE_READ}
    assert set(of["decode"]) == set(of["ratio"])
    assert all(
        row.p50 > 0 and row.n == 2 for row in (*of["encode"].values(), *of["decode"].values())
    )
    assert of["ratio"]["ecgfast"].p50 > of["ratio"]["zstd-3"].p50 > 1


def test_a_lossy_codec_gets_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lossy = codec.Codec(
        name="lossy",
        encode=lambda signal: [row.tobytes() for row in signal // 2],
        decode=lambda chunks, shape: np.stack(
            [np.frombuffer(chunk, np.int16).reshape(shape) * 2 for chunk in chunks]
        ),
    )
    make_store(tmp_path, 2)
    monkeypatch.setattr(codec, "codecs", lambda: [lossy])
    with pytest.raises(AssertionError, match="lossy does not give its input back"):
        list(codec.measure_store(open_store(tmp_path / "store"), "walk", repeats=1))
