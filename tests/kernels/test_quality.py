"""Measures of a signal's quality: native against NumPy, and both against hand-made leads."""

from collections.abc import Iterator

import numpy as np
import pytest
from ecgfast_kernels.codec import CodecError, native
from ecgfast_kernels.codec.quality import BLOCK, ENDS, SEGMENT, LeadMeasures, lead_measures
from numpy.typing import NDArray

TIME_S = np.arange(5000) / 500


@pytest.fixture(params=["native", "numpy"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Measure with the native library, then with NumPy."""
    native.load.cache_clear()
    if request.param == "numpy":
        monkeypatch.setenv(native.BACKEND_VARIABLE, "numpy")
    elif native.load() is None:
        pytest.skip("the native codec was not built")
    yield request.param
    native.load.cache_clear()


def measured(
    *leads: NDArray[np.float64], valid: NDArray[np.bool_] | None = None, limit: float = 100
) -> LeadMeasures:
    """Of one record whose first leads are these, and the others zero."""
    signal = np.zeros((1, 12, 5000), np.int16)
    signal[0, : len(leads)] = np.rint(leads)
    mask = None if valid is None else np.broadcast_to(valid, signal.shape)
    return lead_measures(signal, mask, np.full((1, 12), limit, np.float32), spike_leads=2)


def noisy_records(seed: int) -> NDArray[np.int16]:
    rng = np.random.default_rng(seed)
    signal = np.cumsum(rng.normal(0, 20, (6, 12, 5000)), axis=2)
    signal[1, 3] = 7
    signal[2, :, 4000:] = 0
    signal[3] = np.clip(signal[3], -300, 300)
    signal[4, ::2, ::400] += 900
    signal[5] = rng.integers(-32768, 32768, (12, 5000))
    return signal.astype(np.int16)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("timesteps", [5000, 2500, 800])
def test_the_native_library_measures_as_numpy(
    masked: bool, timesteps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal = noisy_records(1)[:, :, :timesteps]
    rng = np.random.default_rng(2)
    valid = rng.random(signal.shape) > 0.01 if masked else None
    if valid is not None:
        valid[2, :, 700:], valid[4, :6] = False, False
    limit = np.full(signal.shape[:2], 150, np.float32)
    native.load.cache_clear()
    if native.load() is None:
        pytest.skip("the native codec was not built")
    ours = lead_measures(signal, valid, limit, spike_leads=3)
    native.load.cache_clear()
    monkeypatch.setenv(native.BACKEND_VARIABLE, "numpy")
    try:
        theirs = lead_measures(signal, valid, limit, spike_leads=3)
    finally:
        native.load.cache_clear()
    for name, one, other in zip(LeadMeasures._fields, ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-4, err_msg=name)


@pytest.mark.usefixtures("library")
def test_amplitude_and_level_of_a_beat() -> None:
    beat = 400 * np.exp(-(((np.arange(5000) % 400) - 200) ** 2) / 200)
    found = measured(1000 + beat, -1000 - beat)
    np.testing.assert_allclose(found.up[0, :3], [400, 0, 0], atol=1)
    np.testing.assert_allclose(found.down[0, :3], [0, 400, 0], atol=1)
    np.testing.assert_allclose(found.level[0, :3], [1000, -1000, 0], atol=1)
    assert (found.high[0, 0], found.low[0, 1]) == (1400, -1400)
    assert found.wander[0].max() < 1


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("std", [5, 50])
def test_noise_is_its_standard_deviation(std: float) -> None:
    noise = np.random.default_rng(0).normal(0, std, 5000)
    wave = 1000 * np.sin(2 * np.pi * 3 * TIME_S)  # as slow as a heart's T waves
    assert measured(noise).noise[0, 0] == pytest.approx(std, rel=0.05)
    assert measured(noise + wave).noise[0, 0] == pytest.approx(std, rel=0.1)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("hz", "share"), [(50, 1), (60, 1), (50.2, 0.908), (55, 0), (40, 0)])
def test_mains_is_the_amplitude_at_50_or_60_hz(hz: float, share: float) -> None:
    found = measured(200 * np.sin(2 * np.pi * hz * TIME_S + 0.7))
    assert found.mains[0, 0] == pytest.approx(200 * share, abs=4)
    drift = measured(1000 * TIME_S)
    assert drift.mains[0, 0] < 5


@pytest.mark.usefixtures("library")
def test_wander_is_the_range_of_the_levels() -> None:
    found = measured(300 * np.sin(2 * np.pi * 0.1 * TIME_S), 100 * TIME_S)
    assert found.wander[0, 0] == pytest.approx(600, rel=0.1)
    assert found.wander[0, 1] == pytest.approx(100 * 7 * SEGMENT / 500, abs=3)


@pytest.mark.usefixtures("library")
def test_the_longest_constant_stretch_in_whole_blocks() -> None:
    lead = np.arange(5000) % 11.0
    lead[ENDS + 5 * BLOCK : ENDS + 9 * BLOCK] = 3  # beside it another value, as constant
    lead[ENDS + 9 * BLOCK : ENDS + 11 * BLOCK] = 4
    valid = np.ones(5000, bool)
    found = measured(lead, valid=valid)
    assert (found.flat[0, 0], found.flat[0, 1]) == (4 * BLOCK, 8 * SEGMENT)
    valid[ENDS + 6 * BLOCK] = False
    assert measured(lead, valid=valid).flat[0, 0] == 3 * BLOCK - BLOCK


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("run", "times", "held"), [(3, 9, 0), (4, 5, 20), (7, 3, 21), (4, 1, 4), (0, 0, 0)]
)
def test_how_long_the_largest_value_is_held(run: int, times: int, held: int) -> None:
    lead = np.arange(5000) % 11.0
    lead[350] = 500
    for start in range(times):
        lead[400 + 30 * start : 400 + 30 * start + run] = 500
    found = measured(lead, -lead)
    assert (found.held_high[0, 0], found.held_low[0, 1]) == (held, held)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("width", "height", "leads", "counted"),
    [(1, 101, 2, 5), (2, 101, 2, 5), (1, 100, 2, 0), (1, 101, 1, 0), (5, 1000, 2, 0)],
)
def test_spikes(width: int, height: int, leads: int, counted: int) -> None:
    lead = np.zeros(5000)
    for start in range(5):
        lead[500 + 731 * start : 500 + 731 * start + width] = height
    signs = [1, -1][:leads]
    found = measured(*(sign * lead for sign in signs))
    assert found.spikes[0] == counted


@pytest.mark.usefixtures("library")
def test_segments_that_are_not_valid_do_not_count() -> None:
    lead = np.random.default_rng(0).normal(0, 5, 5000)
    valid = np.ones(5000, bool)
    lead[2500:], valid[2500:] = 30_000, False
    found = measured(lead, lead, valid=valid)
    assert found.wander[0, 0] < 10
    assert found.high[0, 0] < 100
    assert found.spikes[0] == 0
    nothing = measured(lead, valid=np.zeros(5000, bool))
    assert not any(np.any(each) for each in nothing)


def test_what_has_another_shape_is_refused() -> None:
    limit = np.ones((1, 12), np.float32)
    for shape in ((1, 11, 5000), (1, 12, 799), (12, 5000)):
        with pytest.raises(CodecError, match="signal must be int16"):
            lead_measures(np.zeros(shape, np.int16), None, limit, spike_leads=1)
    signal = np.zeros((1, 12, 5000), np.int16)
    with pytest.raises(CodecError, match="valid must have"):
        lead_measures(signal, np.ones((1, 12, 4999), bool), limit, spike_leads=1)
    with pytest.raises(CodecError, match="spike_limit must be"):
        lead_measures(signal, None, limit[0], spike_leads=1)
