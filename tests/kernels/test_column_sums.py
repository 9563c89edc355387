"""The last step of the gradients of biases and norms: sums of shares, against fp64."""

import pytest
import torch
from checks import DEVICE, assert_close, poisoned_outputs, random
from ecgfast_kernels.ops.norm_triton import column_sums

pytestmark = pytest.mark.op


@pytest.mark.parametrize("shape", [(1, 3), (64, 64), (65, 3, 2, 17), (200, 129)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sums_match_fp64_whatever_divides_the_blocks(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    # a slice of poisoned rows and columns: nothing outside of the shares may be read
    memory = torch.full((shape[0] + 70, *shape[1:]), torch.nan, device=DEVICE)
    memory[: shape[0]] = random(*shape)
    partial = memory[: shape[0]]
    with poisoned_outputs():
        got = column_sums(partial, dtype)
    assert got.dtype == dtype
    assert_close(got, partial.double().sum(0), dtype=dtype, terms=shape[0], name="sums")


def test_sums_are_bit_equal_between_runs() -> None:
    partial = random(333, 70)
    assert torch.equal(column_sums(partial, torch.float32), column_sums(partial, torch.float32))
