"""What the kernel tests share: device, cases, poisoned outputs, comparison with fp64."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from ecgfast_kernels.ops.masking import random_mask
from tolerances import kernel_tolerance
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter multiplies the raw bits of bf16 operands, so bf16 needs a GPU.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")

# torch 2.13's tracer makes an instance of autograd.Function, against its own advice.
INSIDE_DYNAMO = "ignore:.*should not be instantiated:DeprecationWarning"


@dataclass(frozen=True, kw_only=True)
class Case:
    """B records, N patches of `length` padded to `padded`, K kept, width of the tokens."""

    batch: int
    num_patches: int
    num_keep: int
    length: int = 250
    padded: int = 256
    width: int = 48

    def __str__(self) -> str:
        """Name of the case in pytest's output."""
        return f"B{self.batch}-N{self.num_patches}-K{self.num_keep}-L{self.length}-D{self.width}"


# Blocks are 16 rows in the interpreter and 64 to 128 on a GPU; most of these divide neither.
CASES = [
    Case(batch=1, num_patches=20, num_keep=10),  # ratio 0.5
    Case(batch=3, num_patches=240, num_keep=60, width=40),  # the study's 12 x 20 patches, 0.75
    Case(batch=2, num_patches=40, num_keep=7, length=125, padded=128, width=33),
    Case(batch=2, num_patches=24, num_keep=3, length=500, padded=512, width=17),
    Case(batch=5, num_patches=30, num_keep=3, width=64),  # ratio 0.9
]


@contextmanager
def poisoned_outputs(backend: str = "triton") -> Iterator[None]:
    """Fill uninitialised memory with NaN (floats) and huge values (ints) while the kernels run.

    Not while the reference runs: PyTorch does this in its deterministic mode only, which refuses
    cuBLAS products.
    """
    torch.use_deterministic_algorithms(backend == "triton")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def patches_of(case: Case, *, seed: int = 0) -> Tensor:
    """Random patches (B, N, padded) fp16, zero in the padding columns."""
    generator = torch.Generator().manual_seed(seed)
    patches_BNP = torch.randn(case.batch, case.num_patches, case.padded, generator=generator)
    patches_BNP[..., case.length :] = 0
    return patches_BNP.half().to(DEVICE)


def masks_of(case: Case, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids_keep, ids_restore and mask of the case's first records."""
    return random_mask(
        torch.arange(case.batch, device=DEVICE),
        seed=seed,
        epoch=1,
        num_patches=case.num_patches,
        num_keep=case.num_keep,
        backend="reference",
    )


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal values of a seed, rounded to `dtype`, on the test device."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def assert_close(
    got: Tensor, want: Tensor, *, dtype: torch.dtype, terms: int, name: str, roundings: int = 1
) -> None:
    """Compare with the fp64 oracle `want`; NaN anywhere fails.

    `roundings` counts how often a value is rounded to `dtype` on its way.
    """
    assert got.shape == want.shape, name
    error = (got.double() - want).abs().max().item()
    allowed = roundings * kernel_tolerance(dtype, terms=terms) * want.abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
