"""Blocks whose work between the matrix products our own kernels do: the setting `fused`.

They sum the gradients of biases and norms in passes that they make anyway. A block hands its last
branch to the next norm, which adds it to the stream in the pass that it makes anyway.
"""

# B records, T tokens, D width

from importlib.util import find_spec

import torch
from ecgfast_kernels.ops.fused_block import add_layer_norm, bias_gelu, gelu_mlp
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import linear

from ecgfast.errors import BackendUnavailableError
from ecgfast.model.block import NORM_EPS, Block
from ecgfast.vocabulary import Fused

# "off": torch.compile fuses what is between the products: the fastest measured so far.
# "separate": norms with their residual, and GELU with its bias, are one kernel each.
# "triton": the same norms; GELU runs inside the products before and behind it, in fp16 and bf16.
# "quack": the same by an optional package's products, on Hopper.
Carried = tuple[Tensor, Tensor, Tensor]


class FusedBlock(Block):
    """The same layers as a block; what it returns is still to be added up.

    Source: Dosovitskiy et al. 2021, equations 2 and 3.
    """

    def __init__(self, width: int, num_heads: int, fused: Fused) -> None:
        super().__init__(width, num_heads)
        self.fused: Fused = fused

    def forward(  # type: ignore[override]  # the residual crosses to the next block
        self, stream_BTD: Tensor, branch_BTD: Tensor, bias_D: Tensor
    ) -> Carried:
        """Apply attention and MLP to stream + branch + bias; return the three of the next block."""
        stream_BTD, normal = _add_norm(stream_BTD, branch_BTD, bias_D, self.norm1)
        mixed = linear(self.attn.mix(normal), self.attn.proj.weight)
        stream_BTD, normal = _add_norm(stream_BTD, mixed, self.attn.proj.bias, self.norm2)
        branch_BTD, bias = self._mlp(normal), self.mlp.fc2.bias
        if isinstance(self, FSDPModule):  # frees its parameters when it returns
            return stream_BTD, branch_BTD + bias, torch.zeros_like(bias_D)
        return stream_BTD, branch_BTD, bias

    def _mlp(self, normal_BTD: Tensor) -> Tensor:
        """The MLP without its last bias."""
        fc1, fc2 = self.mlp.fc1, self.mlp.fc2
        if self.fused in ("triton", "quack"):
            return gelu_mlp(normal_BTD, fc1.weight, fc1.bias, fc2.weight, provider=self.fused)
        return linear(bias_gelu(linear(normal_BTD, fc1.weight), fc1.bias), fc2.weight)


class FirstFusedBlock(FusedBlock):
    """Has no branch before it; a class of its own, so that compiled code of the others stays one.

    The zeros cost 0.06 ms of a ViT-Large step, predicted, and spare the norm a second kernel.
    """

    def forward(self, tokens_BTD: Tensor) -> Carried:  # type: ignore[override]  # as above
        """Apply attention and MLP to the tokens."""
        bias_D = tokens_BTD.new_zeros(tokens_BTD.shape[-1])
        return super().forward(tokens_BTD, torch.zeros_like(tokens_BTD), bias_D)


def make_blocks(depth: int, width: int, num_heads: int, fused: Fused) -> nn.ModuleList:
    """Blocks of one kind; parameters and their names do not depend on `fused`.

    Raises:
        BackendUnavailableError: quack is not installed.
    """
    if fused == "quack" and find_spec("quack") is None:
        raise BackendUnavailableError(
            "fused=quack needs the package quack, which is not installed; pip install "
            "quack-kernels==0.6.5 'nvidia-cutlass-dsl[cu13]', or use fused=triton"
        )
    if fused == "off":
        return nn.ModuleList(Block(width, num_heads) for _ in range(depth))
    kinds = [FirstFusedBlock, *[FusedBlock] * (depth - 1)]
    return nn.ModuleList(kind(width, num_heads, fused) for kind in kinds)


def run_blocks(blocks: nn.ModuleList, norm: nn.LayerNorm, tokens_BTD: Tensor) -> Tensor:
    """Run all blocks and the norm behind them; same shape."""
    if isinstance(blocks[0], FirstFusedBlock):
        carried: Carried = blocks[0](tokens_BTD)
        for block in blocks[1:]:
            carried = block(*carried)
        return _add_norm(*carried, norm)[1]
    for block in blocks:
        tokens_BTD = block(tokens_BTD)
    out: Tensor = norm(tokens_BTD)
    return out


def _add_norm(
    stream_BTD: Tensor, branch_BTD: Tensor, bias_D: Tensor, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    return add_layer_norm(stream_BTD, branch_BTD, bias_D, norm.weight, norm.bias, eps=NORM_EPS)
