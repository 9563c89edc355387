"""unshuffle: bit-equal to the reference forward, gradients against fp64, determinism, tracing."""

import pytest
import torch
from checks import (
    CASES,
    DTYPES,
    INSIDE_DYNAMO,
    Case,
    assert_close,
    masks_of,
    poisoned_outputs,
    random,
)
from ecgfast_kernels.ops import reference
from ecgfast_kernels.ops.masking import unshuffle
from torch import Tensor

pytestmark = pytest.mark.op

Inputs = tuple[Tensor, ...]

CASE = CASES[2]


def inputs_of(case: Case, dtype: torch.dtype) -> Inputs:
    """Return the op's arguments; tokens and mask token require gradients."""
    tokens = random(case.batch, 1 + case.num_keep, case.width, dtype=dtype, seed=1)
    mask_token = random(case.width, dtype=dtype, seed=2)
    pos = random(1 + case.num_patches, case.width, seed=3)  # fp32, as the model keeps it
    ids_restore = masks_of(case, seed=4)[1]
    return tokens.requires_grad_(), ids_restore, mask_token.requires_grad_(), pos


def upcast(inputs: Inputs) -> Inputs:
    """Return the same values in fp64, the positions rounded to the tokens' dtype first."""
    tokens, ids_restore, mask_token, pos = inputs
    wide = (tensor.detach().double() for tensor in (tokens, mask_token, pos.to(tokens.dtype)))
    tokens, mask_token, pos = wide
    return tokens.requires_grad_(), ids_restore, mask_token.requires_grad_(), pos


def run(inputs: Inputs, grad: Tensor, backend: str) -> tuple[Tensor, ...]:
    """Return the output and the gradients of tokens and mask token."""
    with poisoned_outputs(backend):
        output = unshuffle(*inputs, backend=backend)
        return output, *torch.autograd.grad(output, (inputs[0], inputs[2]), grad)


def grad_of(case: Case, dtype: torch.dtype) -> Tensor:
    return random(case.batch, 1 + case.num_patches, case.width, dtype=dtype, seed=5)


@pytest.mark.parametrize("case", [*CASES, Case(batch=2, num_patches=9, num_keep=9)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_is_bit_equal_and_gradients_match_fp64(case: Case, dtype: torch.dtype) -> None:
    inputs, grad = inputs_of(case, dtype), grad_of(case, dtype)
    got = run(inputs, grad, "triton")
    assert torch.equal(got[0], unshuffle(*inputs, backend="reference"))
    want = run(upcast(inputs), grad.double(), "reference")
    terms = (1, 1, case.batch * (case.num_patches - case.num_keep))
    names = ("output", "token gradient", "mask token gradient")
    for a, b, count, name in zip(got, want, terms, names, strict=True):
        assert a.dtype == dtype
        assert_close(a, b, dtype=dtype, terms=count, name=name)


def test_layouts_do_not_matter() -> None:
    inputs, grad = inputs_of(CASE, torch.float32), grad_of(CASE, torch.float32)
    tokens, ids_restore, mask_token, pos = inputs
    strided = (
        tokens.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_(),
        ids_restore.T.contiguous().T,
        mask_token,
        pos.T.contiguous().T,
    )
    grad_strided = grad.transpose(0, 1).contiguous().transpose(0, 1)
    plain = run(inputs, grad, "triton")
    assert all(map(torch.equal, run(strided, grad_strided, "triton"), plain))


def test_two_runs_are_bit_equal() -> None:
    inputs, grad = inputs_of(CASES[1], torch.float32), grad_of(CASES[1], torch.float32)
    assert all(map(torch.equal, run(inputs, grad, "triton"), run(inputs, grad, "triton")))


def test_reference_gradients_in_closed_form_match_autograd() -> None:
    inputs, grad = upcast(inputs_of(CASE, torch.float32)), grad_of(CASE, torch.float64)
    closed = reference.unshuffle_backward(grad, inputs[1], CASE.num_keep)
    for got, want in zip(closed, run(inputs, grad, "reference")[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_opcheck() -> None:
    inputs = tuple(tensor.detach() for tensor in inputs_of(CASE, torch.float32))
    torch.library.opcheck(torch.ops.ecgfast.unshuffle.default, inputs)
    backward = torch.ops.ecgfast.unshuffle_backward.default
    torch.library.opcheck(backward, (grad_of(CASE, torch.float32), inputs[1], CASE.num_keep))


@pytest.mark.filterwarnings(INSIDE_DYNAMO)
def test_fullgraph_compile() -> None:
    inputs, grad = inputs_of(CASE, torch.float32), grad_of(CASE, torch.float32)
    compiled = torch.compile(unshuffle, fullgraph=True, backend="aot_eager")
    output = compiled(*inputs, backend="triton")
    got = output, *torch.autograd.grad(output, (inputs[0], inputs[2]), grad)
    assert all(map(torch.equal, got, run(inputs, grad, "triton")))


def test_wrong_arguments() -> None:
    tokens, ids_restore, mask_token, pos = inputs_of(CASE, torch.float32)
    with pytest.raises(ValueError, match="tokens must be"):
        unshuffle(tokens, ids_restore[:1], mask_token, pos)
    with pytest.raises(ValueError, match="pos must be"):
        unshuffle(tokens, ids_restore, mask_token, pos[1:])
    with pytest.raises(ValueError, match="mask_token must be"):
        unshuffle(tokens, ids_restore, mask_token[1:], pos)
    with pytest.raises(ValueError, match="requires a gradient"):
        unshuffle(tokens, ids_restore, mask_token, pos.clone().requires_grad_())
