"""Blocks of a vision transformer: attention and MLP, each behind a norm, with their residuals."""

# B records, T tokens, D width, H heads

from importlib.util import find_spec

import torch
from ecgfast_kernels.ops.fused_block import add_layer_norm, bias_gelu, gelu_mlp
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import gelu, linear

from ecgfast.errors import BackendUnavailableError, ConfigError
from ecgfast.model.attention import attention
from ecgfast.vocabulary import AttentionKernel, Fused

NORM_EPS = 1e-6
MLP_RATIO = 4
Carried = tuple[Tensor, Tensor, Tensor]  # stream, branch and bias, still to be added up


class Attention(nn.Module):
    """Multi-head self-attention; `backend` names the kernel."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(f"model width {width} must be a multiple of its {num_heads} heads")
        self.num_heads = num_heads
        self.backend: AttentionKernel = "auto"
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Mix the tokens of each record; same shape."""
        out: Tensor = self.proj(self.mix(tokens_BTD))
        return out

    def mix(self, tokens_BTD: Tensor) -> Tensor:
        """Attention without the projection after it; same shape."""
        batch, num_tokens, width = tokens_BTD.shape
        heads = (3, self.num_heads, width // self.num_heads)
        if self.backend == "triton":  # its backward sums the bias's gradient on the way
            qkv = linear(tokens_BTD, self.qkv.weight, self.qkv.bias.detach())
            bias = self.qkv.bias.view(heads)
            return attention(qkv.view(batch, num_tokens, *heads), self.backend, bias_3HK=bias)
        return attention(self.qkv(tokens_BTD).view(batch, num_tokens, *heads), self.backend)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Transform each token by itself; same shape."""
        out: Tensor = self.fc2(gelu(self.fc1(tokens_BTD)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block: the unit of compilation and of sharding.

    Source: Dosovitskiy et al. 2021, equations 2 and 3.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, tokens_BTD: Tensor, kept_2B: Tensor | None = None) -> Tensor:
        """Apply attention and MLP with their residuals.

        Args:
            tokens_BTD: (B, T, D).
            kept_2B: (2, B) factors of both branches in each record; None takes 1.
        Returns:
            (B, T, D).
        """
        mixed_BTD = self.attn(self.norm1(tokens_BTD))
        if kept_2B is not None:
            mixed_BTD = mixed_BTD * kept_2B[0, :, None, None]
        tokens_BTD = tokens_BTD + mixed_BTD
        out_BTD: Tensor = self.mlp(self.norm2(tokens_BTD))
        if kept_2B is not None:
            out_BTD = out_BTD * kept_2B[1, :, None, None]
        return tokens_BTD + out_BTD


class FusedBlock(Block):
    """The same layers, whose work between the matrix products our own kernels do.

    They sum the gradients of biases and norms in passes that they make anyway. A block hands its
    last branch to the next norm, which adds it to the stream in the pass that it makes anyway.

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
    """Make blocks of one kind; parameters and their names do not depend on `fused`.

    Args:
        depth: how many.
        width: of a token.
        num_heads: of each block.
        fused: "off": torch.compile fuses what is between the products, the fastest measured so
            far. "separate": norms with their residual, and GELU with its bias, are one kernel each.
            "triton": the same norms; GELU runs inside the products before and behind it, in fp16
            and bf16. "quack": the same by an optional package's products, on Hopper.
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


def run_blocks(
    blocks: nn.ModuleList,
    norm: nn.LayerNorm | None,
    tokens_BTD: Tensor,
    kept_L2B: Tensor | None = None,
) -> Tensor:
    """Run all blocks and the norm behind them.

    Args:
        blocks: from `make_blocks`.
        norm: behind the last one; None: as the last block leaves them.
        tokens_BTD: (B, T, D).
        kept_L2B: (L, 2, B) factors of the branches of each block, for blocks that are not fused;
            None takes 1.
    Returns:
        (B, T, D) tokens.
    """
    if isinstance(blocks[0], FirstFusedBlock):
        assert kept_L2B is None, "fused blocks leave out no branch"
        carried: Carried = blocks[0](tokens_BTD)
        for block in blocks[1:]:
            carried = block(*carried)
        if norm is None:
            stream_BTD, branch_BTD, bias_D = carried
            return stream_BTD + branch_BTD + bias_D
        return _add_norm(*carried, norm)[1]
    kept = [None] * len(blocks) if kept_L2B is None else kept_L2B.to(tokens_BTD.dtype)
    for block, kept_2B in zip(blocks, kept, strict=True):
        tokens_BTD = block(tokens_BTD, kept_2B)
    return tokens_BTD if norm is None else norm(tokens_BTD)


def _add_norm(
    stream_BTD: Tensor, branch_BTD: Tensor, bias_D: Tensor, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    return add_layer_norm(stream_BTD, branch_BTD, bias_D, norm.weight, norm.bias, eps=NORM_EPS)
