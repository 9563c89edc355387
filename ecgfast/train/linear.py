"""The linear layer of a probe: scikit-learn's fit on standardised features, its penalty chosen.

Shapes: R records, K outputs, D features.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ecgfast import log
from ecgfast.runs.task import Binary, Task

Floats = NDArray[np.float64]

_TOLERANCE, _MOST_ITERATIONS = 1e-6, 5000  # of the largest gradient; a fit takes a few hundred


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer on features as they are: their standardisation is folded in.

    Attributes:
        weight: (K, D).
        bias: (K,).
        c: of each output, that was kept.
        tried: C -> loss of each output on validation records.
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
    """Of each output the layer whose C has the lowest loss on validation records.

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
    best_K = losses_CK.argmin(axis=0).tolist()
    return Layer(
        weight=np.stack([fits[best][0][output] for output, best in enumerate(best_K)]),
        bias=np.array([fits[best][1][output] for output, best in enumerate(best_K)]),
        c=[strengths[best] for best in best_K],
        tried=dict(zip(strengths, losses_CK.tolist(), strict=True)),
    )


def fit_layer(
    task: Task, features_RD: NDArray[np.floating], truth_RK: Floats, c: float
) -> tuple[Floats, Floats]:
    """Fit a layer of yes or no on the records that have a label.

    Returns:
        weight (K, D) and bias (K,).
    """
    assert isinstance(task, Binary)  # a probe refuses the others
    layers = []
    for truth_R in truth_RK.T:
        known = ~np.isnan(truth_R)
        scaler = StandardScaler()
        standard_RD = scaler.fit_transform(features_RD[known].astype(np.float64))
        model = LogisticRegression(C=c, tol=_TOLERANCE, max_iter=_MOST_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said below, in a line of ours
            model.fit(standard_RD, truth_R[known] > 0)
        if model.n_iter_.max() >= _MOST_ITERATIONS:
            log.warning(f"C {c:g}: the fit was ended after {_MOST_ITERATIONS} iterations")
        weight_D = model.coef_[0] / scaler.scale_
        layers.append((weight_D, model.intercept_[0] - weight_D @ scaler.mean_))
    return np.stack([weight for weight, _ in layers]), np.array([bias for _, bias in layers])


def _logits(fit: tuple[Floats, Floats], features_RD: NDArray[np.floating]) -> Floats:
    weight_KD, bias_K = fit
    logits: Floats = features_RD.astype(np.float64) @ weight_KD.T + bias_K
    return logits
