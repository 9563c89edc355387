"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

# Without a GPU the Triton kernels run in Triton's interpreter. Triton and our backend read this
# when they are imported, so it must be set before the first test module is.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings beside the checkout; without it, its tests skip."""
    if not _SHARED_DATA.is_dir():
        pytest.skip(f"real recordings are not at {_SHARED_DATA}")
    return _SHARED_DATA
