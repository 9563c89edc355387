"""tools/tune_kernels.py: candidates that the kernels take, and calls that run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ecgfast_kernels.ops import library
from scripts import script
from triton import next_power_of_2

tune_kernels = script("tools/tune_kernels.py")
SEARCHES = tune_kernels.searches()
Search = tune_kernels.Search


@pytest.fixture(scope="module")
def cases() -> Any:
    torch.manual_seed(0)
    return tune_kernels.cases("cpu")


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.kernel)
def test_candidates_are_rows_of_the_table(search: Search) -> None:
    keys = set(library.table()[search.kernel]["interpreter"])
    assert all(set(candidate) == keys for candidate in search.candidates)
    assert len({tuple(c.items()) for c in search.candidates}) == len(search.candidates)
    blocks = [v for c in search.candidates for k, v in c.items() if k.startswith("BLOCK")]
    assert all(value and value == next_power_of_2(value) for value in blocks)
    library.config_for(search.kernel, arch=90, bits=search.bits)  # there is a row to compare with


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.kernel)
def test_every_call_runs(search: Search, cases: Any) -> None:
    results = tune_kernels.call_of(search, cases[search.case])()
    assert results
    assert all(tensor.isfinite().all() for tensor in results)
    assert any(tensor.any() for tensor in results)


def test_every_kernel_has_a_search() -> None:
    untuned = {"attention_backward_short_32"}  # no model has heads of 32 in 64 tokens or fewer
    assert {search.kernel for search in SEARCHES} == set(library.table()) - untuned


def test_the_table_is_rendered_as_it_is_kept() -> None:
    path = Path(library.__file__).parent / library.FILE_NAME
    assert tune_kernels.render(library.table()) == path.read_text(encoding="utf-8")
