"""A block of a vision transformer: attention and MLP, each behind a norm, with their residuals."""

# B records, T tokens, D width, H heads

from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from ecgfast.errors import ConfigError
from ecgfast.model.attention import attention
from ecgfast.vocabulary import AttentionKernel

NORM_EPS = 1e-6
MLP_RATIO = 4


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

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Apply attention and MLP with their residuals; same shape."""
        tokens_BTD = tokens_BTD + self.attn(self.norm1(tokens_BTD))
        out: Tensor = tokens_BTD + self.mlp(self.norm2(tokens_BTD))
        return out


def set_attention(blocks: nn.ModuleList, backend: AttentionKernel) -> None:
    """Let every block run its attention on `backend`; call it before compiling."""
    for block in blocks:
        assert isinstance(block, Block)
        block.attn.backend = backend
