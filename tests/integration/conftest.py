"""What several integration tests train on."""

from pathlib import Path

import pytest
from training_runs import make_store, preset


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preset(tmp_path_factory.mktemp("preset"))
