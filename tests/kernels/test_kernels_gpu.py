"""The kernels on a GPU in bf16, at the sizes of training: against fp64, bit-equal, no host sync."""

from collections.abc import Callable

import pytest
import torch
from checks import INSIDE_DYNAMO, assert_close, poisoned_outputs
from ecgfast_kernels.ops.adamw import adamw_, factors
from ecgfast_kernels.ops.masked_loss import masked_mse
from ecgfast_kernels.ops.masking import patch_embed_masked, random_mask, unshuffle
from small_mae import losses_of
from tolerances import TOY_LOSS_BF16
from torch import Tensor

from ecgfast.config import load_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

N, K, L, P = 240, 60, 250, 256
BF16 = torch.bfloat16
Inputs = tuple[Tensor, ...]


def normal(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def patches_of(batch: int) -> Tensor:
    patches = normal(batch, N, P, dtype=torch.float16)
    patches[..., L:] = 0
    return patches


def masks_of(batch: int) -> Inputs:
    records = torch.arange(batch, device="cuda") * 7919
    return random_mask(records, seed=1, epoch=2, num_patches=N, num_keep=K, backend="reference")


def embed_inputs(batch: int, width: int, dtype: torch.dtype = BF16) -> Inputs:
    weight = (normal(width, L, dtype=torch.float32) / L**0.5).to(dtype)
    leaves = (weight, normal(width, dtype=dtype), normal(width, dtype=dtype))
    weight, bias, cls_token = (leaf.requires_grad_() for leaf in leaves)
    pos = normal(1 + N, width, dtype=dtype)
    return patches_of(batch), masks_of(batch)[0], weight, bias, pos, cls_token


def unshuffle_inputs(batch: int, width: int) -> Inputs:
    tokens = normal(batch, 1 + K, width).requires_grad_()
    mask_token = normal(width).requires_grad_()
    return tokens, masks_of(batch)[1], mask_token, normal(1 + N, width)


def loss_inputs(batch: int) -> Inputs:
    rows = normal(batch, 1 + N, P)  # as the decoder leaves it
    pred = rows[:, 1:, :L].detach().requires_grad_()
    return pred, patches_of(batch), masks_of(batch)[2]


def upcast(inputs: Inputs, compute: torch.dtype) -> Inputs:
    """Return fp64 copies of the values that the kernel multiplies, leaves again leaves."""
    wide = [t.detach().to(compute).double() if t.is_floating_point() else t for t in inputs]
    return tuple(
        w.requires_grad_() if t.requires_grad else w for w, t in zip(wide, inputs, strict=True)
    )


def run(op: Callable[..., Tensor], inputs: Inputs, grad: Tensor, backend: str) -> Inputs:
    """Return the output and the gradient of every leaf."""
    with poisoned_outputs(backend):
        output = op(*inputs, backend=backend)
        leaves = [tensor for tensor in inputs if tensor.requires_grad]
        return output, *torch.autograd.grad(output, leaves, grad)


def loss_op(*inputs: Tensor, backend: str) -> Tensor:
    return masked_mse(*inputs, norm_patch=True, backend=backend)


def test_masks_of_1e5_records_are_bit_equal_to_the_cpu() -> None:
    records = torch.arange(100_000) * 65_537 + 3
    settings = {"seed": 2**40 + 5, "epoch": 7, "num_patches": N, "num_keep": K}
    want = random_mask(records, **settings, backend="reference")
    with poisoned_outputs("triton"):
        got = random_mask(records.cuda(), **settings, backend="triton")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("batch", "width", "dtype"),
    [(61, 1024, BF16), (61, 768, BF16), (3, 192, BF16), (5, 1024, torch.float32)],
)
def test_patch_embed_matches_fp64(batch: int, width: int, dtype: torch.dtype) -> None:
    inputs = embed_inputs(batch, width, dtype)
    grad = normal(batch, 1 + K, width, dtype=dtype)
    got = run(patch_embed_masked, inputs, grad, "triton")
    want = run(patch_embed_masked, upcast(inputs, dtype), grad.double(), "reference")
    names = ("tokens", "weight gradient", "bias gradient", "class token gradient")
    for a, b, terms, name in zip(got, want, (L, batch * K, batch * K, batch), names, strict=True):
        assert_close(a, b, dtype=dtype, terms=terms, name=name)


def test_unshuffle_matches_fp64() -> None:
    inputs, grad = unshuffle_inputs(61, 512), normal(61, 1 + N, 512)
    got = run(unshuffle, inputs, grad, "triton")
    want = run(unshuffle, upcast(inputs, BF16), grad.double(), "reference")
    assert torch.equal(got[0], unshuffle(*inputs, backend="reference"))
    for a, b, terms in zip(got, want, (1, 1, 61 * (N - K)), strict=True):
        assert_close(a, b, dtype=BF16, terms=terms, name="unshuffle")


@pytest.mark.parametrize("padded", [True, False])
def test_loss_matches_fp64(padded: bool) -> None:
    pred, patches, mask = loss_inputs(61)
    if not padded:
        pred = pred.detach().contiguous().requires_grad_()
    grad = torch.tensor(0.75, device="cuda")
    got = run(loss_op, (pred, patches, mask), grad, "triton")
    # Targets are computed from the fp16 patches, so only the prediction is bf16 here.
    wide = (pred.detach().double().requires_grad_(), patches.double(), mask)
    want = run(loss_op, wide, grad.double(), "reference")
    num_values = 61 * (N - K) * L
    assert_close(got[0], want[0], dtype=torch.float32, terms=num_values, name="loss")
    assert_close(got[1], want[1], dtype=BF16, terms=L, name="gradient")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize(
    ("op", "inputs", "shape"),
    [
        (patch_embed_masked, lambda: embed_inputs(256, 1024), (256, 1 + K, 1024)),
        (unshuffle, lambda: unshuffle_inputs(256, 512), (256, 1 + N, 512)),
        (loss_op, lambda: loss_inputs(256), ()),
    ],
    ids=["patch_embed_masked", "unshuffle", "masked_mse"],
)
def test_runs_are_bit_equal_and_never_wait_for_the_host(
    op: Callable[..., Tensor], inputs: Callable[[], Inputs], shape: tuple[int, ...]
) -> None:
    arguments, grad = inputs(), normal(*shape)
    grad = grad.float() if op is loss_op else grad
    first = run(op, arguments, grad, "triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = run(op, arguments, grad, "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, first, second))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_adamw_matches_pytorch_and_never_waits_for_the_host() -> None:
    """Gradients lie in new places at every step, as autograd may leave them."""
    betas, rate, decay = (0.9, 0.95), 1e-3, 0.05
    shapes = [(1024, 4096), (4096,), (1024, 250), (250,)]
    weights = [normal(*shape, dtype=torch.float32) for shape in shapes]
    oracle = [weight.double().requires_grad_() for weight in weights]
    optimizer = torch.optim.AdamW(oracle, lr=rate, betas=betas, weight_decay=decay)
    copies = [weight.to(BF16) for weight in weights]
    moments = [[torch.zeros_like(w) for w in weights] for _ in range(2)]
    one, zero = torch.ones((), device="cuda"), torch.zeros((), device="cuda")
    held = []
    for step in range(4):
        held.append([normal(*shape) for shape in shapes])
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first one compiles
        try:
            adamw_(
                weights,
                copies,
                held[-1],
                *moments,
                decays=[decay] * len(shapes),
                betas=betas,
                eps=1e-8,
                factors_4=factors(one * (step + 1), one, betas=betas, learning_rate=rate),
                skipped=zero,
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for weight, gradient in zip(oracle, held[-1], strict=True):
            weight.grad = gradient.double()
        optimizer.step()
    for weight, copy, want in zip(weights, copies, oracle, strict=True):
        torch.testing.assert_close(weight.double(), want.detach(), rtol=5e-6, atol=5e-7)
        assert torch.equal(copy, weight.to(BF16))


def test_a_captured_graph_replays_on_new_records() -> None:
    records = torch.arange(64, device="cuda")
    patches, _, *parameters = (t.detach() for t in embed_inputs(64, 1024))
    settings = {"seed": 1, "epoch": 2, "num_patches": N, "num_keep": K, "backend": "triton"}

    def embed() -> Tensor:
        ids_keep = random_mask(records, **settings)[0]
        return patch_embed_masked(patches, ids_keep, *parameters, backend="triton")

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        embed()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = embed()
    records += 1000
    graph.replay()
    assert torch.equal(captured, embed())


@pytest.mark.filterwarnings(INSIDE_DYNAMO)
def test_ops_compile_with_inductor_into_one_graph() -> None:
    arguments = loss_inputs(8)
    compiled = torch.compile(loss_op, fullgraph=True)
    loss = compiled(*arguments, backend="triton")
    got = loss, *torch.autograd.grad(loss, arguments[0])
    want = run(loss_op, arguments, torch.ones((), device="cuda"), "triton")
    assert all(map(torch.equal, got, want))


def test_vit_base_trains_alike_in_bf16() -> None:
    model = load_config("vit_base").model
    got = losses_of("triton", model, batch=32, dtype=BF16, lr=3e-4)
    want = losses_of("reference", model, batch=32, dtype=BF16, lr=3e-4)
    assert got == pytest.approx(want, rel=TOY_LOSS_BF16)
    assert got[-1] < 0.95 * got[0]  # it learns, so that later steps depend on the gradients
