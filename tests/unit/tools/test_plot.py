"""benchmarks/plot.py and the pages: numbers come from rows, rows from providers that code makes."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from ecgfast.bench import make_rows, peers_module, read_rows
from ecgfast.bench.codec import codecs
from ecgfast.bench.step import VARIANTS

ROOT = Path(__file__).resolve().parents[3]
PLOT: Any = peers_module("plot")


def providers() -> set[str]:
    """Names of providers that the cases and comparisons make, and all texts of their code."""
    codec_names = (codec.name for codec in codecs())
    names = {"ecgfast-portable", "ecgfast-avx2", *VARIANTS, *codec_names}
    modules = [*(ROOT / "ecgfast/bench").glob("*.py"), *(ROOT / "benchmarks").glob("*_*.py")]
    nodes = (node for path in modules for node in ast.walk(ast.parse(path.read_text())))
    texts = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
    return names | texts | {text.rpartition("/")[2] for text in texts}  # "case/provider"


def test_pages_name_no_provider_that_no_code_makes() -> None:
    named = {
        (page.name, name)
        for page in (
            ROOT / "README.md",
            ROOT / "docs/performance.md",
            ROOT / "benchmarks/README.md",
        )
        for name in re.findall(r"\b(?:ecgfast|reference)-[a-z0-9][a-z0-9-]*\b", page.read_text())
    }
    assert ("performance.md", "ecgfast-fsdp") in named
    known = providers()
    assert {(page, name) for page, name in named if name not in known} == set()


def test_headlines_are_of_providers_that_code_makes_and_have_rows() -> None:
    known = providers()
    assert {name for line in PLOT.HEADLINES for name in (line.ours, line.peer)} <= known
    text = PLOT.summary(PLOT.newest(read_rows(ROOT / "benchmarks/results")))
    begin, end = "<!-- measured: begin", "<!-- measured: end"
    readme = (ROOT / "README.md").read_text().split(begin)[1].split(end)[0]
    assert readme.partition("\n")[2] == text


def test_a_headline_without_rows_fails() -> None:
    rows = make_rows({("ratio", "x"): [1.0]}, case="codec", provider="ecgfast")
    with pytest.raises(SystemExit, match="no rows of ecgfast and blosc2-zstd-bitshuffle"):
        PLOT.summary(rows)
