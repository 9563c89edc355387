"""Fixtures shared by all tests."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

# One thread a process, here and in the processes that tests start: sums come out in the same order
# everywhere, and the workers of a parallel run do not wait for each other's threads. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from allowed_skips import refused

from ecgfast import log

# Without a GPU the Triton kernels run in Triton's interpreter. Triton and our backend read this
# when they are imported, so it must be set before the first test module is.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that is skipped for a reason that is not allowed."""
    return _checked((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a whole file likewise."""
    return _checked((yield))


def _checked(report: Report) -> Report:
    if report.skipped and not hasattr(report, "wasxfail"):
        assert isinstance(report.longrepr, tuple)  # path, line, "Skipped: reason"
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if problem := refused(reason, in_ci=os.environ.get("CI") == "true"):
            report.outcome, report.longrepr = "failed", problem
    return report


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
