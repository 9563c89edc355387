"""The `kernels` case: each Triton op beside eager and compiled PyTorch, at ViT-Large's shapes.

Calls are replayed from a CUDA graph and the L2 cache is overwritten before each: the GPU's time for
cold data, without Python's. The end-to-end effect is the step case's `ecgfast-kernels-reference`.

Shapes: B records, N patches, K kept, L and P patch length bare and padded, D and E encoder's and
decoder's width, T tokens, H heads, R rows (B x T), F hidden width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from ecgfast_kernels.ops import reference
from ecgfast_kernels.ops.attention import short_attention
from ecgfast_kernels.ops.fused_block import add_layer_norm, bias_gelu, gelu_mlp
from ecgfast_kernels.ops.masked_loss import masked_mse
from ecgfast_kernels.ops.masking import patch_embed_masked, random_mask, unshuffle
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, pad, scaled_dot_product_attention

from ecgfast import log
from ecgfast.bench import (
    Call,
    Row,
    make_rows,
    measure_peaks,
    per_second,
    time_interleaved,
)

Op = Callable[..., Any]

_REPEATS = 50
# bf16 on both sides, rounded at different places: two roundings of 2^-8 of the largest value.
AGREEMENT = 2**-7
_EPS = 1e-6


class Case(NamedTuple):
    """One op at one shape, with random inputs; never zeros."""

    name: str
    shape: str
    ours: Op
    plain: Op  # what it replaces, in PyTorch
    arguments: tuple[Tensor, ...]
    leaves: tuple[int, ...]  # positions of the arguments that get a gradient; none: no backward
    bytes: tuple[int, int]  # least traffic, forward and backward: each input and output once
    flops: int = 0  # forward; the backward pass of a product here costs as much again
    others: Mapping[str, Op] = {}  # take turns with the rest


def measure_kernels(device: str) -> Iterator[Row]:
    """Measure every op on a GPU, "cuda", forward alone and with backward.

    Raises:
        RuntimeError: an op disagrees with its reference; no time of a wrong kernel is reported.
    """
    yield from (peak_rows := list(measure_peaks(device)))
    peaks = {row.unit: row.p50 for row in peak_rows}
    for case in kernel_cases(device):
        torch._dynamo.reset()  # each case compiles anew; the limit of 8 counts them together
        check(case, case.ours)
        ops = {"ecgfast": case.ours, "torch-eager": case.plain, **case.others}
        ops["torch-compiled"] = torch.compile(case.plain, fullgraph=True, dynamic=False)
        yield from _measure(case, forward, 1, ops, peaks)
        if case.leaves:
            yield from _measure(case, forward_backward, 2, ops, peaks)


def forward(case: Case, op: Op) -> tuple[Tensor, ...]:
    """Call a function of the case's arguments without gradients."""
    with torch.no_grad():
        return _outputs(case, op)


def forward_backward(case: Case, op: Op) -> tuple[Tensor, ...]:
    """Return the gradients of the leaves."""
    outputs, leaves = _outputs(case, op), [case.arguments[index] for index in case.leaves]
    # The outputs serve as their own gradients: random values, and nothing to allocate.
    return torch.autograd.grad(outputs, leaves, [output.detach() for output in outputs])


def _outputs(case: Case, op: Op) -> tuple[Tensor, ...]:
    result = op(*case.arguments)
    return result if isinstance(result, tuple) else (result,)


def difference(got: Iterable[Tensor], want: Iterable[Tensor]) -> float:
    """Largest of any tensor in units of its largest value, 1 for other integers; NaN for a NaN."""
    gaps = [
        (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30)
        if a.is_floating_point()
        else (a != b).any().double()
        for a, b in zip(got, want, strict=True)
    ]
    return float(torch.stack(gaps).max())


def check(case: Case, op: Op) -> None:
    """Raise a RuntimeError where a function's results are not those of plain PyTorch."""
    run = forward_backward if case.leaves else forward
    off = difference(run(case, op), run(case, case.plain))
    if not off <= AGREEMENT:  # not >, so that a NaN counts as a disagreement
        raise RuntimeError(f"{case.name} is off its reference by {off:.3g}: no timing")


def captured(call: Call) -> Call:
    """Record a call as a CUDA graph and return its replay."""
    side = torch.cuda.Stream()  # capture requires a warm-up on one
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _measure(
    case: Case, run: Op, passes: int, ops: dict[str, Op], peaks: dict[str, float]
) -> Iterator[Row]:
    name = f"{case.name}_{run.__name__}"
    calls: dict[str, Call] = {}
    for provider, op in ops.items():
        call = partial(run, case, op)
        try:
            call()  # compiles
            calls[provider] = captured(call)
        except RuntimeError as error:  # the others still count
            reason = str(error).strip().partition("\n")[0]
            log.warning(f"{name} by {provider} was not measured: {reason}")
    times = time_interleaved(calls, device="cuda", repeats=_REPEATS, flush_cache=True)
    limits = [("bandwidth", "GB/s", "share_of_copy", sum(case.bytes[:passes]) / 1e9)]
    if case.flops:
        limits.append(("throughput", "TFLOP/s", "share_of_matmul", passes * case.flops / 1e12))
    rows = partial(make_rows, case=name, shape=case.shape, device="cuda")
    for provider, ms in times.items():
        numbers = {("time", "us"): [1e3 * one for one in ms]}
        for metric, unit, share, count in limits:
            rates = numbers[metric, unit] = per_second(ms, count)
            numbers[share, "%"] = [100 * rate / peaks[unit] for rate in rates]
        if provider == "ecgfast" and (compiled := times.get("torch-compiled")):
            ratios = [theirs / ours for theirs, ours in zip(compiled, ms, strict=True)]
            numbers["speedup_over_compiled", "x"] = ratios
        yield from rows(numbers, provider=provider)


def kernel_cases(device: str) -> list[Case]:
    """Every op, at the sizes of a step of 256 records on a GPU; small on a CPU."""
    records, heads = ((256, 256), 16) if device == "cuda" else ((2, 1), 2)
    encoder = block_cases("encoder", records[0], 61, heads, 64, device)
    decoder = block_cases("decoder", records[1], 241, heads, 32, device)
    return [*_cases_around_blocks(device), *encoder, *decoder]


def _cases_around_blocks(device: str) -> list[Case]:
    B, D, E = (256, 1024, 512) if device == "cuda" else (8, 128, 96)
    N, K, L, P = 240, 60, 250, 256
    leaf = partial(_leaf, device=device)
    records_B = torch.arange(B, device=device) * 7919
    mask = partial(random_mask, seed=1, epoch=2, num_patches=N, num_keep=K)
    ids_keep_BK, ids_restore_BN, mask_BN = mask(records_B, backend="reference")
    patches_BNP = pad(torch.randn(B, N, L, device=device), (0, P - L)).half()
    positions = torch.randn(1 + N, D, device=device)  # fp32, as the model keeps them
    embedding = (leaf(D, L, scale=L**-0.5), leaf(D), positions, leaf(D))
    tokens = (leaf(B, 1 + K, E), ids_restore_BN, leaf(E), leaf(1 + N, E).detach())
    # as the decoder leaves it: a class token's row first, rows padded to P
    pred_BNP = leaf(B, 1 + N, P).detach()[:, 1:, :L].requires_grad_()

    def mask_and_embed(records_B: Tensor, patches: Tensor, *rest: Tensor, backend: str) -> Tensor:
        ids_keep_BK = mask(records_B, backend=backend)[0]
        return patch_embed_masked(patches, ids_keep_BK, *rest, backend=backend)

    size = pred_BNP.element_size()
    masks = B * (8 + 8 * K + 8 * N + N)
    embed = B * (1 + K) * D * size + B * K * (2 * P + 8) + D * L * size
    first, flops = embed + 4 * N * D, 2 * B * K * L * D
    moved = B * ((1 + K) * E * size + (1 + N) * E * size + 8 * N)
    read = B * (N - K) * (L * size + 2 * P)
    both, gathered = (records_B, patches_BNP, *embedding), (patches_BNP, ids_keep_BK, *embedding)
    loss, losses = partial(masked_mse, norm_patch=True), (pred_BNP, patches_BNP, mask_BN)
    table: list[tuple[str, Op, tuple[Tensor, ...], tuple[int, ...], tuple[int, int], int]] = [
        # op, arguments, leaves, bytes, FLOP; first what is held against torch.compile
        ("mask_and_patch_embed", mask_and_embed, both, (2, 3, 5), (first + masks, embed), flops),
        ("patch_embed_masked", patch_embed_masked, gathered, (2, 3, 5), (first, embed), flops),
        ("random_mask", mask, (records_B,), (), (masks, 0), 0),
        ("unshuffle", unshuffle, tokens, (0, 2), (moved + (1 + N) * E * size, moved), 0),
        ("masked_mse", loss, losses, (0,), (read, read + B * N * L * size), 0),
    ]
    shape = f"B{B} N{N} K{K} D{D} E{E} {str(pred_BNP.dtype)[6:]}"
    return [
        Case(name, shape, partial(op, backend="triton"), partial(op, backend="reference"), *rest)  # type: ignore[arg-type]  # mypy joins them
        for name, op, *rest in table
    ]


def block_cases(part: str, B: int, T: int, H: int, head_width: int, device: str) -> list[Case]:
    """The ops between a block's products, for B records of T tokens; `part` ends the names."""
    R, D, F = B * T, H * head_width, 4 * H * head_width
    leaf = partial(_leaf, device=device)
    mlp = (leaf(R, D), leaf(F, D, scale=D**-0.5), leaf(F), leaf(D, F, scale=F**-0.5))
    mlps: dict[str, Op] = {"ecgfast-separate": _separate}
    if find_spec("quack"):
        mlps["ecgfast-quack"] = partial(gelu_mlp, provider="quack")
    norm = partial(add_layer_norm, eps=_EPS)
    norms = (leaf(R, D), leaf(R, D), leaf(D), leaf(D), leaf(D))
    gelus, qkv = (leaf(R, F), leaf(F)), (leaf(B, T, 3, H, head_width),)
    table: list[tuple[str, Op, Op, tuple[Tensor, ...], int, int]] = [
        # ours, plain, arguments; traffic forward and backward, in times the first argument:
        # input, output, two tensors four times as wide; backward both of them, their gradient
        ("gelu_mlp", gelu_mlp, _plain_mlp, mlp, 10, 16),
        ("add_layer_norm", norm, _plain_norm, norms, 4, 4),
        ("bias_gelu", bias_gelu, reference.bias_gelu, gelus, 2, 3),
        # in thirds: q, k, v and the output; backward reads them, their gradient, writes three
        ("short_attention", short_attention, _plain_attention, qkv, 2, 3),
    ]
    cases = []
    for name, ours, plain, arguments, *passes in table:
        first, leaves = arguments[0], tuple(range(len(arguments)))
        shape = f"{'x'.join(map(str, first.shape))} {str(first.dtype)[6:]}"
        traffic = (passes[0] * first.nbytes, passes[1] * first.nbytes)
        others = mlps if name == "gelu_mlp" else {}
        name = f"{name}_{part}"
        cases.append(Case(name, shape, ours, plain, arguments, leaves, traffic, 0, others))
    return cases


def _leaf(*shape: int, device: str, scale: float = 1.0) -> Tensor:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return (scale * torch.randn(shape, device=device)).to(dtype).requires_grad_()


def _plain_mlp(x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
    return linear(gelu(linear(x, weight, bias)), out_weight)


def _separate(x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
    return linear(bias_gelu(linear(x, weight), bias), out_weight)


def _plain_norm(
    stream: Tensor, branch: Tensor, added: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    total = stream + (branch + added)
    return total, layer_norm(total, weight.shape, weight, bias, _EPS)


def _plain_attention(qkv: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return scaled_dot_product_attention(query, key, value).transpose(1, 2)
