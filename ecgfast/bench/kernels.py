"""The `kernels` case: each Triton op beside eager and compiled PyTorch, at ViT-Large's shapes.

Calls are replayed from a CUDA graph and the L2 cache is overwritten before each: the GPU's time for
cold data, without Python's. The end-to-end effect is the step case's `ecgfast-kernels-reference`.

Shapes: B records, N patches, K kept, L and P patch length bare and padded, D and E encoder's and
decoder's width, T tokens, H heads, R rows (B x T), F hidden width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from ecgfast_kernels.ops.attention import short_attention
from ecgfast_kernels.ops.fused_block import add_layer_norm, bias_gelu, gelu_mlp
from ecgfast_kernels.ops.masked_loss import masked_mse
from ecgfast_kernels.ops.masking import patch_embed_masked, random_mask, unshuffle
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from ecgfast import log
from ecgfast.bench.rows import Row, make_row
from ecgfast.bench.timing import measure_peaks, per_second, time_interleaved

_REPEATS = {"cuda": 50, "cpu": 5}
# bf16 on both sides, rounded at different places: two roundings of 2^-8 of the largest value.
AGREEMENT = 2**-7
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one shape, with random inputs; never zeros.

    Attributes:
        name: of the case in the rows.
        ours: the op, of `arguments`; it returns a tensor or several.
        plain: what it replaces, in PyTorch.
        leaves: positions of the arguments that get a gradient; none: no backward.
        bytes: least traffic of the forward and the backward pass: each input and output once.
        flops: of the forward pass; the backward of a product here costs as much again.
        others: by name, calls of the same arguments that take turns with the rest on a GPU.
    """

    name: str
    shape: str
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    arguments: tuple[Tensor, ...]
    leaves: tuple[int, ...] = ()
    bytes: tuple[int, int]
    flops: int = 0
    others: dict[str, Callable[..., Any]] = field(default_factory=dict)


def measure_kernels(device: str) -> Iterator[Row]:
    """Measure every op, forward alone and with backward.

    On a CPU, where Triton has only an interpreter, the two PyTorch variants are measured.

    Args:
        device: "cpu" or "cuda".
    Raises:
        RuntimeError: an op disagrees with its reference; no time of a wrong kernel is reported.
    """
    yield from (peak_rows := measure_peaks(device))
    peaks = {row.unit: row.p50 for row in peak_rows}
    for case in kernel_cases(device):
        torch._dynamo.reset()  # each case compiles anew; the limit of 8 counts them together
        functions = {"torch-eager": case.plain}
        functions["torch-compiled"] = torch.compile(case.plain, fullgraph=True, dynamic=False)
        if device == "cuda":
            check(case, case.ours)
            functions = {"ecgfast": case.ours, **functions, **case.others}
        yield from _measure(case, "forward", functions, device, peaks)
        if case.leaves:
            yield from _measure(case, "forward_backward", functions, device, peaks)


def forward(case: Case, function: Callable[..., Any]) -> Any:  # noqa: ANN401 (an op's outputs)
    """Call a function of the case's arguments without gradients."""
    with torch.no_grad():
        return function(*case.arguments)


def forward_backward(case: Case, function: Callable[..., Any]) -> tuple[Tensor, ...]:
    """Return the gradients of the leaves."""
    result = function(*case.arguments)
    outputs = result if isinstance(result, tuple) else (result,)
    leaves = [case.arguments[index] for index in case.leaves]
    # The outputs serve as their own gradients: random values, and nothing to allocate.
    return torch.autograd.grad(outputs, leaves, [output.detach() for output in outputs])


def check(case: Case, function: Callable[..., Any]) -> None:
    """Raise a RuntimeError where a function's results are not those of plain PyTorch."""
    run = forward_backward if case.leaves else forward
    for a, b in zip(run(case, function), run(case, case.plain), strict=True):
        error = (a.double() - b.double()).abs().max() / b.double().abs().max()
        # <=, not >, so that a NaN counts as a disagreement
        if not error.item() <= (AGREEMENT if a.is_floating_point() else 0):
            raise RuntimeError(f"{case.name} is off its reference by {error.item():.3g}: no timing")


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """Record a call as a CUDA graph and return its replay.

    Warmed up on a side stream, as capture requires.
    """
    side = torch.cuda.Stream()
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
    case: Case,
    name: str,
    functions: dict[str, Callable[..., Any]],
    device: str,
    peaks: dict[str, float],
) -> Iterator[Row]:
    on_gpu = device == "cuda"
    passes, run = (1, forward) if name == "forward" else (2, forward_backward)
    calls, memory_mib = {}, {}
    for provider, function in functions.items():
        call = partial(run, case, function)
        try:
            call()  # compiles
            memory_mib[provider] = _peak_memory_mib(call) if on_gpu else 0.0
            calls[provider] = captured(call) if on_gpu else call
        except RuntimeError as error:  # the others still count
            reason = str(error).strip().partition("\n")[0]
            log.warning(f"{case.name} {name} by {provider} was not measured: {reason}")
    times = time_interleaved(calls, device=device, repeats=_REPEATS[device], flush_cache=on_gpu)
    make = partial(make_row, case=f"{case.name}_{name}", shape=case.shape, device=device)
    for provider, ms in times.items():
        row = partial(make, provider=provider)
        yield row(values=[1e3 * one for one in ms], metric="time", unit="us")
        rate = per_second(ms, sum(case.bytes[:passes]) / 1e9)
        yield row(values=rate, metric="bandwidth", unit="GB/s")
        share = [100 * one / peaks["GB/s"] for one in rate]
        yield row(values=share, metric="share_of_copy", unit="%")
        if case.flops:
            rate = per_second(ms, passes * case.flops / 1e12)
            yield row(values=rate, metric="throughput", unit="TFLOP/s")
            share = [100 * one / peaks["TFLOP/s"] for one in rate]
            yield row(values=share, metric="share_of_matmul", unit="%")
        if on_gpu:
            yield row(values=[memory_mib[provider]], metric="memory", unit="MiB")
    if {"ecgfast", "torch-compiled"} <= times.keys():
        pairs = zip(times["torch-compiled"], times["ecgfast"], strict=True)
        ratios = [compiled / ours for compiled, ours in pairs]
        yield make(provider="ecgfast", values=ratios, metric="speedup_over_compiled", unit="x")


def _peak_memory_mib(call: Callable[[], Any]) -> float:
    """Memory that a call needs beyond its inputs, its outputs included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def kernel_cases(device: str) -> list[Case]:
    """Every op, at the sizes of a step of 256 records on a GPU; small on a CPU."""
    parts = {"encoder": (2, 61, 2, 64), "decoder": (1, 241, 2, 32)}
    if device == "cuda":
        parts = {"encoder": (256, 61, 16, 64), "decoder": (256, 241, 16, 32)}
    in_blocks = [case for name, part in parts.items() for case in block_cases(name, *part, device)]
    return [*_cases_around_blocks(device), *in_blocks]


def _cases_around_blocks(device: str) -> list[Case]:
    B, D, E = (256, 1024, 512) if device == "cuda" else (8, 128, 96)
    N, K, L, P = 240, 60, 250, 256
    leaf = partial(_leaf, device=device)
    records_B = torch.arange(B, device=device) * 7919
    mask = partial(random_mask, seed=1, epoch=2, num_patches=N, num_keep=K)
    ids_keep_BK, ids_restore_BN, mask_BN = mask(records_B, backend="reference")
    patches_BNP = torch.nn.functional.pad(torch.randn(B, N, L, device=device), (0, P - L)).half()
    positions = torch.randn(1 + N, D, device=device)  # fp32, as the model keeps them
    embedding = (leaf(D, L, scale=L**-0.5), leaf(D), positions, leaf(D))
    tokens = (leaf(B, 1 + K, E), ids_restore_BN, leaf(E), leaf(1 + N, E).detach())
    # as the decoder leaves it: a class token's row first, rows padded to P
    pred_BNP = leaf(B, 1 + N, P).detach()[:, 1:, :L].requires_grad_()

    def mask_and_embed(records_B: Tensor, patches: Tensor, *rest: Tensor, backend: str) -> Tensor:
        ids_keep_BK = mask(records_B, backend=backend)[0]
        return patch_embed_masked(patches, ids_keep_BK, *rest, backend=backend)

    def case(
        name: str,
        op: Callable[..., Any],
        arguments: tuple[Tensor, ...],
        traffic: tuple[int, int],
        leaves: tuple[int, ...] = (),
        flops: int = 0,
    ) -> Case:
        return Case(
            name=name,
            shape=f"B{B} N{N} K{K} D{D} E{E} {_dtype_name(tokens[0])}",
            ours=partial(op, backend="triton"),
            plain=partial(op, backend="reference"),
            arguments=arguments,
            leaves=leaves,
            bytes=traffic,
            flops=flops,
        )

    size = pred_BNP.element_size()
    masks = B * (8 + 8 * K + 8 * N + N)
    embed = B * (1 + K) * D * size + B * K * (2 * P + 8) + D * L * size
    fixed, flops = 4 * N * D, 2 * B * K * L * D
    moved = B * ((1 + K) * E * size + (1 + N) * E * size + 8 * N)
    read = B * (N - K) * (L * size + 2 * P)
    both, first = (records_B, patches_BNP, *embedding), (embed + fixed + masks, embed)
    gathered, second = (patches_BNP, ids_keep_BK, *embedding), (embed + fixed, embed)
    loss, losses = partial(masked_mse, norm_patch=True), (pred_BNP, patches_BNP, mask_BN)
    return [  # first what is held against torch.compile
        case("mask_and_patch_embed", mask_and_embed, both, first, (2, 3, 5), flops),
        case("patch_embed_masked", patch_embed_masked, gathered, second, (2, 3, 5), flops),
        case("random_mask", mask, (records_B,), (masks, 0)),
        case("unshuffle", unshuffle, tokens, (moved + (1 + N) * E * size, moved), (0, 2)),
        case("masked_mse", loss, losses, (read, read + B * N * L * size), (0,)),
    ]


def block_cases(part: str, B: int, T: int, H: int, head_width: int, device: str) -> list[Case]:
    """The ops between a block's products.

    Args:
        part: at the end of the names.
        B: records.
        T: tokens of a record.
        H: heads.
        head_width: columns of a head.
        device: "cpu" or "cuda".
    """
    R, D, F = B * T, H * head_width, 4 * H * head_width
    leaf = partial(_leaf, device=device)
    mlp = (leaf(R, D), leaf(F, D, scale=D**-0.5), leaf(F), leaf(D, F, scale=F**-0.5))
    mlps: dict[str, Callable[..., Any]] = {"products": _products, "ecgfast-separate": _separate}
    if find_spec("quack"):
        mlps["ecgfast-quack"] = partial(gelu_mlp, provider="quack")
    norm = partial(add_layer_norm, eps=_EPS)
    norms = (leaf(R, D), leaf(R, D), leaf(D), leaf(D), leaf(D))
    gelus, qkv = (leaf(R, F), leaf(F)), (leaf(B, T, 3, H, head_width),)
    return [
        Case(
            name=f"{name}_{part}",
            shape=f"{'x'.join(map(str, arguments[0].shape))} {_dtype_name(arguments[0])}",
            ours=ours,
            plain=plain,
            arguments=arguments,
            leaves=tuple(range(len(arguments))),
            bytes=(passes[0] * arguments[0].nbytes, passes[1] * arguments[0].nbytes),
            others=others,
        )
        for name, ours, plain, arguments, passes, others in (  # over the first argument
            # input, output, two tensors four times as wide; backward both of them, their gradient
            ("gelu_mlp", gelu_mlp, _plain_mlp, mlp, (10, 16), mlps),
            ("add_layer_norm", norm, _plain_norm, norms, (4, 4), {}),
            ("bias_gelu", bias_gelu, _plain_gelu, gelus, (2, 3), {}),
            # in thirds: q, k, v and the output; backward reads them, their gradient, writes three
            ("short_attention", short_attention, _plain_attention, qkv, (2, 3), {}),
        )
    ]


def _leaf(*shape: int, device: str, scale: float = 1.0) -> Tensor:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return (scale * torch.randn(shape, device=device)).to(dtype).requires_grad_()


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _plain_mlp(x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
    return linear(gelu(linear(x, weight, bias)), out_weight)


def _separate(x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
    return linear(bias_gelu(linear(x, weight), bias), out_weight)


def _products(x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
    """What no GELU can be faster than; the bias adds 0.1 % of the time."""
    return linear(linear(x, weight, bias), out_weight)


def _plain_norm(
    stream: Tensor, branch: Tensor, added: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    total = stream + (branch + added)
    return total, layer_norm(total, weight.shape, weight, bias, _EPS)


def _plain_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return gelu(x + bias)


def _plain_attention(qkv: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return scaled_dot_product_attention(query, key, value).transpose(1, 2)
