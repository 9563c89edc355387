"""Validation scores: each record by itself, in order, whatever shares its batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_runs import make_store, preset

from ecgfast.config import Config, load_config
from ecgfast.data.loader import build_loader
from ecgfast.data.normalise import Normalisation
from ecgfast.model.build import build_classifier
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.train.distributed import Ranks
from ecgfast.train.validation import Scorer

ROWS = np.array([5, 2, 9, 0, 7])  # one batch of four and one that is filled up


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return open_store(make_store(tmp_path_factory.mktemp("cohort"), num_records=10))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load_config(str(preset(tmp_path_factory.mktemp("preset"))))


@pytest.mark.parametrize("kind", ["vit", "cnn"])
def test_a_score_is_that_of_the_record_alone(kind: str, store: StoreReader, config: Config) -> None:
    """Normalisation over the batch would let the other records in, and learn from them."""
    changed = replace(config.model, kind=kind)  # type: ignore[arg-type]  # one of two words
    model = build_classifier(replace(config, model=changed))
    loader = build_loader(store, batch_size=1, select=ROWS, shuffle=False, engine="cpu")
    with torch.no_grad():
        alone = [model.eval()(batch.patches).item() for batch in loader]
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scorer = Scorer(store, config, Ranks(), ROWS, batch_size=4, normalisation=Normalisation())
    scores = scorer.logits(model)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, alone, atol=1e-5)  # batches of another size, in fp32
    assert np.diff(np.sort(scores)).min() > 1e-4  # a model that separates records
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
