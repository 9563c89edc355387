"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings beside the checkout; without it, its tests skip."""
    if not _SHARED_DATA.is_dir():
        pytest.skip(f"real recordings are not at {_SHARED_DATA}")
    return _SHARED_DATA
