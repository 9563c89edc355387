"""Block sizes worth trying for each kernel, and calls at ViT-Large's sizes to measure them by."""

# B records, N patches, K kept, T tokens, D width, H heads, R rows (records x tokens)

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ecgfast_kernels import attention, gelu, norm  # noqa: F401 (they define operators)
from ecgfast_kernels.adamw import factors
from torch import Tensor

from ecgfast.bench.kernel_cases import OpCase, op_cases

Config = dict[str, int]
Call = Callable[[], Any]
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Search:
    """Candidates of one kernel and the call that runs it.

    Attributes:
        op: key of the table of block sizes.
        bits: size of the elements that the row is for.
        prepare: makes the inputs for a device ("cpu" or "cuda"), and returns the call.
        candidates: rows to try.
    """

    op: str
    bits: int = 16
    prepare: Callable[[str], Call]
    candidates: tuple[Config, ...]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Encoder or decoder of ViT-Large; tiny on a CPU, where only a test runs this."""

    batch: int
    tokens: int
    heads: int
    head_width: int

    @property
    def width(self) -> int:
        return self.heads * self.head_width


def _encoder(device: str) -> _Part:
    return _Part(batch=256 if device == "cuda" else 1, tokens=61, heads=16, head_width=64)


def _decoder(device: str) -> _Part:
    return _Part(batch=256 if device == "cuda" else 1, tokens=241, heads=16, head_width=32)


def _finetuned(device: str) -> _Part:
    return _Part(batch=64 if device == "cuda" else 1, tokens=241, heads=16, head_width=64)


def _random(*shape: int, device: str) -> Tensor:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return torch.randn(shape, device=device, dtype=dtype)


def _encoder_layer(build: Callable[[_Part, str], Call]) -> Callable[[str], Call]:
    return lambda device: build(_encoder(device), device)


def _decoder_layer(build: Callable[[_Part, str], Call]) -> Callable[[str], Call]:
    return lambda device: build(_decoder(device), device)


def _layers(build: Callable[[_Part, str], Call]) -> Callable[[str], Call]:
    """Three encoder layers for each decoder layer, as in ViT-Large: one row serves both."""

    def prepare(device: str) -> Call:
        encoder, decoder = build(_encoder(device), device), build(_decoder(device), device)
        return lambda: (encoder(), encoder(), encoder(), decoder())

    return prepare


def _case(name: str, device: str) -> OpCase:
    return next(case for case in op_cases(device) if case.name == name)


def _random_mask(device: str) -> Call:
    case = _case("random_mask", device)
    return lambda: case.function(*case.arguments, **case.options, backend="auto")


def _patch_embed_forward(device: str) -> Call:
    inputs = [tensor.detach() for tensor in _case("patch_embed_masked", device).arguments]
    return lambda: torch.ops.ecgfast.patch_embed_masked(*inputs)


def _patch_embed_backward(device: str) -> Call:
    patches_BNP, ids_keep_BK, weight_DL, *_ = _case("patch_embed_masked", device).arguments
    batch, num_keep = ids_keep_BK.shape
    width, length = weight_DL.shape
    grad_BTD = _random(batch, 1 + num_keep, width, device=device)
    op = torch.ops.ecgfast.patch_embed_masked_backward
    return lambda: op(grad_BTD, patches_BNP, ids_keep_BK, length)


def _unshuffle_forward(device: str) -> Call:
    inputs = [tensor.detach() for tensor in _case("unshuffle", device).arguments]
    return lambda: torch.ops.ecgfast.unshuffle(*inputs)


def _unshuffle_backward(device: str) -> Call:
    tokens_BKE, ids_restore_BN, *_ = _case("unshuffle", device).arguments
    batch, num_patches = ids_restore_BN.shape
    grad_BNE = _random(batch, 1 + num_patches, tokens_BKE.shape[2], device=device)
    num_keep = tokens_BKE.shape[1] - 1
    return lambda: torch.ops.ecgfast.unshuffle_backward(grad_BNE, ids_restore_BN, num_keep)


def _masked_mse(device: str) -> Call:
    case = _case("masked_mse", device)

    def call() -> tuple[Tensor, ...]:
        loss: Tensor = case.function(*case.arguments, **case.options, backend="auto")
        return torch.autograd.grad(loss, case.arguments[0], loss.detach())

    return call


def _qkv(part: _Part, device: str) -> tuple[Tensor, Tensor]:
    heads = (3, part.heads, part.head_width)
    return _random(part.batch, part.tokens, *heads, device=device), _random(*heads, device=device)


def _attention_forward(part: _Part, device: str) -> Call:
    qkv, bias = _qkv(part, device)
    return lambda: torch.ops.ecgfast.short_attention(qkv, bias)


def _attention_backward(part: Callable[[str], _Part]) -> Callable[[str], Call]:
    def prepare(device: str) -> Call:
        qkv, bias = _qkv(part(device), device)
        out, lse = torch.ops.ecgfast.short_attention(qkv, bias)
        grad = torch.randn_like(out)
        return lambda: torch.ops.ecgfast.short_attention_backward(grad, qkv, bias, out, lse)

    return prepare


def _rows(part: _Part, device: str, count: int, *, widen: int = 1) -> list[Tensor]:
    shape = (part.batch * part.tokens, part.width * widen)
    return [_random(*shape, device=device) for _ in range(count)]


def _norm_forward(part: _Part, device: str) -> Call:
    stream, branch = _rows(part, device, 2)
    vectors = [_random(part.width, device=device) for _ in range(3)]
    return lambda: torch.ops.ecgfast.add_layer_norm(stream, branch, *vectors, EPS)


def _norm_backward(part: _Part, device: str) -> Call:
    grad_total, grad_out, total = _rows(part, device, 3)
    variance, mean = torch.var_mean(total.float(), dim=1, correction=0)
    inputs = (total, _random(part.width, device=device), mean, (variance + EPS).rsqrt())
    return lambda: torch.ops.ecgfast.add_layer_norm_backward(grad_total, grad_out, *inputs)


def _gelu_forward(part: _Part, device: str) -> Call:
    (x,) = _rows(part, device, 1, widen=4)
    bias = _random(x.shape[1], device=device)
    return lambda: torch.ops.ecgfast.bias_gelu(x, bias)


def _gelu_backward(part: _Part, device: str) -> Call:
    grad, x = _rows(part, device, 2, widen=4)
    bias = _random(x.shape[1], device=device)
    return lambda: torch.ops.ecgfast.bias_gelu_backward(grad, x, bias)


def _column_sums(device: str) -> Call:
    from ecgfast_kernels.column_sums_triton import column_sums  # Triton is optional

    shape = (528, 3, 1024) if device == "cuda" else (5, 3, 40)
    partial = torch.randn(shape, device=device)
    return lambda: column_sums(partial, torch.bfloat16)


def _adamw(device: str) -> Call:
    shapes = [(1024, 4096)] * 16 if device == "cuda" else [(3, 100)]
    weights, exp_avg = ([torch.randn(s, device=device) for s in shapes] for _ in range(2))
    exp_avg_sq = [torch.rand(s, device=device) for s in shapes]
    copies, gradients = ([_random(*s, device=device) for s in shapes] for _ in range(2))
    lists = (weights, copies, gradients, exp_avg, exp_avg_sq)
    one, zero = torch.ones((), device=device), torch.zeros((), device=device)
    # a learning rate of 0: calls that are compared and timed start from the same weights
    shared = factors(one, one, betas=(0.9, 0.95), learning_rate=0.0)
    decays = [0.05] * len(shapes)

    def call() -> list[Tensor]:
        torch.ops.ecgfast.adamw_(*lists, decays, 0.9, 0.95, 1e-8, shared, zero)
        return weights

    return call


def _configs(names: str, *rows: tuple[int, ...]) -> tuple[Config, ...]:
    keys = [*names.split(), "num_warps", "num_stages"]
    return tuple(dict(zip(keys, row, strict=True)) for row in rows)


# The most valuable first, should time run out: the patch embedding is held against torch.compile,
# norms and GELUs decide whether the fused blocks pay, the rest was near its limit.
# PROGRAMS are multiples of the 132 multiprocessors of an H100, or a little under one.
SEARCHES = (
    Search(
        op="patch_embed_backward",
        prepare=_patch_embed_backward,
        candidates=_configs(
            "BLOCK_R BLOCK_D BLOCK_P PROGRAMS",
            (64, 128, 128, 132, 8, 4),
            (64, 128, 128, 132, 8, 3),
            (128, 128, 128, 132, 8, 3),
            (64, 256, 128, 132, 8, 4),
            (64, 256, 128, 132, 8, 3),
            (32, 256, 128, 132, 8, 4),
            (64, 64, 128, 264, 4, 4),
            (64, 128, 64, 264, 4, 4),
            (64, 64, 256, 132, 8, 4),
        ),
    ),
    Search(
        op="patch_embed_forward",
        prepare=_patch_embed_forward,
        candidates=_configs(
            "BLOCK_R BLOCK_D BLOCK_P PROGRAMS",
            (128, 128, 64, 132, 8, 3),
            (64, 128, 64, 132, 8, 3),
            (64, 128, 128, 132, 8, 3),
            (64, 128, 64, 132, 8, 4),
            (64, 64, 64, 264, 4, 3),
            (64, 64, 64, 264, 8, 3),
            (32, 64, 64, 264, 4, 3),
            (128, 64, 64, 264, 8, 2),
            (128, 64, 64, 132, 8, 3),
        ),
    ),
    Search(
        op="add_layer_norm_backward_narrow",
        prepare=_decoder_layer(_norm_backward),
        candidates=_configs(
            "ELEMENTS PROGRAMS STAGES",
            (1024, 792, 1, 4, 1),
            (1024, 528, 2, 4, 1),
            (1024, 528, 2, 2, 1),
            (1024, 528, 1, 2, 1),
            (512, 1056, 1, 2, 1),
            (512, 1584, 1, 1, 1),
            (2048, 264, 1, 4, 1),
        ),
    ),
    Search(
        op="add_layer_norm_backward_wide",
        prepare=_encoder_layer(_norm_backward),
        candidates=_configs(
            "ELEMENTS PROGRAMS STAGES",
            (1024, 792, 1, 4, 1),
            (1024, 528, 2, 4, 1),
            (1024, 528, 1, 2, 1),
            (2048, 528, 2, 4, 1),
            (2048, 528, 1, 4, 1),
            (4096, 264, 1, 4, 1),
        ),
    ),
    Search(
        op="add_layer_norm_forward_narrow",
        prepare=_decoder_layer(_norm_forward),
        candidates=_configs(
            "ELEMENTS", (4096, 4, 1), (2048, 4, 1), (1024, 2, 1), (512, 1, 1), (1024, 1, 1)
        ),
    ),
    Search(
        op="add_layer_norm_forward_wide",
        prepare=_encoder_layer(_norm_forward),
        candidates=_configs("ELEMENTS", (2048, 4, 1), (1024, 4, 1), (1024, 2, 1), (2048, 2, 1)),
    ),
    Search(
        op="column_sums",
        bits=32,
        prepare=_column_sums,
        candidates=_configs(
            "BLOCK_R BLOCK_C", (64, 32, 4, 1), (128, 32, 8, 1), (128, 16, 4, 1), (32, 32, 4, 1)
        ),
    ),
    Search(
        op="bias_gelu_backward",
        prepare=_layers(_gelu_backward),
        candidates=_configs(
            "BLOCK_R BLOCK_C ROWS STAGES",
            (4, 512, 128, 1, 4, 1),
            (4, 512, 64, 1, 4, 1),
            (4, 512, 64, 3, 4, 1),
            (2, 512, 64, 3, 4, 1),
            (8, 256, 128, 2, 4, 1),
            (4, 1024, 64, 2, 8, 1),
            (2, 1024, 32, 1, 4, 1),
            (8, 512, 128, 2, 8, 1),
        ),
    ),
    Search(
        op="bias_gelu_forward",
        prepare=_layers(_gelu_forward),
        candidates=_configs(
            "BLOCK_R BLOCK_C", (4, 512, 4, 1), (2, 512, 4, 1), (8, 512, 4, 1), (4, 1024, 8, 1)
        ),
    ),
    Search(
        op="adamw",
        prepare=_adamw,
        candidates=_configs("BLOCK", (2048, 8, 1), (1024, 4, 1), (2048, 4, 1), (4096, 8, 1)),
    ),
    Search(
        op="attention_backward_short_64",
        prepare=_attention_backward(_encoder),
        candidates=_configs("BLOCK", (64, 4, 1), (64, 4, 2), (64, 4, 3), (64, 8, 1), (32, 4, 2)),
    ),
    Search(
        op="attention_backward_long_32",
        prepare=_attention_backward(_decoder),
        candidates=_configs(
            "BLOCK", (64, 4, 1), (64, 4, 2), (64, 4, 3), (64, 8, 2), (128, 8, 1), (128, 8, 2)
        ),
    ),
    Search(
        op="attention_forward",
        prepare=_layers(_attention_forward),
        candidates=_configs("BLOCK_M", (64, 4, 1), (64, 4, 2), (64, 4, 3), (32, 4, 3), (64, 8, 2)),
    ),
    Search(
        op="attention_backward_long_64",
        prepare=_attention_backward(_finetuned),
        candidates=_configs("BLOCK", (64, 8, 1), (64, 8, 2), (64, 4, 1), (64, 4, 2), (32, 4, 2)),
    ),
    Search(
        op="unshuffle_backward",
        prepare=_unshuffle_backward,
        candidates=_configs(
            "BLOCK_T BLOCK_E", (16, 256, 4, 2), (16, 256, 4, 4), (16, 128, 4, 3), (8, 512, 4, 3)
        ),
    ),
    Search(
        op="unshuffle_forward",
        prepare=_unshuffle_forward,
        candidates=_configs(
            "BLOCK_T BLOCK_E", (8, 512, 4, 1), (4, 512, 4, 1), (16, 512, 8, 1), (16, 256, 4, 1)
        ),
    ),
    Search(
        op="masked_mse",
        prepare=_masked_mse,
        candidates=_configs("BLOCK_R", (8, 4, 1), (4, 4, 1), (16, 8, 1), (4, 2, 1)),
    ),
    Search(
        op="random_mask",
        bits=64,
        prepare=_random_mask,
        candidates=_configs("BLOCK_B", (1, 1, 1), (2, 1, 1), (4, 4, 1), (1, 2, 1)),
    ),
)
