"""The Triton kernel behind `adamw.adamw_`: one launch that finds its tensors through a table."""

# ruff: noqa: ANN001, ANN201 (Triton types its kernels itself)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.ops.library import block_config

_ELEMENTS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# Tables of recorded CUDA graphs, which keep only their addresses: they must not be freed.
_RECORDED: list[tuple[Tensor, ...]] = []


@triton.jit
def pointer(table_ptr, ELEMENT: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Address in the table -> pointer; the alignment lets it be read 16 bytes at a time."""
    return tl.multiple_of(tl.load(table_ptr).to(tl.pointer_type(ELEMENT)), ALIGNMENT)


@triton.jit
def load_gradient(
    row,  # of the table, from the first pass on
    at,  # (BLOCK,) elements of the tensor
    valid,  # (BLOCK,), None: all
    GRADIENT: tl.constexpr,
    PASSES: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Sum of some elements' gradients over the passes, in fp32."""
    total = tl.load(pointer(row, GRADIENT, ALIGNMENT) + at, mask=valid).to(tl.float32)
    for index in tl.static_range(1, PASSES):
        arrived = tl.load(pointer(row + index, GRADIENT, ALIGNMENT) + at, mask=valid)
        total += arrived.to(tl.float32)
    return total


@triton.jit
def update_block(
    row,  # of the table
    at,  # (BLOCK,) elements of the tensor
    valid,  # (BLOCK,)
    decay,
    factor_ptr,  # (4,) fp32
    beta1,
    beta2,
    eps,
    COPY: tl.constexpr,
    GRADIENT: tl.constexpr,
    PASSES: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """AdamW of some elements of one tensor; see `reference.adamw_`."""
    weight_ptr = pointer(row, tl.float32, ALIGNMENT) + at
    mean_ptr = pointer(row + 2, tl.float32, ALIGNMENT) + at
    square_ptr = pointer(row + 3, tl.float32, ALIGNMENT) + at
    grad = load_gradient(row + 4, at, valid, GRADIENT, PASSES, ALIGNMENT)
    mean = tl.load(mean_ptr, mask=valid)
    square = tl.load(square_ptr, mask=valid)
    weight = tl.load(weight_ptr, mask=valid)

    grad *= tl.load(factor_ptr)
    mean += (grad - mean) * (1 - beta1)
    square += (grad * grad - square) * (1 - beta2)
    weight *= 1 - tl.load(factor_ptr + 3) * decay
    root = tl.sqrt(square) * tl.load(factor_ptr + 2)
    weight -= tl.load(factor_ptr + 1) * mean / (root + eps)

    tl.store(mean_ptr, mean, mask=valid)
    tl.store(square_ptr, square, mask=valid)
    tl.store(weight_ptr, weight, mask=valid)
    tl.store(pointer(row + 1, COPY, ALIGNMENT) + at, weight.to(COPY), mask=valid)


@triton.jit
def step_kernel(
    table_ptr,  # (tensors, 6 + PASSES) int64: weight, copy, moments, gradients, elements, aligned
    decay_ptr,  # (tensors,) fp32
    block_ptr,  # (programs, 2) int32: tensor, block within it
    factor_ptr,  # (4,) fp32
    skipped_ptr,  # (1,)
    beta1,
    beta2,
    eps,
    COPY: tl.constexpr,
    GRADIENT: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one tensor."""
    tensor = tl.load(block_ptr + 2 * tl.program_id(0))
    first = tl.load(block_ptr + 2 * tl.program_id(0) + 1) * BLOCK
    row = table_ptr + tensor * (6 + PASSES)
    decay = tl.load(decay_ptr + tensor)
    end = tl.where(tl.load(skipped_ptr) == 0, tl.load(row + 4 + PASSES), 0)
    at = first + tl.arange(0, BLOCK)
    # Whole blocks of aligned tensors go without a mask and 16 bytes at a time. The rest, such as a
    # slice of a larger tensor, goes element by element: it slows nothing else down.
    settings = (decay, factor_ptr, beta1, beta2, eps)
    if (first + BLOCK <= end) & (tl.load(row + 5 + PASSES) != 0):
        update_block(row, at, None, *settings, COPY, GRADIENT, PASSES, 16)
    else:
        update_block(row, at, at < end, *settings, COPY, GRADIENT, PASSES, 2)


@triton.jit
def squares_kernel(
    table_ptr,  # (tensors, PASSES + 2) int64: gradients, elements, aligned
    block_ptr,  # (programs, 2) int32: tensor, block within it
    partial_ptr,  # (programs,) fp32 out
    GRADIENT: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Squares of one block of one tensor, whose gradients are added up over the passes."""
    row = table_ptr + tl.load(block_ptr + 2 * tl.program_id(0)) * (PASSES + 2)
    first = tl.load(block_ptr + 2 * tl.program_id(0) + 1) * BLOCK
    at = first + tl.arange(0, BLOCK)
    end = tl.load(row + PASSES)
    if (first + BLOCK <= end) & (tl.load(row + PASSES + 1) != 0):
        grad = load_gradient(row, at, None, GRADIENT, PASSES, 16)
        tl.store(partial_ptr + tl.program_id(0), tl.sum(grad * grad, 0))
    else:
        grad = load_gradient(row, at, at < end, GRADIENT, PASSES, 2)
        grad = tl.where(at < end, grad, 0.0)
        tl.store(partial_ptr + tl.program_id(0), tl.sum(grad * grad, 0))


def step(
    weights: list[Tensor],
    copies: list[Tensor],
    gradients: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    decays: list[float],
    beta1: float,
    beta2: float,
    eps: float,
    factors_4: Tensor,
    skipped: Tensor,
) -> None:
    """Launch the kernel; see `reference.adamw_`."""
    device = weights[0].device
    config = block_config("adamw", gradients[0])
    columns = (weights, copies, exp_avg, exp_avg_sq, gradients)
    addresses = tuple(tensor.data_ptr() for group in columns for tensor in group)
    sizes = tuple(weight.numel() for weight in weights)
    table, decay = _table(addresses, sizes, device), _vector(tuple(decays), device)
    blocks = _blocks(sizes, config["BLOCK"], device)
    _keep_if_recorded(table, decay, blocks)
    with torch.cuda.device_of(weights[0]):
        step_kernel[(len(blocks),)](
            table,
            decay,
            blocks,
            factors_4,
            skipped,
            beta1,
            beta2,
            eps,
            COPY=_ELEMENTS[copies[0].dtype],
            GRADIENT=_ELEMENTS[gradients[0].dtype],
            PASSES=len(gradients) // len(weights),
            **config,
        )


def squares_of_sums(gradients: list[Tensor], num_tensors: int) -> Tensor:
    """Launch the sums of squares; see `reference.squares_of_sums`."""
    first = gradients[0]
    config = block_config("adamw", first)
    addresses = tuple(tensor.data_ptr() for tensor in gradients)
    sizes = tuple(tensor.numel() for tensor in gradients[:num_tensors])
    table = _table(addresses, sizes, first.device)
    blocks = _blocks(sizes, config["BLOCK"], first.device)
    _keep_if_recorded(table, blocks)
    partial = torch.empty(len(blocks), dtype=torch.float32, device=first.device)
    with torch.cuda.device_of(first):
        squares_kernel[(len(blocks),)](
            table,
            blocks,
            partial,
            GRADIENT=_ELEMENTS[first.dtype],
            PASSES=len(gradients) // num_tensors,
            **config,
        )
    return partial.sum()


def _keep_if_recorded(*tensors: Tensor) -> None:
    if tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
        _RECORDED.append(tensors)


@lru_cache(maxsize=4)
def _table(addresses: tuple[int, ...], sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """One row per tensor. Built anew only where gradients have moved since the last steps."""
    groups = torch.tensor(addresses, dtype=torch.int64).view(-1, len(sizes))
    aligned = (groups % 16 == 0).all(dim=0, keepdim=True)
    rows = torch.cat([groups, torch.tensor([sizes]), aligned]).T.contiguous()
    return _to_device(rows, device)


@lru_cache(maxsize=4)
def _blocks(sizes: tuple[int, ...], block: int, device: torch.device) -> Tensor:
    counts = torch.tensor([triton.cdiv(size, block) for size in sizes])
    tensor = torch.arange(len(sizes)).repeat_interleave(counts)
    within = torch.arange(len(tensor)) - (counts.cumsum(0) - counts)[tensor]
    return _to_device(torch.stack([tensor, within], dim=1).int(), device)


@lru_cache(maxsize=4)
def _vector(values: tuple[float, ...], device: torch.device) -> Tensor:
    return _to_device(torch.tensor(values, dtype=torch.float32), device)


def _to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy without waiting for the device, which only pinned memory allows."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
