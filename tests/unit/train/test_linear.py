"""The layer of a probe of a number and of classes: scikit-learn's own, and the choice of C."""

import logging

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ecgfast.runs.column_task import Classes, Number
from ecgfast.settings import FinetuneConfig
from ecgfast.train import linear
from ecgfast.train.linear import chosen_layer

RANDOM = np.random.default_rng(7)
FEATURES = RANDOM.normal(3, [1, 5, 0.2, 1, 1, 1], (60, 6)).astype(np.float32)
SIGNAL = FEATURES.astype(float) @ [1, 0.4, -3, 0, 0, 0]
TRAIN, VALID = np.arange(40), np.arange(40, 60)
STRENGTHS = (1e-4, 1e-2, 1e-1, 10.0)


def test_a_number_has_the_ridge_regression_that_validates_best() -> None:
    truth = 50 + 8 * SIGNAL + RANDOM.normal(0, 25, 60)
    truth[[3, 45]] = np.nan
    known = [rows[~np.isnan(truth[rows])] for rows in (TRAIN, VALID)]
    fits = [
        make_pipeline(StandardScaler(), Ridge(alpha=1 / (2 * c))).fit(
            FEATURES[known[0]].astype(float), truth[known[0]]
        )
        for c in STRENGTHS
    ]
    losses = [mean_squared_error(truth[known[1]], f.predict(FEATURES[known[1]])) for f in fits]
    best = int(np.argmin(losses))
    assert 0 < best < len(STRENGTHS) - 1
    task = Number(targets=("ef",)).fitted(truth[TRAIN, None], FinetuneConfig())
    parts = [(FEATURES[rows], truth[rows, None]) for rows in (TRAIN, VALID)]
    layer = chosen_layer(task, *parts, STRENGTHS)
    assert layer.c == [STRENGTHS[best]]
    expected = fits[best].predict(FEATURES.astype(float))
    np.testing.assert_allclose(task.mean + task.sd * layer.logits(FEATURES)[:, 0], expected)
    tried = [task.sd**2 * layer.tried[c][0] for c in STRENGTHS]
    np.testing.assert_allclose(tried, losses)


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")])
def test_classes_have_one_logistic_regression_that_validates_best(names: tuple[str, ...]) -> None:
    of_record = np.digitize(
        SIGNAL + RANDOM.normal(0, 2, 60), np.quantile(SIGNAL, [0.4, 0.7][: len(names) - 1])
    )
    truth = np.eye(len(names))[of_record]
    truth[[3, 45]] = np.nan
    known = [rows[~np.isnan(truth[rows, 0])] for rows in (TRAIN, VALID)]
    fits = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-9, max_iter=10_000)).fit(
            FEATURES[known[0]].astype(float), of_record[known[0]]
        )
        for c in STRENGTHS
    ]
    losses = [log_loss(of_record[known[1]], f.predict_proba(FEATURES[known[1]])) for f in fits]
    best = int(np.argmin(losses))
    assert np.ptp(losses) > 0.01
    task = Classes(targets=("kind",), classes=names)
    layer = chosen_layer(task, *((FEATURES[r], truth[r]) for r in (TRAIN, VALID)), STRENGTHS)
    assert layer.c == [STRENGTHS[best]]
    assert layer.weight.shape == (len(names), 6)
    logits = layer.logits(FEATURES)
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = fits[best].predict_proba(FEATURES.astype(float))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose([layer.tried[c][0] for c in STRENGTHS], losses, rtol=1e-4)


def test_a_fit_that_is_ended_early_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(linear, "_MOST_ITERATIONS", 1)
    truth = np.eye(3)[np.digitize(SIGNAL, np.quantile(SIGNAL, [0.3, 0.6]))]
    part = (FEATURES, truth)
    with caplog.at_level(logging.WARNING, logger="ecgfast"):
        chosen_layer(Classes(targets=("kind",), classes=("a", "b", "c")), part, part, [1.0])
    assert "C 1: the fit was ended after 1 iterations" in caplog.text
