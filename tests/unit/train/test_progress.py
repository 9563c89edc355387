"""Which epoch of a sweep counts as the best."""

import math

import pytest

from ecgfast.train.classify import Progress


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_rate_whose_weights_overflow_does_not_win(lost: float) -> None:
    progress = Progress().after_epoch(steps=3, loss=lost, auroc=None).next_trial()
    progress = progress.after_epoch(steps=3, loss=0.7, auroc=0.6)
    assert progress.improved
    assert (progress.best_trial, progress.best_loss, progress.best_auroc) == (1, 0.7, 0.6)


def test_an_epoch_that_is_not_lower_is_stale_and_changes_nothing() -> None:
    best = Progress().after_epoch(steps=3, loss=0.5, auroc=0.8)
    for loss in (0.5, math.nan):
        later = best.after_epoch(steps=3, loss=loss, auroc=0.9)
        assert not later.improved
        assert (later.epoch, later.step, later.stale) == (2, 6, 1)
        assert (later.best_loss, later.best_epoch, later.best_auroc) == (0.5, 1, 0.8)
    lower = best.after_epoch(steps=3, loss=0.4, auroc=0.7)
    assert (lower.best_loss, lower.best_epoch, lower.best_auroc) == (0.4, 2, 0.7)


def test_a_sweep_begins_with_nothing_done() -> None:
    expected = {"trial": 0, "epoch": 0, "step": 0, "stale": 0, "best_trial": 0, "best_epoch": 0}
    expected |= {"best_loss": None, "best_auroc": None, "trial_loss": None}
    assert Progress().as_meta() == expected
    assert not Progress().improved


def test_stale_epochs_and_trials_add_up() -> None:
    progress = Progress().after_epoch(steps=4, loss=0.5, auroc=None)
    for _ in range(3):
        progress = progress.after_epoch(steps=4, loss=0.6, auroc=None)
    assert (progress.epoch, progress.step, progress.stale) == (4, 16, 3)
    assert progress.after_epoch(steps=4, loss=0.4, auroc=None).stale == 0
    assert progress.next_trial().next_trial().next_trial().trial == 3
    assert Progress(**progress.as_meta()) == progress


def test_the_next_rate_begins_at_its_own_first_epoch() -> None:
    done = Progress().after_epoch(steps=3, loss=0.5, auroc=0.8)
    done = done.after_epoch(steps=3, loss=0.6, auroc=0.7).next_trial()
    assert (done.trial, done.epoch, done.stale, done.trial_loss, done.step) == (1, 0, 0, None, 6)
    assert not done.improved
    worse = done.after_epoch(steps=3, loss=0.9, auroc=0.6)  # the lowest of its own trial
    assert (worse.trial_loss, worse.stale, worse.best_loss, worse.best_trial) == (0.9, 0, 0.5, 0)
