"""A skipped test fails the run unless its reason is allowed: the hooks of tests/conftest.py."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

TESTS = """
import pytest

@pytest.mark.skipif(True, reason={reason!r})
def test_marked():
    pass

def test_skips_itself():
    pytest.skip({reason!r})

@pytest.mark.xfail(reason="known")
def test_expected_to_fail():
    assert False

def test_passes():
    pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST.read_text())
    monkeypatch.delenv("CI", raising=False)
    return pytester


@pytest.mark.parametrize("reason", ["needs a CUDA device", "DALI is not installed"])
def test_a_skip_for_an_allowed_reason_is_a_skip(run: pytest.Pytester, reason: str) -> None:
    run.makepyfile(TESTS.format(reason=reason))
    run.runpytest().assert_outcomes(passed=1, skipped=2, xfailed=1)


def test_a_skip_for_another_reason_is_a_failure(run: pytest.Pytester) -> None:
    run.makepyfile(TESTS.format(reason="does not work today"))
    result = run.runpytest()
    result.assert_outcomes(passed=1, failed=1, errors=1, xfailed=1)
    result.stdout.fnmatch_lines("*helpers/allowed_skips.py does not list: does not work today")


def test_a_whole_file_is_not_skipped_for_another_reason(run: pytest.Pytester) -> None:
    run.makepyfile("import pytest\npytest.importorskip('no_such_package')\n")
    run.runpytest().assert_outcomes(errors=1)


def test_what_ci_has_is_not_skipped_there(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real recordings too: there are none beside this conftest."""
    monkeypatch.setenv("CI", "true")
    run.makepyfile(
        TESTS.format(reason="DALI is not installed") + "\ndef test_real(shared_data):\n    pass\n"
    )
    result = run.runpytest()
    result.assert_outcomes(passed=1, failed=1, errors=2, xfailed=1)
    result.stdout.fnmatch_lines("*skipped in CI, where nothing of this may be missing: real rec*")


def test_a_gpu_is_not_asked_of_ci(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    run.makepyfile(TESTS.format(reason="needs a CUDA device"))
    run.runpytest().assert_outcomes(passed=1, skipped=2, xfailed=1)
