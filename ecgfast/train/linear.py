"""The linear layer of a probe: scikit-learn's fit on standardised features, its penalty chosen.

Shapes: R records, K outputs, D features, F fits, one for each output or one for all classes.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from ecgfast import log
from ecgfast.runs.column_task import Classes, Number
from ecgfast.runs.task import Task

Floats = NDArray[np.float64]

_TOLERANCE, _MOST_ITERATIONS = 1e-6, 5000  # of the largest gradient; a fit takes a few hundred


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer on features as they are: their standardisation is folded in.

    Attributes:
        weight: (K, D).
        bias: (K,).
        c: of each fit, that was kept.
        tried: C -> loss of each fit on validation records.
    """

    weight: Floats
    bias: Floats
    c: list[float]
    tried: dict[float, list[float]]

    def logits(self, features_RD: NDArray[np.floating]) -> Floats:
        """(R, K)."""
        return _logits((self.weight, self.bias), features_RD)


Part = tuple[NDArray[np.floating], Floats]  # features (R, D) and truth (R, K), NaN where unknown


def chosen_layer(task: Task, train: Part, valid: Part, strengths: Sequence[float]) -> Layer:
    """Of each fit the layer whose C has the lowest loss on validation records.

    Args:
        task: of the outputs.
        train: to fit on.
        valid: to choose by.
        strengths: C to try, the inverse strength of the penalty; the first of equals is kept.
    """
    fits = [fit_layer(task, *train, c) for c in strengths]
    features_RD, truth_RK = valid
    losses_CK = np.stack(
        [np.nanmean(task.cell_losses(_logits(fit, features_RD), truth_RK), axis=0) for fit in fits]
    )
    losses_CF = losses_CK
    if isinstance(task, Classes):  # one fit, with the mean cross-entropy
        losses_CF = losses_CK.mean(axis=1, keepdims=True)
    best_F = losses_CF.argmin(axis=0)
    best_K = np.broadcast_to(best_F, len(task.outputs)).tolist()
    return Layer(
        weight=np.stack([fits[best][0][output] for output, best in enumerate(best_K)]),
        bias=np.array([fits[best][1][output] for output, best in enumerate(best_K)]),
        c=[strengths[best] for best in best_F.tolist()],
        tried=dict(zip(strengths, losses_CF.tolist(), strict=True)),
    )


def fit_layer(
    task: Task, features_RD: NDArray[np.floating], truth_RK: Floats, c: float
) -> tuple[Floats, Floats]:
    """Fit a layer on the records that have a label.

    A number has ridge regression of its standardised value, with the alpha that scikit-learn holds
    to be the same penalty, 1 / (2 C); classes have one multinomial logistic regression, and each
    yes or no one of its own.

    Returns:
        weight (K, D) and bias (K,).
    """
    logistic = LogisticRegression(C=c, tol=_TOLERANCE, max_iter=_MOST_ITERATIONS)
    if isinstance(task, Classes):
        known = ~np.isnan(truth_RK[:, 0])
        weight, bias = _fit(logistic, features_RD[known], truth_RK[known].argmax(axis=1))
        if len(bias) == 1:  # of two classes scikit-learn fits the log odds of the second
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        return weight, bias
    fits = []
    for truth_R in truth_RK.T:
        known = ~np.isnan(truth_R)
        if isinstance(task, Number):
            values = (truth_R[known] - task.mean) / task.sd
            fits.append(_fit(Ridge(alpha=1 / (2 * c)), features_RD[known], values))
        else:
            fits.append(_fit(logistic, features_RD[known], truth_R[known] > 0))
    weights, biases = zip(*fits, strict=True)
    return np.concatenate(weights), np.concatenate(biases)


def _fit(
    model: LogisticRegression | Ridge, features_RD: NDArray[np.floating], of_R: NDArray[Any]
) -> tuple[Floats, Floats]:
    """Weight and bias of a fit on standardised features, for features as they are."""
    scaler = StandardScaler()
    standard_RD = scaler.fit_transform(features_RD.astype(np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said below, in a line of ours
        model.fit(standard_RD, of_R)
    if isinstance(model, LogisticRegression) and model.n_iter_.max() >= _MOST_ITERATIONS:
        log.warning(f"C {model.C:g}: the fit was ended after {_MOST_ITERATIONS} iterations")
    weight = np.atleast_2d(model.coef_) / scaler.scale_
    return weight, np.atleast_1d(model.intercept_) - weight @ scaler.mean_


def _logits(fit: tuple[Floats, Floats], features_RD: NDArray[np.floating]) -> Floats:
    weight_KD, bias_K = fit
    logits: Floats = features_RD.astype(np.float64) @ weight_KD.T + bias_K
    return logits
