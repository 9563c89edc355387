"""The kernels bench: every case runs, and a kernel that is wrong is not timed."""

from functools import partial

import pytest
import torch

from ecgfast.bench import kernels
from ecgfast.bench.block_cases import block_cases
from ecgfast.bench.kernel_cases import OpCase, op_cases


@pytest.fixture(scope="module")
def cases() -> dict[str, OpCase]:
    torch.manual_seed(0)
    return {case.name: case for case in (*op_cases("cpu"), *block_cases("cpu"))}


def test_every_case_runs_forward_and_backward(cases: dict[str, OpCase]) -> None:
    for case in cases.values():
        function = partial(case.function, **case.options, backend="reference")
        function(*case.arguments)
        assert case.forward_bytes > 0
        if case.leaves:
            grads = kernels._forward_backward(case, function)
            assert all(grad.isfinite().all() for grad in grads)
            assert all(grad.any() for grad in grads)


@pytest.mark.parametrize("name", ["gelu_mlp", "add_layer_norm", "bias_gelu", "short_attention"])
def test_the_kernels_of_blocks_agree_with_what_they_replace(
    cases: dict[str, OpCase], name: str
) -> None:
    case = cases[f"{name}_encoder"]
    ours, plain = (partial(case.function, backend=b) for b in ("triton", "reference"))
    for function in (ours, *(f for name, f in case.others.items() if name != "products")):
        kernels._check(case, {"ecgfast": function, "torch-eager": plain})


def test_a_kernel_that_disagrees_is_refused(cases: dict[str, OpCase]) -> None:
    case = cases["unshuffle"]
    right = partial(case.function, backend="reference")
    kernels._check(case, {"ecgfast": right, "torch-eager": right})

    def slightly_wrong(*arguments: torch.Tensor) -> torch.Tensor:
        return right(*arguments) * 1.05

    with pytest.raises(RuntimeError, match="unshuffle is off its reference"):
        kernels._check(case, {"ecgfast": slightly_wrong, "torch-eager": right})
