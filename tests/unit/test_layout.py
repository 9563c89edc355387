"""Limits of the tree's size, and words that it does not use: both keep it readable."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = {".py", ".pyi", ".h", ".cuh", ".cpp", ".cu"}
TEXT = CODE | {".md", ".toml", ".j2", ".html", ".css"}
PRODUCT = ("ecgfast", "kernels", "tools", "benchmarks")

LONGEST_FILE = 330
MOST_TRAIN_MODULES = 17
MOST_PRODUCT_MODULES = 228  # of both packages, without one module for each vendor format
MOST_MEASURING_LINES = 3690  # of what measures rates and readers, and models on real labels

# Metaphors, each with the field's word. Names of code count too: `_room`, `CrewError`.
METAPHORS = {
    "crews?": "worker pool",
    "hires?|hired|hiring": "start",
    "deaf": "block",
    "lends?|lent|lending|borrow(s|ed|ing)?": "give, use",
    "(?<!no )rooms?(?! for)": "buffer, work space",
    "gone on with": "resumed",
    "aloud": "with a warning",
    "house": "package, tree",
}


def files(folders: tuple[str, ...], suffixes: set[str]) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and "build" not in path.parts:
                yield path


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_longer_than_can_be_read_in_one_go() -> None:
    lengths = {str(path.relative_to(ROOT)): num_lines(path) for path in files(PRODUCT, CODE)}
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_the_trainer_has_few_modules() -> None:
    assert 1 < len(list((ROOT / "ecgfast/train").glob("*.py"))) <= MOST_TRAIN_MODULES


def test_the_product_has_few_modules() -> None:
    found = files(("ecgfast", "kernels/ecgfast_kernels"), {".py"})
    modules = [path for path in found if path.parent != ROOT / "ecgfast/ingest/vendor"]
    assert 50 < len(modules) <= MOST_PRODUCT_MODULES


def test_measuring_takes_few_lines() -> None:
    lines = sum(num_lines(path) for path in files(("ecgfast/bench", "benchmarks", "tools"), CODE))
    assert 500 < lines <= MOST_MEASURING_LINES


def metaphors_in(text: str) -> list[str]:
    """Every metaphor of a text, in the order of `METAPHORS`; names are split into their words."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", text)
    found = (re.findall(rf"\b(?:{each})\b", words, re.IGNORECASE) for each in METAPHORS)
    return [each for each, matches in zip(METAPHORS, found, strict=True) if matches]


def test_metaphors_are_found_in_names_and_sentences() -> None:
    assert metaphors_in("def _free_room(pool: WorkerCrew):  # hired") == [
        "crews?", "hires?|hired|hiring", "(?<!no )rooms?(?! for)",
    ]  # fmt: skip
    assert metaphors_in("no room for the result; a roommate of Crewe with talent") == []


def test_code_and_pages_use_the_words_of_the_field() -> None:
    pages = [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    sources = [*files((*PRODUCT, "tests", "docs"), TEXT), *pages]
    found = {
        str(path.relative_to(ROOT)): [f"{each}: {METAPHORS[each]}" for each in metaphors]
        for path in sources
        if path not in (Path(__file__), ROOT / "CHANGELOG.md")
        and (metaphors := metaphors_in(path.read_text(encoding="utf-8")))
    }
    assert found == {}
