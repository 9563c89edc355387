"""Small stores of synthetic records, made by the real ingest and the real convert."""

from pathlib import Path

import pytest

from ecgfast.convert import convert
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store import open_store
from ecgfast.store.reader import StoreReader


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of WFDB files and labels of two synthetic sites."""
    folder = tmp_path_factory.mktemp("cohort") / "files"
    write_cohort(folder, num_records=44, num_sites=2, seed=1)
    return folder


def _store(cohort: Path, codec: str) -> StoreReader:
    out = cohort.parent / codec
    convert([cohort], out, labels=cohort / "labels.csv", codec=codec, workers=1)
    return open_store(out)


@pytest.fixture(scope="session")
def small_store(cohort: Path) -> StoreReader:
    """Return an ecgpack store of 44 labelled records, two sites, patients split three ways."""
    return _store(cohort, "ecgpack")


@pytest.fixture(scope="session")
def small_store_zstd(cohort: Path) -> StoreReader:
    """Return the same records under zstd."""
    return _store(cohort, "zstd")


@pytest.fixture
def dali_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One build of the DALI operator for all processes of a run, none in the user's own cache."""
    folder = tmp_path_factory.getbasetemp().parent / "dali-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
