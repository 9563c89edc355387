"""How far a result may be from its oracle, with the reason. Bitwise promises need no entry here."""

import math

import torch

# Kernels: the oracle gets the same rounded inputs in fp64, so what remains is below.


def kernel_tolerance(dtype: torch.dtype, *, terms: int = 1) -> float:
    """Allowed error of a kernel's output, relative to the oracle's largest value.

    One rounding of the result to `dtype` costs at most half an epsilon of it; one epsilon is
    allowed, because a sum that lies near a rounding boundary may go either way twice (two-step
    epilogues). A sum of `terms` products in fp32 drifts like a random walk: epsilon * sqrt(terms);
    four of those, because products can be larger than the sum that is left of them.
    """
    return torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps * math.sqrt(terms)


# Thirty optimizer steps amplify rounding differences of fp32 gradients (1e-7 each) through AdamW's
# division by the root of the second moment; 1.2e-7 was seen on the toy model.
TOY_LOSS_FP32 = 5e-6
# bf16 has 8 bits: kernels and reference round at different places. Half an ulp added to every
# weight moved the losses of 30 bf16 steps by 2.3e-4 (demo preset, CPU); ten times that for a larger
# model, while a wrong gradient moves them by percents.
TOY_LOSS_BF16 = 2.5e-3
# Ranks add fp32 gradients in another order (1e-7 each), and the one-pass AdamW rounds elsewhere; 50
# AdamW steps of a tiny model: 4e-7.
RANKS_LOSS = 1e-5
# In bf16 such a difference rounds a weight the other way now and then, by 2^-9 of it; 1.2e-7 was
# seen, and 5e-4 between bf16 and fp32.
RANKS_LOSS_BF16 = 1e-4
# Six fp32 steps of a tiny model beside fp64: rounding of fp32 sums, through AdamW's division.
FIRST_LOSSES = 1e-6
