"""Candidates of the tuning tool: rows that the kernels take, and calls that run."""

import pytest
import torch
from ecgfast_kernels.ops import tuning
from triton import next_power_of_2

from ecgfast.bench.kernel_grids import SEARCHES, Search


def tensors(result: object) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    assert isinstance(result, (tuple, list))
    return [tensor for item in result for tensor in tensors(item)]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.op)
def test_candidates_are_rows_of_the_table(search: Search) -> None:
    keys = set(tuning.table()[search.op]["interpreter"])
    assert all(set(candidate) == keys for candidate in search.candidates)
    assert len({tuple(c.items()) for c in search.candidates}) == len(search.candidates)
    blocks = [v for c in search.candidates for k, v in c.items() if k.startswith("BLOCK")]
    assert all(value and value == next_power_of_2(value) for value in blocks)
    tuning.config_for(search.op, arch=90, bits=search.bits)  # there is a row to compare with


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.op)
def test_every_call_runs(search: Search) -> None:
    torch.manual_seed(0)
    results = tensors(search.prepare("cpu")())
    assert results
    assert all(tensor.isfinite().all() for tensor in results)
    assert any(tensor.any() for tensor in results)


def test_every_kernel_has_a_search() -> None:
    untuned = {"attention_backward_short_32"}  # no model has heads of 32 in 64 tokens or fewer
    assert {search.op for search in SEARCHES} == set(tuning.table()) - untuned
