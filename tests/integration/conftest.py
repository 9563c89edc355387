"""What several integration tests train on."""

from pathlib import Path

import pytest
from training_runs import make_store, preset

from ecgfast.config import Config, load_config
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preset(tmp_path_factory.mktemp("preset"))


@pytest.fixture(scope="module")
def config(tiny: Path) -> Config:
    return load_config(str(tiny), ["train.max_steps=4"])


@pytest.fixture(scope="module")
def pretrained(store: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(store, tmp_path_factory.mktemp("pretrained"), preset=config, device="cpu")


@pytest.fixture(scope="module")
def tuned(
    store: Path, config: Config, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("tuned")
    return finetune(
        store,
        out,
        preset=config,
        init=str(pretrained),
        target="ejection_fraction<40",
        device="cpu",
    )
