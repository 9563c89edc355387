"""The layers of ecgfast: who may import whom, read from the syntax trees."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"ecgfast": ROOT / "ecgfast", "ecgfast_kernels": ROOT / "kernels" / "ecgfast_kernels"}

# From the top down: a module may import those of its own layer's name, and of every lower row.
LAYERS: tuple[set[str], ...] = (
    {"__main__"},
    {"cli"},
    {"__init__"},  # of ecgfast: names that are imported on first use
    {"planning", "recipes"},
    {"demo", "doctor", "estimate", "reproduce"},
    {"demo_plan"},
    {"bench"},
    {"train", "embedding", "evaluate", "predict"},
    {"prediction", "predictor"},
    {"runs"},
    {"data", "model"},
    {"convert"},
    {"ingest", "labels"},
    {"store"},
    {"config", "log", "records", "lazily"},  # lazily: a function of ecgfast itself
    {"settings"},
    {"bounds"},
    {"errors", "vocabulary"},
    {"ecgfast_kernels"},
)
ROW = {name: number for number, row in enumerate(LAYERS) for name in row}
WITHOUT_TORCH = set().union(*LAYERS[ROW["convert"] : ROW["ecgfast_kernels"]]) - {"log"}
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


def imported(path: Path, *, for_types: bool = True) -> Iterator[tuple[str, bool]]:
    """Every imported module, and whether the import runs when `path` is imported.

    `for_types` includes those below ``if TYPE_CHECKING``.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not for_types:
        tree.body = [node for node in tree.body if not _is_for_types(node)]
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


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def is_allowed(importer: str, target: str) -> bool:
    own, other = layer(importer), layer(target)
    return own == other or ROW[own] < ROW[other]


@pytest.mark.parametrize(
    ("module", "path"), list(sources()), ids=lambda value: str(value).split("/")[-1]
)
def test_every_module_stays_in_its_layer(module: str, path: Path) -> None:
    own = layer(module)
    assert own in ROW, f"{module} is in no layer; give it one in LAYERS"
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
    assert not is_allowed("ecgfast.runs.loading", "ecgfast.train.checkpoint")
    assert not is_allowed("ecgfast_kernels.codec", "ecgfast.errors")
    assert not is_allowed("ecgfast.errors", "ecgfast.log")
    assert is_allowed("ecgfast.train.loop", "ecgfast.runs.meta.RunMeta")


def cycle(edges: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where there are none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(edges.get(module, ())):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := visit(module, []))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Late imports count as well: a circle is one idea in two files, whenever it is closed.

    Those of a package's own `__init__` do not: it starts what lies below it on first use.
    """
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    modules = dict(sources())
    edges = {
        module: {
            # `from package import module` names the module, `from module import name` a part of it
            target if target in modules else target.rpartition(".")[0]
            for target, runs_at_import in imported(path, for_types=False)
            if target.split(".")[0] in PACKAGES and (runs_at_import or path.name != "__init__.py")
        }
        - {module, "ecgfast"}  # which names others, and imports them on first use
        for module, path in modules.items()
    }
    assert cycle(edges) == []


API = {"Predictor", "synthesise", "variant_names"}  # for notebooks, and tests of documents


def test_nothing_is_defined_that_only_tests_reach() -> None:
    """Public functions and classes of ecgfast that neither it, nor a tool or benchmark names."""
    ours = [path for _, path in sources()]
    others = [*(ROOT / "tools").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    defined: dict[str, str] = {}
    named: set[str] = set()
    for path in [*ours, *others]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                    named.add(name)
                case ast.Constant(value=str(name)) if path.name == "__init__.py":  # on first use
                    named.add(name)
        if path.is_relative_to(PACKAGES["ecgfast"]):
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                    defined[node.name] = str(path.relative_to(ROOT))
    unused = {name: where for name, where in defined.items() if name not in named | API}
    assert not unused, "delete these, or make them private"


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import ecgfast", "torch triton numpy pyarrow zarr"),
        ("import ecgfast.cli", "torch triton numpy pyarrow zarr scipy matplotlib rich.console"),
        ("import ecgfast_kernels, ecgfast_kernels.codec", "torch triton"),
        ("import ecgfast_kernels.codec.philox", "torch triton"),
        ("import ecgfast.ingest, ecgfast.store, ecgfast.labels, ecgfast.convert", "torch triton"),
        ("import ecgfast.convert.units", "scipy rich.console zarr"),  # as every worker does
        ("import ecgfast.evaluate.discrimination", "torch triton matplotlib"),
        ("import ecgfast.train.pretrain", "matplotlib"),  # only the rank that draws needs it
    ],
)
def test_imports_stay_light(statement: str, unwanted: str) -> None:
    code = f"import sys\n{statement}\nprint(*[m for m in {unwanted.split()!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


@pytest.mark.parametrize("package", ["", ".convert", ".store"])
def test_names_that_are_imported_on_first_use(package: str) -> None:
    module = importlib.import_module(f"ecgfast{package}")
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing
