"""What simple models reach on the records that test each run: age and sex, the median beat.

A logistic regression on the median beat is the simplest model of an ECG that deserves the name.
Beats lie where the slopes of all leads are steepest (`ecgfast_kernels.codec.signals`). From 0.25 s
before to 0.45 s after each, the median of all whole beats is taken, timestep by timestep.
Shapes: N records of the store, n chosen ones, C leads, T timesteps, F bins, B beats.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from ecgfast_kernels.codec.signals import LEADS, NO_BEAT, fingerprints
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.convert.measures import LEAST_TIMESTEPS
from ecgfast.evaluate.cohort import FEWEST, ages, text_column
from ecgfast.evaluate.discrimination import Auroc, PairedTest, delong, delong_paired
from ecgfast.evaluate.planning import TestPlan
from ecgfast.store.reader import StoreReader

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

MOST_RECORDS = 20_000  # of training, and of validation, that are used; those drawn by `drawn`
LEAST_BEATS = 3  # whole ones; a median of fewer takes over what disturbs a single beat
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: the smaller, the simpler the model
_BEFORE, _AFTER, _BIN = 125, 225, 5  # timesteps; five in a bin give 100 Hz
_MS_PER_TIMESTEP = 2
_TO_MIDDLE = 7  # timesteps from a beat's time, where its slope begins, to the middle of the slope
_BLOCK = 256  # records decoded at a time

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A simple model, fitted on the training records of a run.

    Attributes:
        probability: (N,) float64 in [0, 1]; of records that test no run it may be NaN.
        how: what it was fitted on, in words.
    """

    probability: Floats
    how: str


@dataclass(frozen=True, kw_only=True)
class Against:
    """What a simple model reaches on the records that test a run.

    Attributes:
        auroc: of the simple model.
        run_minus: the run's AUROC minus that.
    """

    auroc: Auroc
    run_minus: PairedTest


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One kind of simple model beside every run.

    Attributes:
        cohorts: cohort -> run's name -> what the model reaches.
        how: run's name -> what its model was fitted on, in words.
        not_fitted: run's name -> why there is no such model.
    """

    cohorts: dict[str, dict[str, Against]] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    not_fitted: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The numbers alone, for ``metrics.json``."""
        return {
            "not_fitted": self.not_fitted,
            "how": self.how,
            "cohorts": {
                cohort: {name: asdict(against) for name, against in by_run.items()}
                for cohort, by_run in self.cohorts.items()
            },
        }


def once_per_training(
    plan: TestPlan, fit: Callable[[str], Fitted | str]
) -> dict[str, Fitted | str]:
    """A simple model for each run: runs of the same training and validation records share one.

    Args:
        plan: which records taught and test each run.
        fit: run's name -> the model, or why there is none.
    """
    models: dict[str, Fitted | str] = {}
    for name, first in plan.same_training.items():
        models[name] = models[first] if first in models else fit(name)
    return models


def against(
    plan: TestPlan, scores: Mapping[str, Floats], models: Mapping[str, Fitted | str]
) -> Baseline:
    """Test simple models on the records that test the runs.

    Args:
        plan: which records test each run.
        scores: run's name -> (N,) probabilities of the run.
        models: run's name -> its simple model, or why there is none.
    """
    cohorts: dict[str, dict[str, Against]] = {}
    fitted = {name: model for name, model in models.items() if isinstance(model, Fitted)}
    for cohort, by_run in plan.cohorts.items():
        for name, model in fitted.items():
            if name in by_run:
                rows = by_run[name]
                is_case, patients = plan.is_case[rows], plan.patients[rows]
                own, simple = scores[name][rows], model.probability[rows]
                cohorts.setdefault(cohort, {})[name] = Against(
                    auroc=delong(is_case, simple, patients),
                    run_minus=delong_paired(is_case, own, simple, patients),
                )
    return Baseline(
        cohorts=cohorts,
        how={name: model.how for name, model in fitted.items()},
        not_fitted={name: why for name, why in models.items() if isinstance(why, str)},
    )


def areas_of(baselines: Mapping[str, Baseline], plan: TestPlan, cohort: str) -> dict[str, Auroc]:
    """AUROC of each simple model on a cohort, once for each set of training records.

    Args:
        baselines: what they are called -> of every run.
        plan: that they were tested by.
        cohort: one of the plan.
    """
    first = plan.same_training
    several = len(set(first.values())) > 1
    found: dict[str, Auroc] = {}
    for kind, baseline in baselines.items():
        for name, reached in baseline.cohorts.get(cohort, {}).items():
            label = f"{kind}, trained as {first[name]}" if several else kind
            found.setdefault(label, reached.auroc)
    return found


def age_and_sex(
    records: pa.Table, is_case: NDArray[np.bool_], training: NDArray[np.int64]
) -> Fitted | str:
    """Probabilities from age and sex alone: what a model of the ECG must at least add to.

    A logistic regression with scikit-learn's defaults on standardised columns; an unknown age is
    the median of the training records and has a column that says so.

    Args:
        records: `StoreReader.records`.
        is_case: (N,) bool.
        training: (n,) labelled rows to fit it on.
    Returns:
        The model, or why there is none.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if why := too_few(is_case[training]):
        return why
    age, sex = ages(records), text_column(records, "sex")
    unknown = np.isnan(age)
    columns = [sex == value for value in np.unique(sex[training])]
    if not unknown[training].all():
        columns += [np.where(unknown, np.median(age[training][~unknown[training]]), age), unknown]
    table = np.stack(columns, axis=1).astype(np.float64)
    if not np.ptp(table[training], axis=0).any():
        return "neither age nor sex is known"
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(table[training], is_case[training])
    return Fitted(probability=model.predict_proba(table)[:, 1], how=counted(is_case[training]))


def too_few(is_case: NDArray[np.bool_]) -> str:
    """Why nothing is fitted on training records of (n,) labels; empty where there are enough."""
    if min(is_case.sum(), (~is_case).sum()) < FEWEST:
        return f"fewer than {FEWEST} cases or controls in training"
    return ""


def counted(is_case: NDArray[np.bool_]) -> str:
    """Training records of (n,) labels, in words."""
    return f"fitted on {len(is_case):,} training records, {is_case.sum():,} of them cases"


def median_beat(plan: TestPlan, store: StoreReader) -> dict[str, Fitted | str]:
    """A regression on the median beat for each run, fitted on the run's own training records.

    Args:
        plan: which records taught, validated and test each run.
        store: of these records.
    Returns:
        Run's name -> the model, or why there is none.
    """
    tested = plan.rows_of(None)
    return once_per_training(plan, lambda name: _fit_and_test(plan, store, name, tested))


def _fit_and_test(plan: TestPlan, store: StoreReader, name: str, tested: Rows) -> Fitted | str:
    from sklearn.impute import SimpleImputer  # takes a second
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    training = drawn(store, plan.training[name])
    validation = drawn(store, plan.validation[name])
    if why := too_few(plan.is_case[training]):
        return why
    if len(np.unique(plan.is_case[validation])) < 2:
        return "no cases or no controls in validation, by which its strength is chosen"
    beats_of_training = _beats_of(store, training)
    whole = np.isfinite(beats_of_training).all(axis=1)
    is_case = plan.is_case[training][whole]
    if too_few(is_case):
        return f"too few cases or controls in training have {LEAST_BEATS} whole beats"
    beats_of_validation, of_validation = _beats_of(store, validation), plan.is_case[validation]
    candidates = []
    for strength in STRENGTHS:
        model = make_pipeline(
            SimpleImputer(),  # a record without median beat counts as the mean one of training
            StandardScaler(),
            LogisticRegression(C=strength, max_iter=1000),
        ).fit(beats_of_training[whole], is_case)
        loss = log_loss(of_validation, model.predict_proba(beats_of_validation)[:, 1])
        candidates.append((loss, strength, model))
    _, strength, model = min(candidates, key=lambda each: each[:2])
    probability, num_without = _probabilities(model, store, tested)
    how = f"{counted(is_case)}; C = {strength:g}, by validation"
    if len(training) < len(plan.training[name]):
        how += f"; they are {MOST_RECORDS:,} drawn of {len(plan.training[name]):,}"
    if num_without:
        how += (
            f"; {num_without:,} tested records have fewer than {LEAST_BEATS} whole beats and count "
            "as the mean beat"
        )
    return Fitted(probability=probability, how=how)


def drawn(store: StoreReader, rows: Rows, most: int = MOST_RECORDS) -> Rows:
    """At most so many of (n,) rows, ascending, drawn by a hash of their ids: always the same."""
    if len(rows) <= most:
        return rows
    names = store.records["record_id"].take(rows).to_pylist()
    digests = [hashlib.sha256(name.encode()).digest() for name in names]
    return np.sort(rows[sorted(range(len(rows)), key=digests.__getitem__)[:most]])


def _probabilities(model: "Pipeline", store: StoreReader, rows: Rows) -> tuple[Floats, int]:
    """(N,) probabilities, NaN elsewhere than at (n,) rows, and how many have no median beat."""
    probability, num_without = np.full(len(store), np.nan), 0
    for part, beats in _blocks(store, rows):
        probability[part] = model.predict_proba(beats)[:, 1]
        num_without += int(np.isnan(beats).any(axis=1).sum())
    return probability, num_without


def _beats_of(store: StoreReader, rows: Rows) -> Features:
    return np.concatenate([beats for _, beats in _blocks(store, rows)])


def _blocks(store: StoreReader, rows: Rows) -> Iterator[tuple[Rows, Features]]:
    store.check_digests(rows)
    with log.progress("median beats", total=len(rows)) as advance:
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            yield part, median_beats(store.read(part), store.scale_uv[part])
            advance(len(part))


def median_beats(signal_NCT: NDArray[np.int16], scale_NC: NDArray[np.float32]) -> Features:
    """Median beat of each record.

    Args:
        signal_NCT: (N, 12, T) int16, ADC units, 500 Hz.
        scale_NC: (N, 12) float32, microvolt per unit.
    Returns:
        (N, 560) float32: leads I, II and V1 to V6, of which the four others are sums, 70 bins of
        10 ms each, microvolt about the median of the bins; NaN where fewer than `LEAST_BEATS` lie
        within the record as a whole.
    """
    found = fingerprints(signal_NCT, least_timesteps=LEAST_TIMESTEPS).beats
    window = np.arange(-_BEFORE, _AFTER)
    beats_NCF = np.full((len(signal_NCT), len(LEADS), len(window) // _BIN), np.nan, np.float32)
    for n, times in enumerate(found):
        at = times[times != NO_BEAT].astype(np.int64) // _MS_PER_TIMESTEP + _TO_MIDDLE
        at = at[(at >= _BEFORE) & (at + _AFTER <= signal_NCT.shape[2])]
        if len(at) >= LEAST_BEATS:
            beats_CBT = signal_NCT[n, LEADS][:, at[:, None] + window]
            bins = beats_CBT.reshape(*beats_CBT.shape[:2], -1, _BIN).mean(axis=3, dtype=np.float32)
            beats_NCF[n] = np.median(bins, axis=1)
    beats_NCF -= np.median(beats_NCF, axis=2, keepdims=True)
    beats_NCF *= scale_NC[:, LEADS, None]
    return beats_NCF.reshape(len(beats_NCF), -1)
