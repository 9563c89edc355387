"""The layers of ecgfast: who may import whom, read from the syntax trees."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"ecgfast": ROOT / "ecgfast", "ecgfast_kernels": ROOT / "kernels" / "ecgfast_kernels"}

# Left may import right, every layer itself and LEAVES, and nothing else of ours. A dotted entry
# opens one module of a layer: the AUROC and the pictures for validation, the loader of finished
# runs.
LEAVES = {"errors", "lazily", "log", "config", "records", "settings", "vocabulary"}
TOP = {"cli", "demo", "doctor", "__main__"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "lazily": set(),  # a function of the package itself
    "log": set(),
    "config": set(),
    "records": set(),
    "settings": set(),
    "vocabulary": set(),
    "ingest": {"ecgfast_kernels.codec.frames"},
    "labels": {"store"},
    "store": {"ecgfast_kernels"},
    "convert": {"ingest", "store", "labels", "ecgfast_kernels"},
    "data": {"store", "labels", "ecgfast_kernels"},
    "model": {"ecgfast_kernels"},
    "runs": {"data", "model", "store", "labels"},
    "train": {
        *("runs", "data", "model", "store", "labels", "ecgfast_kernels"),
        *("evaluate.roc", "evaluate.operating", "evaluate.reconstruct"),
    },
    "evaluate": {"runs", "data", "model", "store", "labels", "train.loading", "ecgfast_kernels"},
    "predict": {
        *("ingest", "convert", "model", "data", "runs", "store", "ecgfast_kernels"),
        "train.loading",
    },
    "reproduce": {"train", "evaluate"},
    "bench": {
        *("train", "data", "model", "store", "ecgfast_kernels"),
        *("ingest.synthetic", "convert"),  # a store to measure on, made on the spot
    },
    "ecgfast_kernels": set(),
}
WITHOUT_TORCH = {
    "errors",
    "config",
    "records",
    "settings",
    "vocabulary",
    "ingest",
    "labels",
    "store",
    "convert",
}
FOREIGN = {"tests", "tools", "benchmarks"}


def layer(module: str) -> str:
    """The layer of a dotted name: ecgfast.store.reader -> store."""
    parts = module.split(".")
    if parts[0] == "ecgfast_kernels":
        return "ecgfast_kernels"
    return parts[1] if len(parts) > 1 else "__init__"


def sources() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(part for part in inner if part != "__init__"))), path


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module, and whether the import runs when `path` is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name, id(node) not in late) for name in names)


def is_allowed(importer: str, target: str) -> bool:
    own, other = layer(importer), layer(target)
    if own in TOP or own == "__init__" or other == own:
        return True
    if own == "ecgfast_kernels":
        return False
    if other in LEAVES and own not in LEAVES:
        return True
    if own in LEAVES:
        return other in {"errors", "settings", "vocabulary"}
    return any(
        target == entry or target.startswith(f"{entry}.")
        for name in ALLOWED[own]
        for entry in ((name,) if name.startswith("ecgfast_kernels") else (f"ecgfast.{name}",))
    )


@pytest.mark.parametrize(
    ("module", "path"), list(sources()), ids=lambda value: str(value).split("/")[-1]
)
def test_every_module_stays_in_its_layer(module: str, path: Path) -> None:
    own = layer(module)
    known = own in TOP or own == "__init__" or own in ALLOWED
    assert known, f"{module} is in no layer; give it one in ALLOWED"
    for target, runs_at_import in imported(path):
        root = target.split(".")[0]
        assert root not in FOREIGN, f"{module} imports {target}"
        if root in PACKAGES:
            assert is_allowed(module, target), f"{own} may not import {target}"
        if own in WITHOUT_TORCH:
            assert root not in {"torch", "triton"}, f"{module} imports {target}"
        if own == "cli" and runs_at_import:
            light = root in sys.stdlib_module_names or root == "typer"
            ours = target.startswith(("ecgfast.cli", "ecgfast.errors", "ecgfast.vocabulary"))
            assert light or ours, f"{module} imports {target} before a command needs it"


def test_the_rule_can_fail() -> None:
    assert not is_allowed("ecgfast.store.reader", "ecgfast.model.vit")
    assert not is_allowed("ecgfast.train.loop", "ecgfast.evaluate.report")
    assert not is_allowed("ecgfast_kernels.codec", "ecgfast.errors")
    assert not is_allowed("ecgfast.config", "ecgfast.log")
    assert is_allowed("ecgfast.train.loop", "ecgfast.evaluate.roc.auroc")


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import ecgfast", "torch triton numpy pyarrow zarr"),
        ("import ecgfast.cli", "torch triton numpy pyarrow zarr scipy matplotlib rich.console"),
        ("import ecgfast_kernels, ecgfast_kernels.codec", "torch triton"),
        ("import ecgfast_kernels.philox", "torch triton"),
        ("import ecgfast.ingest, ecgfast.store, ecgfast.labels, ecgfast.convert", "torch triton"),
        ("import ecgfast.convert.work", "pyarrow scipy rich zarr"),  # as every worker does
        ("import ecgfast.evaluate.roc", "torch triton matplotlib"),
        ("import ecgfast.train.pretrain", "matplotlib"),  # only the rank that draws needs it
    ],
)
def test_imports_stay_light(statement: str, unwanted: str) -> None:
    code = f"import sys\n{statement}\nprint(*[m for m in {unwanted.split()!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


@pytest.mark.parametrize("package", ["", ".convert", ".labels", ".store"])
def test_names_that_are_imported_on_first_use(package: str) -> None:
    module = importlib.import_module(f"ecgfast{package}")
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing
