"""Every normalisation mode against its definition, computed in fp64 from microvolts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_stores import change_lead_value
from numpy.typing import NDArray
from recordings import convert_quietly, ecg_like, make_store

from ecgfast.data.normalise import (
    MODES,
    CohortStatistics,
    LeadStatistics,
    Normalisation,
    cohort_statistics,
    training_rows,
)
from ecgfast.errors import ConfigError
from ecgfast.store.reader import StoreReader, open_store


@pytest.fixture(scope="module")
def microvolt(small_store: StoreReader) -> NDArray[np.float64]:
    signal = small_store.read(np.arange(len(small_store))).astype(np.float64)
    offset, scale = small_store.offset_adc[..., None], small_store.scale_uv[..., None]
    return (signal - offset) * scale


def _apply(store: StoreReader, mode: str, **options: Any) -> NDArray[np.float64]:
    mean, rstd = Normalisation(mode=mode, **options).mean_and_rstd(store)
    signal = store.read(np.arange(len(store))).astype(np.float64)
    return (signal - mean[..., None]) * rstd[..., None]


def test_record_lead_gives_each_lead_mean_0_and_deviation_1(small_store: StoreReader) -> None:
    z = _apply(small_store, "record_lead")
    np.testing.assert_allclose(z.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(-1), 1, rtol=1e-5)


def test_record_keeps_relative_amplitudes(
    small_store: StoreReader, microvolt: NDArray[np.float64]
) -> None:
    z = _apply(small_store, "record")
    spread = microvolt.std(-1)
    expected = spread / np.sqrt((spread**2).mean(-1, keepdims=True))
    np.testing.assert_allclose(z.std(-1), expected, rtol=1e-5)


def test_cohort_lead_uses_the_training_split_only(
    small_store: StoreReader, microvolt: NDArray[np.float64]
) -> None:
    split = np.array(small_store.records["split"].to_pylist())
    rows = np.flatnonzero(split == "train")
    assert {"train", "valid"} <= set(split)
    np.testing.assert_array_equal(training_rows(small_store), rows)
    z = _apply(small_store, "cohort_lead")
    pooled = microvolt[rows].transpose(1, 0, 2).reshape(12, -1)
    expected = (microvolt - pooled.mean(1)[:, None]) / pooled.std(1)[:, None]
    np.testing.assert_allclose(z, expected, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_an_inverted_gain_changes_nothing_in_microvolt(mode: str) -> None:
    """A lead with a gain below 0 is stored upside down; its microvolts are like any other's."""
    signal_NCT = np.random.default_rng(0).integers(-900, 900, (3, 12, 200)).astype(np.float64)
    scale_NC = np.full((3, 12), 5.0, np.float32)
    scale_NC[1, 4] = -2.5
    offset_NC = np.full((3, 12), 30.0, np.float32)
    microvolt_NCT = (signal_NCT - offset_NC[..., None]) * scale_NC[..., None]
    statistics = LeadStatistics(
        scale_uv=scale_NC,
        offset_adc=offset_NC,
        lead_mean=signal_NCT.mean(2).astype(np.float32),
        lead_std=signal_NCT.std(2).astype(np.float32),
    )
    mean_C, std_C = np.arange(12.0), np.arange(100.0, 112.0)
    cohort = CohortStatistics(mean_uv=tuple(mean_C), std_uv=tuple(std_C))
    mean, rstd = Normalisation(mode=mode, cohort=cohort).mean_and_rstd(statistics)
    z_NCT = (signal_NCT - mean[..., None]) * rstd[..., None]
    centred_NCT = microvolt_NCT - microvolt_NCT.mean(2, keepdims=True)
    expected = {
        "record_lead": centred_NCT / centred_NCT.std(2, keepdims=True),
        "record": centred_NCT / np.sqrt((centred_NCT**2).mean((1, 2), keepdims=True)),
        "cohort_lead": (microvolt_NCT - mean_C[:, None]) / std_C[:, None],
        "none": microvolt_NCT / 1000,
    }
    np.testing.assert_allclose(z_NCT, expected[mode], rtol=1e-5, atol=1e-5)


def test_a_record_of_some_leads_has_their_deviation(
    small_store: StoreReader, microvolt: NDArray[np.float64]
) -> None:
    z = _apply(small_store, "record", leads=("II", "V1"))[:, [1, 6]]
    centred = (microvolt - microvolt.mean(2, keepdims=True))[:, [1, 6]]
    expected = centred / np.sqrt((centred**2).mean((1, 2), keepdims=True))
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-4)


def test_cohort_statistics_of_an_inverted_gain(tmp_path: Path) -> None:
    path, signal_NCT = make_store(tmp_path, 2)
    change_lead_value(path, "scale_uv", 1, 4, -2.5)
    microvolt_NCT = 5.0 * signal_NCT
    microvolt_NCT[1, 4] *= -0.5
    cohort = cohort_statistics(open_store(path), np.array([0, 1]))
    pooled = microvolt_NCT.transpose(1, 0, 2).reshape(12, -1)
    np.testing.assert_allclose(cohort.mean_uv, pooled.mean(1), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(cohort.std_uv, pooled.std(1), rtol=1e-5)


def test_an_absurd_gain_below_0_counts_as_little_as_one_above(tmp_path: Path) -> None:
    path, signal_NCT = make_store(tmp_path, 2)
    lead_T = 5000.0 * signal_NCT[1, 4]
    assert abs(lead_T.mean()) < 1e6  # below 1 V: the deviation alone, over 100 mV, is absurd
    assert lead_T.std() > 1e5
    for gain in (5000.0, -5000.0):
        change_lead_value(path, "scale_uv", 1, 4, gain)
        store = open_store(path)
        cohort = cohort_statistics(store, np.array([0, 1]))
        assert cohort == cohort_statistics(store, np.array([0]))


def test_cohort_statistics_travel(small_store: StoreReader) -> None:
    elsewhere = cohort_statistics(small_store, np.array([0, 1]))
    own = _apply(small_store, "cohort_lead")
    assert not np.allclose(_apply(small_store, "cohort_lead", cohort=elsewhere), own)


def test_none_gives_millivolt(small_store: StoreReader, microvolt: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(_apply(small_store, "none"), microvolt / 1000, atol=1e-6)


def test_cohort_statistics_need_records(small_store: StoreReader) -> None:
    with pytest.raises(ConfigError, match="got 0; assign splits"):
        cohort_statistics(small_store, np.array([], np.int64))


def test_unknown_mode_names_the_allowed_ones(small_store: StoreReader) -> None:
    with pytest.raises(ConfigError, match=r"record_lead, record, cohort_lead, none, got 'zscore'"):
        Normalisation(mode="zscore").mean_and_rstd(small_store)


@pytest.fixture(scope="module")
def with_a_wrong_gain(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    """Four ECGs in microvolt, the last of which claims that its ADC units are tenths of a volt."""
    folder = tmp_path_factory.mktemp("wrong_gain")
    for number, signal in enumerate(ecg_like(4, seed=5)):
        (folder / "in").mkdir(exist_ok=True)
        np.save(folder / f"in/r{number}.npy", signal)
        scale = 1e5 if number == 3 else 1.0
        (folder / f"in/r{number}.json").write_text(
            json.dumps({"sampling_rate_hz": 500, "scale_uv": scale})
        )
    convert_quietly([folder / "in"], folder / "store")
    return open_store(folder / "store")


def test_one_absurd_gain_does_not_change_the_statistics_of_a_cohort(
    with_a_wrong_gain: StoreReader,
) -> None:
    store = with_a_wrong_gain
    wrong = store.scale_uv[:, 0] == 1e5
    everything = np.arange(len(store))
    assert wrong.sum() == 1
    assert cohort_statistics(store, everything) == cohort_statistics(store, everything[~wrong])
    with pytest.raises(ConfigError, match="needs training records below 100 mV, got 1 above"):
        cohort_statistics(store, everything[wrong])


@pytest.mark.parametrize("mode", MODES)
def test_one_absurd_gain_gives_no_infinite_value(with_a_wrong_gain: StoreReader, mode: str) -> None:
    store = with_a_wrong_gain
    cohort = cohort_statistics(store, np.arange(len(store)))
    z = _apply(store, mode, **({"cohort": cohort} if mode == "cohort_lead" else {}))
    with np.errstate(over="ignore"):
        assert np.isfinite(z.astype(np.float16)).all()
    right = store.scale_uv[:, 0] == 1
    assert (z[right].std(-1) > 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_some_rows_are_normalised_as_in_the_whole_store(
    mode: str, small_store: StoreReader
) -> None:
    rows = np.array([9, 2, 30])
    cohort = cohort_statistics(small_store, np.array([0, 1]))
    normalisation = Normalisation(mode=mode, cohort=cohort)
    whole = normalisation.mean_and_rstd(small_store)
    for found, expected in zip(
        normalisation.mean_and_rstd(LeadStatistics.of(small_store, rows)), whole, strict=True
    ):
        np.testing.assert_array_equal(found, expected[rows])
