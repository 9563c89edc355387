"""`linear_gelu` on quack's products, an optional package (github.com/Dao-AILab/quack), on Hopper.

Its products write a tile while they compute the next one, which Triton's cannot on Hopper. Written
for quack-kernels 0.6.5, checked against its sources and its compiler; it has not run on a GPU yet.
"""

# ruff: noqa: ANN001, ANN202 (quack traces the epilogues; their values are one element's)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-not-found"

from typing import Any

import torch
from quack.activation import dgelu_erf
from quack.epilogue.frontend import gemm_epilogue
from quack.epilogue.ops import RowVecLoad, RowVecReduce
from torch import Tensor

from ecgfast_kernels.ops import library
from ecgfast_kernels.ops.library import block_config
from ecgfast_kernels.ops.norm_triton import column_sums


@gemm_epilogue(outputs=("act",), ops={"bias": RowVecLoad("bias")})
def _gelu_and_slope(acc, bias):
    slope, act = dgelu_erf(acc + bias, 1.0)
    return {"D": slope, "act": act}


@gemm_epilogue(reduces={"sums": RowVecReduce("sums")})
def _times_slope(acc, c):
    product = acc * c
    return {"D": product, "sums": product}


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the product with GELU; see `reference.linear_gelu`."""
    _require_support(x)
    act = x.new_empty((x.shape[0], weight.shape[0]))
    slope = torch.empty_like(act)
    operands = {"bias": bias[None], "act": act}
    tiles = _tiles("linear_gelu_quack_forward", x)
    _gelu_and_slope.gemm(x, weight, slope, None, epi_args=operands, **tiles)
    return act, slope


def backward(grad: Tensor, out_weight: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the product with GELU's derivative; see `reference.linear_gelu_backward`."""
    _require_support(grad)
    grad_hidden = torch.empty_like(slope)
    tiles = _tiles("linear_gelu_quack_backward", grad)
    shape = (-(-slope.shape[0] // tiles["tile_M"]), slope.shape[1])
    partial = slope.new_empty(shape, dtype=torch.float32)
    # b_kn: the weight lies as (K, N), where others have (N, K)
    operands = {"sums": partial}
    _times_slope.gemm(grad, out_weight, grad_hidden, slope, epi_args=operands, b_kn=True, **tiles)
    return grad_hidden, column_sums(partial, grad.dtype)


def _tiles(op: str, tensor: Tensor) -> dict[str, Any]:
    config = block_config(op, tensor)
    return {**config, "pingpong": bool(config["pingpong"])}


def _require_support(tensor: Tensor) -> None:
    arch = torch.cuda.get_device_capability(tensor.device)
    library.require(
        arch[0] == 9 and tensor.element_size() == 2,
        f"fused=quack needs bf16 or fp16 on Hopper (compute capability 9.0), got {tensor.dtype} "
        f"on {arch[0]}.{arch[1]}; use fused=triton",
    )
