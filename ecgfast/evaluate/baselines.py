"""What simple models reach on the records that test each run, and what age and sex alone tell.

Shapes: N records of the store, n chosen ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.evaluate.cohort import FEWEST, ages, text_column
from ecgfast.evaluate.discrimination import Auroc, PairedTest, delong, delong_paired
from ecgfast.evaluate.planning import TestPlan

Floats = NDArray[np.float64]


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
