"""The median beat: its shape by hand, what disturbs it, and the regression that is fitted on it."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from recordings import convert_quietly, write_wfdb
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from ecgfast.evaluate import planning
from ecgfast.evaluate.baselines import STRENGTHS, Fitted, drawn, median_beat, median_beats
from ecgfast.store.reader import StoreReader, open_store

EIGHT = (0, 1, 6, 7, 8, 9, 10, 11)  # I, II, V1 to V6
QRS = 500 * np.hanning(41)  # 41 timesteps of 2 ms, ADC units
PEAKS = (60, 700, 1400, 2100, 2800, 3500, 4200, 4800)  # the first and last are not whole beats


def spikes(peaks: tuple[int, ...], t_wave: int = 0) -> NDArray[np.int16]:
    """(12, 5000): a QRS complex at each peak, lead after lead larger, and what follows it."""
    signal = np.zeros((12, 5000), np.int16)
    gain = np.arange(1, 13)[:, None]
    for peak in peaks:
        signal[:, peak - 20 : peak + 21] += np.rint(gain * QRS).astype(np.int16)
        signal[:, peak + 70 : peak + 170] += np.rint(t_wave * np.hanning(100)).astype(np.int16)
    return signal


def test_the_median_beat_has_the_shape_of_the_beats() -> None:
    signal = spikes(PEAKS, t_wave=100)
    signal[:, 2050:2250] += np.rint(900 * np.hanning(200)).astype(np.int16)  # one beat of six
    signal[1] += 500  # an offset, which the median of the bins takes away
    scale = np.full((1, 12), 0.5, np.float32)
    scale[0, 6] = -0.5  # V1 is stored upside down
    (beat,) = median_beats(signal[None], scale).reshape(1, 8, 70)
    timesteps = np.zeros((12, 350))
    for lead in range(12):
        timesteps[lead, 125 - 20 : 125 + 21] = (lead + 1) * QRS
        timesteps[lead, 195:295] = 100 * np.hanning(100)
    bins = timesteps.reshape(12, 70, 5).mean(axis=2)
    for got, lead in zip(beat, EIGHT, strict=True):
        sign = -0.5 if lead == 6 else 0.5
        # a beat's place is known to some 4 ms: in that, a QRS complex changes by a fifth
        np.testing.assert_allclose(got[35:], sign * bins[lead][35:], atol=5)
        np.testing.assert_allclose(got, sign * bins[lead], atol=0.2 * np.abs(bins[lead]).max())
        assert np.abs(got).argmax() in (24, 25)


@pytest.mark.parametrize(
    ("peaks", "enough"), [((60, 700, 2000, 3500), True), ((60, 700, 3500), False), ((), False)]
)
def test_fewer_than_three_whole_beats_have_no_median(peaks: tuple[int, ...], enough: bool) -> None:
    (beat,) = median_beats(spikes(peaks)[None], np.ones((1, 12), np.float32))
    assert np.isfinite(beat).all() == enough
    assert np.isnan(beat).all() != enough


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    """Sixty records of two hearts that differ in the T wave; record 59 is flat."""
    folder = tmp_path_factory.mktemp("beats")
    rng = np.random.default_rng(3)
    for number in range(60):
        beats = tuple((300 + 600 * np.arange(8) + rng.integers(-40, 40, 8)).tolist())
        signal = spikes(beats, t_wave=int(60 * (number % 3 == 0) + rng.normal(0, 40)))
        signal = signal + rng.normal(0, 5, signal.shape).astype(np.int16)
        if number == 59:
            signal[:] = rng.integers(0, 2, (12, 1))
        write_wfdb(folder / "in" / f"r{number:02d}", signal)
    convert_quietly([folder / "in"], folder / "store")
    return open_store(folder / "store")


def plan(store: StoreReader, training: slice, validation: slice) -> planning.TestPlan:
    rows = np.arange(len(store))
    return planning.TestPlan(
        target="x=1",
        is_case=rows % 3 == 0,
        patients=rows,
        cohorts={"site 1": {"A": rows[45:], "B": rows[45:]}},
        notes=(),
        training=dict.fromkeys("AB", rows[training]),
        validation=dict.fromkeys("AB", rows[validation]),
    )


def test_the_regression_is_that_of_scikit_learn_with_the_strength_that_validation_likes(
    store: StoreReader,
) -> None:
    models = median_beat(plan(store, slice(0, 33), slice(33, 45)), store)
    got = models["A"]
    assert isinstance(got, Fitted)
    assert models["B"] is got  # of the same records: fitted once
    y, rows = np.arange(60) % 3 == 0, np.arange(60)
    beats = median_beats(store.read(rows), store.scale_uv)
    assert np.isnan(beats[59]).all()
    mean, std = beats[:33].mean(axis=0), beats[:33].std(axis=0)
    z = (beats - mean) / np.where(std > 0, std, 1)
    z[59] = 0  # the mean beat of training
    tried = {c: LogisticRegression(C=c, max_iter=1000).fit(z[:33], y[:33]) for c in STRENGTHS}
    losses = {
        c: log_loss(y[33:45], model.predict_proba(z[33:45])[:, 1]) for c, model in tried.items()
    }
    best = min(losses, key=losses.__getitem__)
    expected = tried[best].predict_proba(z[45:])[:, 1]
    np.testing.assert_allclose(got.probability[45:], expected, atol=1e-4)
    assert np.isnan(got.probability[:45]).all()
    assert got.how == (
        f"fitted on 33 training records, 11 of them cases; C = {best:g}, by validation; 1 tested "
        "records have fewer than 3 whole beats and count as the mean beat"
    )


@pytest.mark.parametrize(
    ("training", "validation", "why"),
    [
        (slice(0, 27), slice(33, 45), "fewer than 10 cases or controls in training"),
        (slice(0, 33), slice(33, 34), "no cases or no controls in validation, by which its "
         "strength is chosen"),
        (slice(0, 33), slice(0, 0), "no cases or no controls in validation, by which its strength "
         "is chosen"),
    ],
)  # fmt: skip
def test_why_there_is_no_regression(
    store: StoreReader, training: slice, validation: slice, why: str
) -> None:
    assert median_beat(plan(store, training, validation), store) == {"A": why, "B": why}


def test_large_sets_are_drawn_by_a_hash_of_the_ids(store: StoreReader) -> None:
    rows = np.arange(10, 50)
    assert drawn(store, rows, most=40) is rows
    chosen = drawn(store, rows, most=15)
    assert len(set(chosen.tolist())) == 15
    assert set(chosen.tolist()) < set(rows.tolist())
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, drawn(store, rows[::-1], most=15))
    assert set(drawn(store, rows, most=14).tolist()) < set(chosen.tolist())


def test_runs_of_other_records_have_other_models(store: StoreReader, tmp_path: Path) -> None:
    both = plan(store, slice(0, 33), slice(33, 45))
    both.training["B"] = np.arange(0, 36)
    models = median_beat(both, store)
    assert isinstance(models["A"], Fitted)
    assert isinstance(models["B"], Fitted)
    assert both.same_training == {"A": "A", "B": "B"}
    assert "36 training records" in models["B"].how
