"""tests/mutation/mutation.py: what is broken, what is left alone, and who must notice."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("cosmic_ray", reason="Cosmic Ray is not installed")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mutation() -> ModuleType:
    path = Path(__file__).with_name("mutation.py")
    spec = importlib.util.spec_from_file_location("mutation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = """
@dataclass(order=True)
class Count:
    total: int | None = 3

def check(x: "int | None", *, limit: int = 4) -> "int | None":
    log.info(f"{x + 5}")
    assert x > 6
    if x > limit:
        raise ValueError(f"at most {limit + 7}")
    y = zip(x, strict=True), f"{x + 9}"
    return x + 8
"""


def test_texts_types_and_checks_of_our_own_bugs_stay(
    mutation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module.py").write_text(SOURCE)
    monkeypatch.setattr(mutation, "ROOT", tmp_path)
    lines = SOURCE.splitlines()
    found = {
        lines[mutant.start_pos[0] - 1][mutant.start_pos[1] :]
        for place in mutation.mutants("module.py")
        for mutant in place
    }
    # the value, the default, the operator of the comparison and its negation, the sum
    assert found == {"3", '4) -> "int | None":', "> limit:", "x > limit:", "+ 8", "8"}


def test_every_package_has_modules_and_tests(mutation: ModuleType) -> None:
    for package, patterns in mutation.CONFIG["tests"].items():
        assert mutation.package(f"{package}_some.py") == package
        assert list(ROOT.glob(f"{package}*")), package
        for pattern in patterns:
            assert list(ROOT.glob(pattern.format("*"))), pattern


def test_a_mutant_is_caught_by_its_tests_and_an_unbroken_copy_survives(
    mutation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy, whose modules win over the installed ones: else every mutant would survive."""
    monkeypatch.setitem(mutation.CONFIG["tests"], "ecgfast/errors", ["tests/unit/test_config.py"])
    tree = mutation.copy_tree(tmp_path / "tree")
    ratio = next(
        mutant
        for place in mutation.mutants("ecgfast/settings.py")
        for mutant in place
        if mutant.operator_name.endswith("NumberReplacer")
    )
    assert mutation.run(tree, "ecgfast/errors", mutation.UNBROKEN) == ("survived", "")
    outcome, noticed = mutation.run(tree, "ecgfast/errors", ratio)
    assert (outcome, noticed.partition("::")[0]) == ("caught", "tests/unit/test_config.py")
