"""The codec case measures every installed codec, and only those that give their input back."""

import numpy as np
import pytest

from ecgfast.bench import codec


def _walk(num_records: int) -> np.ndarray:
    steps = np.random.default_rng(0).integers(-9, 10, (num_records, 12, 500))
    return np.cumsum(steps, axis=2).astype(np.int16)


def test_rows_of_every_codec() -> None:
    walk = _walk(3)
    rows = list(codec.measure_signal(walk, "walk", repeats=2, read=lambda index: walk[index]))
    of = {
        metric: {r.provider: r for r in rows if r.metric == metric}
        for metric in ("ratio", "encode", "decode")
    }
    assert {"ecgfast", "zstd-3", "delta+zstd-3"} <= set(of["ratio"])
    assert set(of["encode"]) == set(of["ratio"])
    assert set(of["decode"]) == {*of["ratio"], codec.MEMMAP, codec.STORE_READ}
    assert all(
        row.p50 > 0 and row.n == 2 for row in (*of["encode"].values(), *of["decode"].values())
    )
    assert of["ratio"]["ecgfast"].p50 > of["ratio"]["zstd-3"].p50 > 1


def test_a_lossy_codec_gets_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    lossy = codec.Codec(
        name="lossy",
        encode=lambda signal: [row.tobytes() for row in signal // 2],
        decode=lambda chunks, shape: np.stack(
            [np.frombuffer(chunk, np.int16).reshape(shape) * 2 for chunk in chunks]
        ),
    )
    monkeypatch.setattr(codec, "codecs", lambda: [lossy])
    with pytest.raises(AssertionError, match="lossy does not give its input back"):
        list(codec.measure_signal(_walk(2), "walk", repeats=1))
