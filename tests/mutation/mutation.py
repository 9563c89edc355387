"""`make mutation`: breaks the code in one place at a time, and counts what the tests notice.

Cosmic Ray makes the mutants; mutation.toml says of which modules, and which tests must notice.
"""

import argparse
import ast
import random
import re
import shlex
import shutil
import sys
import threading
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from itertools import count, islice
from pathlib import Path
from typing import Any

from attrs import evolve
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_and_test, mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from cosmic_ray.work_item import MutationSpec

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
LEFT_OUT = {key: re.compile("|".join(parts)) for key, parts in CONFIG["left_out"].items()}
UNBROKEN = MutationSpec("ecgfast/errors.py", "core/NoOp", 0, (0, 0), (0, 1))
LIMITS_S: dict[str, float] = {}  # for the tests of a package with a mutant
# Run by Python at its start: a worker's copy then wins over the editable installation.
SITE = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'ScikitBuild' not in repr(f)]\n"


def hidden(source: str) -> list[tuple[Any, Any]]:
    """Spans of annotations, decorators, texts, errors, and checks of our own bugs."""
    nodes: list[Any] = []
    for node in ast.walk(ast.parse(source)):
        nodes += getattr(node, "decorator_list", [])
        nodes += [getattr(node, name, None) for name in ("annotation", "returns")]
        is_log = isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
        is_check = isinstance(node, ast.Assert) or getattr(node, "arg", None) in {"strict", "copy"}
        is_text = is_log or isinstance(node, ast.Raise | ast.JoinedStr)
        nodes.append(node if is_text or is_check else None)
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n]


def mutants(module: str) -> list[list[MutationSpec]]:
    """Mutants of a module; those of one place are one list."""
    source = (ROOT / module).read_text(encoding="utf-8")
    nodes, lines, spans = list(ast_nodes(get_ast(source))), source.splitlines(), hidden(source)
    found = defaultdict(list)
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments() or LEFT_OUT["operators"].search(name):
            continue
        places = [place for node in nodes for place in kind().mutation_positions(node)]
        for number, (start, end) in enumerate(places):
            line = lines[start[0] - 1]
            inside = any(first <= start and end <= last for first, last in spans)
            is_marker = line.startswith("*,", start[1])  # of arguments by name, not a product
            if not inside and not is_marker and not LEFT_OUT["lines"].search(line):
                found[start].append(MutationSpec(module, name, number, start, end))
    return list(found.values())


def in_random_order(seed: int) -> Iterator[tuple[str, MutationSpec]]:
    """One mutant of every place, with its package; without those that are no Python."""
    draw = random.Random(seed)
    paths = sorted([*ROOT.glob("ecgfast/**/*.py"), *ROOT.glob("kernels/**/*.py")])
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    modules = [m for m in names if package(m) and not LEFT_OUT["modules"].search(m)]
    places = [place for module in modules for place in mutants(module)]
    print(f"{len(places)} places in {len(modules)} modules, seed {seed}", flush=True)
    for place in draw.sample(places, len(places)):
        mutant = draw.choice(place)
        source, kind = (ROOT / mutant.module_path).read_text(), get_operator(mutant.operator_name)
        try:
            ast.parse(mutate_code(source, kind(), mutant.occurrence))
        except SyntaxError:  # of `*args`, taken for a product
            continue
        yield package(mutant.module_path.as_posix()), mutant


def package(module: str) -> str:
    """The longest beginning of a module's path that has tests; empty without."""
    return max((p for p in CONFIG["tests"] if module.startswith(p)), key=len, default="")


def copy_tree(tree: Path) -> Path:
    """Copy the working tree and its native libraries for one worker."""
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "build", "__pycache__"))
    for library in files("ecgfast_kernels").iterdir():
        if library.name.endswith(".so"):
            shutil.copy(str(library), tree / "kernels" / "ecgfast_kernels")
    (tree / "sitecustomize.py").write_text(SITE)
    return tree


def run(tree: Path, name: str, mutant: MutationSpec) -> tuple[str, str]:
    """Outcome of a package's tests on a broken copy; who noticed, or what was broken."""
    patterns = [pattern.format(mutant.module_path.stem) for pattern in CONFIG["tests"][name]]
    tests = dict.fromkeys(str(path) for p in patterns for path in sorted(tree.glob(p)))
    python = ["env", "PYTHONSAFEPATH=1", f"PYTHONPATH={tree}:{tree / 'kernels'}", sys.executable]
    options = ["-x", "-p", "no:cacheprovider", "-m", "not gpu and not slow", f"--rootdir={tree}"]
    options += [f"--config-file={tree / 'pyproject.toml'}", f"--basetemp={tree / 'build'}"]
    command = shlex.join([*python, "-m", "pytest", *options, *tests])
    broken = evolve(mutant, module_path=tree / mutant.module_path)
    begin = time.monotonic()
    result = mutate_and_test([broken], command, LIMITS_S.get(name, CONFIG["timeout_s"]))
    if mutant is UNBROKEN:  # a busy machine is slow with mutants too
        LIMITS_S[name] = 60 + 3 * (time.monotonic() - begin)
    if result.output == "timeout":
        return "timeout", ""
    outcome = "no test" if result.test_outcome is None else result.test_outcome.value
    if outcome == "killed":
        noticed = re.search(r"^(?:FAILED|ERROR) \S*(tests/\S+)", result.output, re.M)
        return "caught", noticed[1] if noticed else ""
    changed = re.findall(r"^[-+](?![-+])[^\n]*\S", result.diff or "", re.M)
    return outcome, "".join(f"\n  {line}" for line in changed)


def main() -> None:
    """Test a sample of mutants; print the outcome of each, and the score by package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    jobs = list(islice(in_random_order(asked.seed), asked.sample))
    packages = sorted({name for name, _ in jobs})
    workers, numbers, scores = threading.local(), count(), Counter[tuple[str, str]]()

    def start() -> None:
        workers.tree = copy_tree(ROOT / "build" / "mutation" / str(next(numbers)))

    def test(job: tuple[str, MutationSpec]) -> tuple[str, MutationSpec, str, str]:
        return *job, *run(workers.tree, *job)

    with ThreadPoolExecutor(2, initializer=start) as pool:
        for name, _, outcome, text in pool.map(test, [(name, UNBROKEN) for name in packages]):
            if outcome != "survived":
                raise SystemExit(f"the tests of {name} without a mutant: {outcome} {text}")
        for name, mutant, outcome, text in pool.map(test, jobs):
            print(f"{outcome} {mutant.module_path}:{mutant.start_pos[0]} {text}", flush=True)
            for of in (name, "all"):
                scores[of, "total"] += 1
                scores[of, "caught"] += outcome in {"caught", "timeout"}
    for name in [*packages, "all"]:
        caught, total = scores[name, "caught"], scores[name, "total"]
        print(f"{name:32}{caught:4} of {total:4} caught, {caught / total:.0%}")


if __name__ == "__main__":
    main()
