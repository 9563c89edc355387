"""Attention, LayerNorm with residual, and GELU of a block: against plain PyTorch in fp64."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from checks import DEVICE, DTYPES, INSIDE_DYNAMO, assert_close, poisoned_outputs, random
from ecgfast_kernels.ops import library, reference
from ecgfast_kernels.ops.attention import short_attention
from ecgfast_kernels.ops.fused_block import Provider, add_layer_norm, bias_gelu, gelu_mlp
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

pytestmark = pytest.mark.op

EPS = 1e-6
Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Op:
    """An op, plain PyTorch that gives the same, the shapes of its inputs, and its longest sum."""

    name: str
    fused: Function
    plain: Function
    shapes: tuple[tuple[int, ...], ...]
    terms: int

    def __str__(self) -> str:
        """Name in pytest's output."""
        return f"{self.name}-{'x'.join(map(str, self.shapes[0]))}"


def plain_attention(qkv: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    # `qkv` holds the bias: what reaches the result through it adds up to nothing
    query, key, value = (qkv + bias - bias.detach()).permute(2, 0, 3, 1, 4)
    return (scaled_dot_product_attention(query, key, value).transpose(1, 2),)


def plain_add_norm(
    x: Tensor, branch: Tensor, added: Tensor, w: Tensor, b: Tensor
) -> tuple[Tensor, ...]:
    total = x + branch + added
    return total, layer_norm(total, w.shape, w, b, EPS)


def attention(batch: int, tokens: int, heads: int, width: int) -> Op:
    return Op(
        name="attention",
        fused=lambda qkv, bias: (short_attention(qkv, bias),),
        plain=plain_attention,
        shapes=((batch, tokens, 3, heads, width), (3, heads, width)),
        terms=tokens * batch,
    )


def add_norm(*shape: int) -> Op:
    return Op(
        name="add_layer_norm",
        fused=lambda *inputs: add_layer_norm(*inputs, eps=EPS),
        plain=plain_add_norm,
        shapes=(shape, shape, *(shape[-1:] for _ in range(3))),
        terms=shape[0] * shape[1] * 4,
    )


def biased_gelu(*shape: int) -> Op:
    return Op(
        name="bias_gelu",
        fused=lambda x, bias: (bias_gelu(x, bias),),
        plain=lambda x, bias: (gelu(x + bias),),
        shapes=(shape, shape[-1:]),
        terms=shape[0] * shape[1],
    )


def mlp(rows: int, width: int, hidden: int, provider: Provider = "triton") -> Op:
    return Op(
        name="gelu_mlp" + provider.removeprefix("triton"),
        fused=lambda *inputs: (gelu_mlp(*inputs, provider=provider),),
        plain=lambda x, w, b, v: (linear(gelu(linear(x, w, b)), v),),
        shapes=((2, rows, width), (hidden, width), (hidden,), (width, hidden)),
        terms=2 * rows * hidden * width,
    )


OPS = [
    attention(2, 61, 2, 64),  # encoder: one tile
    attention(1, 241, 2, 32),  # decoder: all keys in one tile, one pass; two halves forward
    attention(3, 65, 1, 32),  # one key in the second half
    attention(1, 130, 1, 64),  # fine-tuning's head width: tiles, two passes
    attention(3, 5, 3, 16),
    add_norm(3, 61, 96),
    add_norm(2, 7, 1024),
    add_norm(1, 2, 513),
    biased_gelu(3, 61, 96),
    biased_gelu(2, 150, 600),
    mlp(61, 72, 200),  # three tiles of rows and of columns and two of the depth, none full
    mlp(3, 16, 64),
]
SMALL = [attention(2, 17, 2, 16), add_norm(2, 9, 40), biased_gelu(2, 9, 40), mlp(5, 8, 24)]
if DEVICE == "cuda" and find_spec("quack"):
    OPS += [mlp(61, 72, 200, "quack"), mlp(300, 256, 1024, "quack")]
    SMALL.append(mlp(5, 8, 24, "quack"))


def element_types(op: Op) -> list[torch.dtype]:
    """On a GPU the MLP has products of 16 bits alone."""
    narrow = DEVICE == "cuda" and op.name.startswith("gelu_mlp")
    return [dtype for dtype in DTYPES if not (narrow and dtype == torch.float32)]


def inputs_of(op: Op, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(
        random(*shape, dtype=dtype, seed=seed).requires_grad_()
        for seed, shape in enumerate(op.shapes)
    )


def run(function: Function, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs and the gradients of all inputs under a fixed random upstream gradient."""
    outputs = function(*inputs)
    upstream = [upstream_of(output, index) for index, output in enumerate(outputs)]
    return (*outputs, *torch.autograd.grad(outputs, inputs, upstream))


def upstream_of(output: Tensor, index: int) -> Tensor:
    """Values that fp16 and bf16 hold exactly, so that fp64 sees the same."""
    return (random(*output.shape, seed=50 + index) * 8).round().div(8).to(output.dtype)


def upcast(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().double().requires_grad_() for tensor in inputs)


@pytest.mark.parametrize(
    ("op", "dtype"), [(op, dtype) for op in OPS for dtype in element_types(op)], ids=str
)
def test_kernels_match_fp64(op: Op, dtype: torch.dtype) -> None:
    inputs = inputs_of(op, dtype)
    with poisoned_outputs():
        got = run(op.fused, inputs)
    want = run(op.plain, upcast(inputs))
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.dtype == dtype
        # attention rounds biased inputs, probabilities and score gradients before their products
        roundings = 4 if op.name == "attention" else 2
        name = f"{op} #{index}"
        assert_close(a, b, dtype=dtype, terms=op.terms, name=name, roundings=roundings)


def test_gelu_from_one_exponential_is_exact_to_seven_digits() -> None:
    """Its error function is a polynomial (1.5e-7): the tails, zero, and all between."""
    x = torch.cat([torch.linspace(-12, 12, 2047), torch.tensor([0.0, -0.0, 1e-30, -40.0, 1e19])])
    x, bias = x[:, None].to(DEVICE), torch.zeros(1, device=DEVICE)
    got = run(lambda h: (bias_gelu(h, bias),), (x.requires_grad_(),))
    want = run(lambda h: (gelu(h),), upcast((x,)))
    for a, b in zip(got, want, strict=True):
        assert ((a.double() - b).abs() <= 2.5e-7 + 2**-23 * b.abs()).all()


@pytest.mark.parametrize("row", [{"HALVES": 0}, {"HALVES": 1}], ids=str)
@pytest.mark.parametrize("tokens", [33, 64])
def test_forward_of_all_keys_and_of_halves(
    row: dict[str, int], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_row(monkeypatch, "attention_forward_short", row, tokens)


@pytest.mark.parametrize("row", [{"ONE_PASS": 0}, {"ONE_PASS": 1}], ids=str)
@pytest.mark.parametrize("tokens", [33, 64])
def test_backward_in_two_passes_and_in_one(
    row: dict[str, int], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_row(monkeypatch, "attention_backward_short_32", row | {"BLOCK": 16}, tokens)


def check_row(monkeypatch: pytest.MonkeyPatch, op: str, row: dict[str, int], tokens: int) -> None:
    """Both kernels that a row of the table may choose, at one size, against each other and fp64."""
    rows = library.table()[op]
    monkeypatch.setitem(library.table(), op, {name: old | row for name, old in rows.items()})
    case = attention(2, tokens, 1, 16)
    inputs = inputs_of(case, DTYPES[-1])
    with poisoned_outputs():
        got = run(case.fused, inputs)
    for a, b in zip(got, run(case.plain, upcast(inputs)), strict=True):
        assert_close(a, b, dtype=DTYPES[-1], terms=case.terms, name=str(row), roundings=4)


def test_references_match_fp64_autograd() -> None:
    """What runs on a CPU without the interpreter, and its gradients in closed form."""
    qkv, bias = _fp64(SMALL[0])
    out, lse = reference.short_attention(qkv)
    grads = reference.short_attention_backward(upstream_of(out, 0), qkv, out, lse)
    _assert_equal_to_plain(SMALL[0], (out, *grads))
    inputs = _fp64(SMALL[1])
    total, out, mean, rstd = reference.add_layer_norm(*inputs, EPS)
    grad, sums = reference.add_layer_norm_backward(
        upstream_of(total, 0), upstream_of(out, 1), total, inputs[3], mean, rstd
    )
    _assert_equal_to_plain(SMALL[1], (total, out, grad, grad, sums[2], sums[0], sums[1]))
    x, bias = _fp64(SMALL[2])
    out = reference.bias_gelu(x, bias)
    grads = reference.bias_gelu_backward(upstream_of(out, 0), x, bias)
    _assert_equal_to_plain(SMALL[2], (out, *grads))
    x, weight, bias, out_weight = _fp64(SMALL[3])
    act, slope = reference.linear_gelu(x, weight, bias)
    upstream = upstream_of(x, 0)
    grad_act, grad_bias = reference.linear_gelu_backward(
        upstream.flatten(0, 1), out_weight, slope.flatten(0, 1)
    )
    grads = (
        (grad_act @ weight).view_as(x),
        grad_act.t() @ x.flatten(0, 1),
        grad_bias,
        upstream.flatten(0, 1).t() @ act.flatten(0, 1),
    )
    _assert_equal_to_plain(SMALL[3], (act @ out_weight.t(), *grads))


def _fp64(op: Op) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().double() for tensor in inputs_of(op, torch.float32))


def _assert_equal_to_plain(op: Op, got: tuple[Tensor, ...]) -> None:
    for a, b in zip(got, run(op.plain, upcast(_fp64(op))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", SMALL, ids=str)
def test_gradients_are_bit_equal_between_runs(op: Op) -> None:
    inputs = inputs_of(op, element_types(op)[0])
    assert all(map(torch.equal, run(op.fused, inputs), run(op.fused, inputs)))


@pytest.mark.parametrize("op", SMALL, ids=str)
def test_layouts_do_not_matter(op: Op) -> None:
    inputs = inputs_of(op, element_types(op)[0])
    first = inputs[0].detach()
    strided = first.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert all(map(torch.equal, run(op.fused, inputs), run(op.fused, (strided, *inputs[1:]))))


@pytest.mark.filterwarnings(INSIDE_DYNAMO)
@pytest.mark.parametrize("op", SMALL, ids=str)
def test_fullgraph_compile(op: Op) -> None:
    inputs = inputs_of(op, element_types(op)[0])
    compiled = torch.compile(op.fused, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, run(compiled, inputs), run(op.fused, inputs)))


def test_opcheck() -> None:
    ops = torch.ops.ecgfast
    qkv = inputs_of(SMALL[0], torch.float32)[0].detach()
    out, lse = ops.short_attention(qkv)
    torch.library.opcheck(ops.short_attention.default, (qkv,))
    torch.library.opcheck(ops.short_attention_backward.default, (out, qkv, out, lse))
    x, branch, *vectors = (tensor.detach() for tensor in inputs_of(SMALL[1], torch.float32))
    arguments = (x, branch, *vectors, EPS)
    total, y, mean, rstd = ops.add_layer_norm(*arguments)
    torch.library.opcheck(ops.add_layer_norm.default, arguments)
    backward = ops.add_layer_norm_backward.default
    torch.library.opcheck(backward, (y, y, total, vectors[1], mean, rstd))
    x, bias = (tensor.detach() for tensor in inputs_of(SMALL[2], torch.float32))
    torch.library.opcheck(ops.bias_gelu.default, (x, bias))
    torch.library.opcheck(ops.bias_gelu_backward.default, (x, x, bias))
    x, weight, bias, out_weight = (
        t.detach() for t in inputs_of(SMALL[3], element_types(SMALL[3])[0])
    )
    x = x.flatten(0, 1)
    _, slope = ops.linear_gelu(x, weight, bias)
    torch.library.opcheck(ops.linear_gelu.default, (x, weight, bias, "quack"))
    torch.library.opcheck(ops.linear_gelu_backward.default, (x, out_weight, slope))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="qkv must be"):
        short_attention(torch.zeros(2, 5, 4, 2, 16), torch.zeros(3, 2, 16))
    with pytest.raises(ValueError, match=r"bias must be \(3, 2, 16\), got \(3, 16\)"):
        short_attention(torch.zeros(2, 5, 3, 2, 16), torch.zeros(3, 16))
    with pytest.raises(ValueError, match=r"weight_D must be \(8,\), got \(7,\)"):
        add_layer_norm(
            *[torch.zeros(2, 8)] * 2, torch.zeros(8), torch.zeros(7), torch.zeros(8), eps=EPS
        )
    with pytest.raises(ValueError, match="like the stream"):
        add_layer_norm(torch.zeros(2, 8), torch.zeros(3, 8), *[torch.zeros(8)] * 3, eps=EPS)
    with pytest.raises(ValueError, match="no kernel for float64; use fused=separate"):
        gelu_mlp(*(tensor.double() for tensor in inputs_of(SMALL[3], torch.float32)))
    with pytest.raises(ValueError, match=r"must fit the weight \(32, 8\)"):
        gelu_mlp(torch.zeros(2, 9), torch.zeros(32, 8), torch.zeros(32), torch.zeros(8, 32))
    with pytest.raises(ValueError, match=r"bias must be \(32,\)"):
        gelu_mlp(torch.zeros(2, 8), torch.zeros(32, 8), torch.zeros(8), torch.zeros(8, 32))
    with pytest.raises(ValueError, match=r"bias must be \(8,\)"):
        bias_gelu(torch.zeros(2, 8), torch.zeros(9))
