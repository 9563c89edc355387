"""What a pretraining run is made of, before its first step."""

from pathlib import Path

import numpy as np
import pytest
from toy import toy_config, toy_model
from training_runs import make_store, preset

from ecgfast.config import load_config
from ecgfast.data.normalise import Normalisation
from ecgfast.model.build import build_model
from ecgfast.model.mae import EVALUATION_EPOCH
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.train.distributed import Ranks
from ecgfast.train.optim import MasterAdamW
from ecgfast.train.pretrain import _num_steps, memory_probe, model_inputs
from ecgfast.train.validation import heldout_validation


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return open_store(make_store(tmp_path_factory.mktemp("cohort"), num_records=10))


@pytest.mark.parametrize(("most", "expected"), [((), 12), ((5,), 5), ((50,), 12)])
def test_a_run_ends_after_its_epochs_or_earlier(most: tuple[int, ...], expected: int) -> None:
    settings = [f"train.max_steps={steps}" for steps in most]
    assert _num_steps(toy_config("train.epochs=3", *settings), 4) == expected


def test_a_probe_leaves_no_gradient() -> None:
    config = toy_config()
    model = toy_model(config)
    memory_probe(model, MasterAdamW(model, Ranks(), config.optim), config, Ranks())(2)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("fraction", "held", "size", "warned"),
    [(0, [], None, False), (0.3, [], None, True), (0.3, [7, 2, 4], 3, False)],
)
def test_held_out_records_are_one_batch_at_least(
    fraction: float,
    held: list[int],
    size: int | None,
    warned: bool,
    store: StoreReader,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In their own order, and only where some were asked for."""
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    config = load_config(str(preset(tmp_path)), [f"train.val_fraction={fraction}"])
    model, rows = build_model(config), np.array(held, dtype=np.int64)
    inputs_of = model_inputs(config)
    found = heldout_validation(
        model, store, config, Ranks(), rows, Normalisation(), microbatch=2, inputs_of=inputs_of
    )
    assert ("too few for a held-out loss" in caplog.text) is warned
    if size is None:
        assert found is None
        return
    assert found is not None
    assert [batch.record_index.tolist() for batch in found.loader] == [held]
    assert found.microbatch == 1  # three in pieces of at most two


def test_masks_of_validation_stay_those_of_earlier_versions() -> None:
    assert EVALUATION_EPOCH == 4_294_967_295
