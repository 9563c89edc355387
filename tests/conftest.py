"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

# One thread a process, here and in the processes that tests start: sums come out in the same order
# everywhere, and the workers of a parallel run do not wait for each other's threads. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from ecgfast import log

# Without a GPU the Triton kernels run in Triton's interpreter. Triton and our backend read this
# when they are imported, so it must be set before the first test module is.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Undo what a command run inside a test did to the log: its stream ends with the test."""
    before = log.logger.handlers[:], log.logger.propagate, log.logger.level
    strict = log.is_strict()
    yield
    log.setup(strict=strict)
    log.logger.handlers[:], log.logger.propagate = before[:2]
    log.logger.setLevel(before[2])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings beside the checkout; without it, its tests skip."""
    if not _SHARED_DATA.is_dir():
        pytest.skip(f"real recordings are not at {_SHARED_DATA}")
    return _SHARED_DATA
