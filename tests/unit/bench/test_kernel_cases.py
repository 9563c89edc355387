"""The kernels bench: every case runs, and a kernel that is wrong is not timed."""

import pytest
import torch

from ecgfast.bench import kernels
from ecgfast.bench.kernels import Case, kernel_cases


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    return {case.name: case for case in kernel_cases("cpu")}


def test_every_case_runs_forward_and_backward(cases: dict[str, Case]) -> None:
    for case in cases.values():
        kernels.forward(case, case.plain)
        assert case.bytes[0] > 0
        if case.leaves:
            grads = kernels.forward_backward(case, case.plain)
            assert all(grad.isfinite().all() for grad in grads)
            assert all(grad.any() for grad in grads)


@pytest.mark.parametrize("name", ["gelu_mlp", "add_layer_norm", "bias_gelu", "short_attention"])
def test_the_kernels_of_blocks_agree_with_what_they_replace(
    cases: dict[str, Case], name: str
) -> None:
    case = cases[f"{name}_encoder"]
    for function in (case.ours, *case.others.values()):
        kernels.check(case, function)


def test_a_kernel_that_disagrees_is_refused(cases: dict[str, Case]) -> None:
    case = cases["unshuffle"]
    kernels.check(case, case.plain)

    def slightly_wrong(*arguments: torch.Tensor) -> torch.Tensor:
        return case.plain(*arguments) * 1.05

    with pytest.raises(RuntimeError, match="unshuffle is off its reference"):
        kernels.check(case, slightly_wrong)


@pytest.mark.parametrize(
    ("got", "want", "off"),
    [([1.0, -3.9], [1.0, -4.0], 0.025), ([1, 2], [1, 2], 0), ([1, 200], [1, 201], 1)],
)
def test_difference_is_relative_for_floats_and_all_for_integers(
    got: list[float], want: list[float], off: float
) -> None:
    same, tensors = torch.ones(3), (torch.tensor(got), torch.tensor(want))
    found = kernels.difference((same, tensors[0]), (same, tensors[1]))
    assert found == pytest.approx(off, abs=1e-7)
    assert not kernels.difference([same * torch.nan, same], [same, same]) <= 1
