"""Initial weights that depend on a seed and on each parameter's name, on nothing else."""

import hashlib
import math

import torch
from torch import Tensor, nn

TOKEN_STD = 0.02


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Write every parameter of `model` anew.

    Each parameter has a generator of its own, drawn on the CPU on the full tensor: the result is
    the same on any device and for any world size, and a new layer moves no other one. Call it
    before sharding.

    Linear and patch projections start Xavier-uniform (He et al. 2022, appendix A.1), convolutions
    Kaiming-normal, tokens normal with deviation 0.02, biases 0, norms 1 and 0.

    Args:
        model: parameters on any device, in any floating dtype.
        seed: of the run.
    """
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            generator = torch.Generator().manual_seed(_seed(seed, name))
            parameter.copy_(_initial_value(module, name, parameter.shape, generator))


def _initial_value(
    module: nn.Module, name: str, shape: torch.Size, generator: torch.Generator
) -> Tensor:
    value = torch.empty(shape, dtype=torch.float32, device="cpu")
    if name.endswith("_token"):
        return value.normal_(0.0, TOKEN_STD, generator=generator)
    if name.endswith("bias"):
        return value.zero_()
    if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
        return value.fill_(1.0)
    fan_in = math.prod(shape[1:])
    if isinstance(module, nn.Linear) or name.endswith("patch_embed.proj.weight"):
        bound = math.sqrt(6.0 / (fan_in + shape[0]))
        return value.uniform_(-bound, bound, generator=generator)
    assert isinstance(module, nn.Conv2d), f"no rule for the parameter {name}"
    return value.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)


def _seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch takes 63 bits
