"""masked_mse: loss and gradient against fp64, strided predictions, determinism, tracing."""

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
from ecgfast_kernels.ops.masked_loss import masked_mse
from torch import Tensor

pytestmark = pytest.mark.op

Inputs = tuple[Tensor, ...]

CASE = CASES[2]


def inputs_of(case: Case, dtype: torch.dtype) -> Inputs:
    """Return prediction (requires a gradient), patches and mask."""
    pred = random(case.batch, case.num_patches, case.length, dtype=dtype, seed=1)
    return pred.requires_grad_(), patches_of(case), masks_of(case, seed=5)[2]


def run(
    inputs: Inputs, backend: str, *, norm_patch: bool = True, grad: float = 0.75
) -> tuple[Tensor, ...]:
    """Return the loss and the prediction's gradient."""
    with poisoned_outputs(backend):
        loss = masked_mse(*inputs, norm_patch=norm_patch, backend=backend)
        return loss, *torch.autograd.grad(loss * grad, inputs[0])


def upcast(inputs: Inputs) -> Inputs:
    return inputs[0].detach().double().requires_grad_(), inputs[1].double(), inputs[2]


@pytest.mark.parametrize("norm_patch", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_gradient_match_fp64(case: Case, dtype: torch.dtype, norm_patch: bool) -> None:
    inputs = inputs_of(case, dtype)
    loss, grad = run(inputs, "triton", norm_patch=norm_patch)
    want_loss, want_grad = run(upcast(inputs), "reference", norm_patch=norm_patch)
    assert (loss.dtype, grad.dtype) == (torch.float32, dtype)
    num_values = case.batch * (case.num_patches - case.num_keep) * case.length
    assert_close(loss, want_loss, dtype=torch.float32, terms=num_values, name="loss")
    # The target's mean and variance are sums over one patch.
    assert_close(grad, want_grad, dtype=dtype, terms=case.length, name="gradient")
    assert not grad[~inputs[2]].any()


@pytest.mark.parametrize("padding", [0, 6])
def test_slice_of_the_decoders_output_needs_no_copy(padding: int) -> None:
    pred, patches, mask = inputs_of(CASES[4], torch.float32)
    batch, num_patches, length = pred.shape
    rows = torch.full((batch, 1 + num_patches, length + padding), torch.nan, device=DEVICE)
    view = rows[:, 1:, :length]
    view.copy_(pred.detach())
    assert not view.is_contiguous()
    got = run((view.requires_grad_(), patches, mask), "triton")
    want = run(upcast((pred, patches, mask)), "reference")
    assert_close(got[0], want[0], dtype=torch.float32, terms=mask.sum() * length, name="loss")
    assert_close(got[1], want[1], dtype=torch.float32, terms=length, name="gradient")


def test_layouts_do_not_matter() -> None:
    pred, patches, mask = inputs_of(CASE, torch.float32)
    strided = (
        pred.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_(),
        patches.transpose(0, 1).contiguous().transpose(0, 1),
        mask.T.contiguous().T,
    )
    assert all(map(torch.equal, run(strided, "triton"), run((pred, patches, mask), "triton")))


def test_visible_patches_are_never_read() -> None:
    pred, patches, mask = inputs_of(CASE, torch.float32)
    visible = ~mask[..., None]
    poisoned = (
        pred.detach().masked_fill(visible, torch.nan).requires_grad_(),
        patches.masked_fill(visible, torch.nan),
        mask,
    )
    plain = run((pred, patches, mask), "triton")
    assert all(map(torch.equal, run(poisoned, "triton"), plain))


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_nothing_removed_gives_zero(backend: str) -> None:
    pred, patches, mask = inputs_of(CASE, torch.float32)
    loss, grad = run((pred, patches, torch.zeros_like(mask)), backend)
    assert loss.item() == 0
    assert not grad.any()


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_flat_patches_have_the_target_zero(backend: str) -> None:
    pred, patches, mask = inputs_of(CASE, torch.float32)
    loss, _ = run((pred, torch.zeros_like(patches), mask), backend)
    want = pred.detach()[mask].double().square().mean()
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)


def test_two_runs_are_bit_equal() -> None:
    inputs = inputs_of(CASES[1], torch.float32)
    assert all(map(torch.equal, run(inputs, "triton"), run(inputs, "triton")))


@pytest.mark.parametrize("norm_patch", [True, False])
def test_reference_gradient_in_closed_form_matches_autograd(norm_patch: bool) -> None:
    inputs = upcast(inputs_of(CASE, torch.float32))
    grad = torch.tensor(0.75, dtype=torch.float64, device=DEVICE)
    closed = reference.masked_mse_backward(grad, *inputs, inputs[2].sum(), norm_patch)
    want = run(inputs, "reference", norm_patch=norm_patch)[1]
    torch.testing.assert_close(closed, want, rtol=1e-12, atol=1e-15)


def test_variance_is_unbiased() -> None:
    pred, patches, mask = inputs_of(CASE, torch.float32)
    target = patches[..., : CASE.length].double()
    mean, std = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True).add(1e-6).sqrt()
    want = (pred.detach().double() - (target - mean) / std)[mask].square().mean()
    torch.testing.assert_close(
        run((pred, patches, mask), "triton")[0].double(), want, rtol=1e-6, atol=0
    )


def test_opcheck() -> None:
    pred, patches, mask = (tensor.detach() for tensor in inputs_of(CASE, torch.float32))
    torch.library.opcheck(torch.ops.ecgfast.masked_mse.default, (pred, patches, mask, True))
    arguments = (pred.new_ones(()), pred, patches, mask, mask.sum(dtype=torch.int32), True)
    torch.library.opcheck(torch.ops.ecgfast.masked_mse_backward.default, arguments)


@pytest.mark.filterwarnings(INSIDE_DYNAMO)
def test_fullgraph_compile() -> None:
    inputs = inputs_of(CASE, torch.float32)
    compiled = torch.compile(masked_mse, fullgraph=True, backend="aot_eager")
    loss = compiled(*inputs, norm_patch=True, backend="triton")
    got = loss, *torch.autograd.grad(loss * 0.75, inputs[0])
    assert all(map(torch.equal, got, run(inputs, "triton")))


def test_wrong_arguments() -> None:
    pred, patches, mask = inputs_of(CASE, torch.float32)
    with pytest.raises(ValueError, match="disagree"):
        masked_mse(pred, patches[:1], mask, norm_patch=True)
    with pytest.raises(ValueError, match="mask must be bool"):
        masked_mse(pred, patches, mask.float(), norm_patch=True)
    with pytest.raises(ValueError, match="require a gradient"):
        masked_mse(pred, patches.clone().requires_grad_(), mask, norm_patch=True)
