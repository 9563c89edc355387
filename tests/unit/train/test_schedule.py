"""Stages of a trial and their learning rates."""

import pytest

from ecgfast.settings import FinetuneConfig
from ecgfast.train.sweep import stages


def rates(stage_number: int, *steps: int, **settings: object) -> list[float]:
    """Of some steps of a stage, two steps an epoch."""
    config = FinetuneConfig(epochs=6, **settings)  # type: ignore[arg-type]  # of many types
    stage = stages(config, 0.01)[stage_number]
    return [stage.learning_rate_at(step, 2) for step in steps]


def test_the_rate_is_constant_unless_asked_for() -> None:
    assert rates(0, 0, 5, 11) == [0.01, 0.01, 0.01]


def test_the_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    settings = {"warmup_epochs": 2.0, "schedule": "cosine"}
    found = rates(0, 0, 1, 4, 8, 12, **settings)
    assert found == pytest.approx([0, 0.0025, 0.01, 0.005, 0], abs=1e-12)
    assert rates(0, 3, 4, 11, warmup_epochs=2.0) == pytest.approx([0.0075, 0.01, 0.01])


def test_a_probe_comes_first_at_its_own_constant_rate() -> None:
    settings = {"probe_epochs": 3, "probe_lr": 0.5, "warmup_epochs": 2.0, "schedule": "cosine"}
    probe, rest = stages(FinetuneConfig(epochs=6, patience=2, **settings), 0.01)  # type: ignore[arg-type]  # of many types
    assert (probe.begin, probe.end, probe.frozen) == (0, 3, True)
    assert probe.patience >= 3  # none: it is short
    assert (rest.begin, rest.end, rest.frozen, rest.patience) == (3, 9, False, 2)
    assert rates(0, 0, 5, **settings) == [0.5, 0.5]
    assert rates(1, 0, 4, 12, **settings) == pytest.approx([0, 0.01, 0], abs=1e-12)


def test_a_frozen_run_is_one_stage_with_the_settings_of_the_sweep() -> None:
    (only,) = stages(FinetuneConfig(frozen=True, warmup_epochs=1.0), 0.01)
    assert (only.frozen, only.begin, only.end, only.peak) == (True, 0, 30, 0.01)
    assert only.warmup_epochs == 1
