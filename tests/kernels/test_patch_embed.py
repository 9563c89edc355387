"""patch_embed_masked: forward and gradients against fp64, layouts, determinism, tracing."""

import pytest
import torch
from checks import (
    CASES,
    DEVICE,
    DTYPES,
    INSIDE_DYNAMO,
    Case,
    assert_close,
    masks_of,
    patches_of,
    poisoned_outputs,
    random,
)
from ecgfast_kernels.ops import reference
from ecgfast_kernels.ops.masking import patch_embed_masked
from torch import Tensor

pytestmark = pytest.mark.op

Inputs = tuple[Tensor, ...]

CASE = CASES[2]


def inputs_of(case: Case, dtype: torch.dtype) -> Inputs:
    """Return the op's arguments; weight, bias and class token require gradients."""
    weight = random(case.width, case.length, dtype=dtype, seed=1) / case.length**0.5
    bias, cls_token = (random(case.width, dtype=dtype, seed=seed) for seed in (2, 3))
    pos = random(1 + case.num_patches, case.width, dtype=dtype, seed=4)
    for leaf in (weight, bias, cls_token):
        leaf.requires_grad_()
    ids_keep = masks_of(case, seed=3)[0]
    return patches_of(case), ids_keep, weight, bias, pos, cls_token


def upcast(inputs: Inputs) -> Inputs:
    """Return the same values in fp64; patches as the kernel sees them, rounded to the weight's."""
    patches, ids_keep, weight, *rest = inputs
    wide = [tensor.detach().double() for tensor in (patches.to(weight.dtype), weight, *rest)]
    for index in (1, 2, 4):
        wide[index].requires_grad_()
    return wide[0], ids_keep, *wide[1:]


def run(inputs: Inputs, grad: Tensor, backend: str) -> tuple[Tensor, ...]:
    """Return tokens and the gradients of weight, bias and class token."""
    with poisoned_outputs(backend):
        tokens = patch_embed_masked(*inputs, backend=backend)
        leaves = (inputs[2], inputs[3], inputs[5])
        return tokens, *torch.autograd.grad(tokens, leaves, grad)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_gradients_match_fp64(case: Case, dtype: torch.dtype) -> None:
    inputs = inputs_of(case, dtype)
    grad = random(case.batch, 1 + case.num_keep, case.width, dtype=dtype, seed=5)
    got = run(inputs, grad, "triton")
    want = run(upcast(inputs), grad.double(), "reference")
    num_rows = case.batch * case.num_keep
    terms = (case.length, num_rows, num_rows, case.batch)
    names = ("tokens", "weight gradient", "bias gradient", "class token gradient")
    for a, b, count, name in zip(got, want, terms, names, strict=True):
        assert a.dtype == dtype
        assert_close(a, b, dtype=dtype, terms=count, name=name)


def test_layouts_do_not_matter() -> None:
    patches, ids_keep, weight, bias, pos, cls_token = inputs_of(CASE, torch.float32)
    grad = random(CASE.batch, 1 + CASE.num_keep, CASE.width, seed=5)
    strided = (
        patches.transpose(0, 1).contiguous().transpose(0, 1),
        ids_keep.T.contiguous().T,
        weight.detach().T.contiguous().T.requires_grad_(),
        bias,
        pos.T.contiguous().T,
        cls_token,
    )
    grad_strided = grad.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    plain = run((patches, ids_keep, weight, bias, pos, cls_token), grad, "triton")
    assert all(map(torch.equal, run(strided, grad_strided, "triton"), plain))


def test_two_runs_are_bit_equal() -> None:
    case = CASES[1]
    inputs = inputs_of(case, torch.float32)
    grad = random(case.batch, 1 + case.num_keep, case.width, seed=5)
    assert all(map(torch.equal, run(inputs, grad, "triton"), run(inputs, grad, "triton")))


def test_masked_patches_are_never_read() -> None:
    patches, ids_keep, *rest = inputs_of(CASE, torch.float32)
    kept = torch.zeros(patches.shape[:2], dtype=torch.bool, device=DEVICE).scatter_(
        1, ids_keep, True
    )
    poisoned = patches.masked_fill(~kept[..., None], torch.nan)
    grad = random(CASE.batch, 1 + CASE.num_keep, CASE.width, seed=5)
    plain = run((patches, ids_keep, *rest), grad, "triton")
    assert all(map(torch.equal, run((poisoned, ids_keep, *rest), grad, "triton"), plain))


def test_reference_gradients_in_closed_form_match_autograd() -> None:
    inputs = upcast(inputs_of(CASE, torch.float32))
    grad = random(CASE.batch, 1 + CASE.num_keep, CASE.width, seed=5).double()
    closed = reference.patch_embed_masked_backward(grad, inputs[0], inputs[1], CASE.length)
    for got, want in zip(closed, run(inputs, grad, "reference")[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_opcheck() -> None:
    inputs = tuple(tensor.detach() for tensor in inputs_of(CASE, torch.float32))
    torch.library.opcheck(torch.ops.ecgfast.patch_embed_masked.default, inputs)
    grad = random(CASE.batch, 1 + CASE.num_keep, CASE.width)
    backward = torch.ops.ecgfast.patch_embed_masked_backward.default
    torch.library.opcheck(backward, (grad, *inputs[:2], CASE.length))


@pytest.mark.filterwarnings(INSIDE_DYNAMO)
def test_fullgraph_compile() -> None:
    inputs = inputs_of(CASE, torch.float32)
    grad = random(CASE.batch, 1 + CASE.num_keep, CASE.width, seed=5)
    compiled = torch.compile(patch_embed_masked, fullgraph=True, backend="aot_eager")
    tokens = compiled(*inputs, backend="triton")
    got = tokens, *torch.autograd.grad(tokens, (inputs[2], inputs[3], inputs[5]), grad)
    assert all(map(torch.equal, got, run(inputs, grad, "triton")))


def test_wrong_arguments() -> None:
    patches, ids_keep, weight, bias, pos, cls_token = inputs_of(CASE, torch.float32)
    with pytest.raises(ValueError, match="patches must be"):
        patch_embed_masked(patches[..., : CASE.length + 1], ids_keep, weight, bias, pos, cls_token)
    with pytest.raises(ValueError, match="ids_keep must be"):
        patch_embed_masked(patches, ids_keep[:1], weight, bias, pos, cls_token)
    with pytest.raises(ValueError, match="pos must be"):
        patch_embed_masked(patches, ids_keep, weight, bias, pos[1:], cls_token)
    with pytest.raises(ValueError, match="bias and cls_token"):
        patch_embed_masked(patches, ids_keep, weight, bias[1:], pos, cls_token)
    learned_pos = pos.clone().requires_grad_()
    with pytest.raises(ValueError, match="requires a gradient"):
        patch_embed_masked(patches, ids_keep, weight, bias, learned_pos, cls_token)
