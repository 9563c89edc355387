"""adamw_: several steps beside PyTorch's AdamW, fp64, skipped steps, many shapes in one launch."""

from itertools import chain
from typing import Any

import pytest
import torch
from checks import DEVICE, DTYPES
from ecgfast_kernels.ops import reference as truth
from ecgfast_kernels.ops.adamw import adamw_, factors, squares_of_sums
from torch import Tensor

pytestmark = pytest.mark.op

# Less than a block of 16384 (2048 on a GPU), whole ones, and some more.
SHAPES = [(3, 130), (1,), (128, 128), (2, 5, 7), (33_001,), (0,)]
BETAS, EPS, RATE, DECAY = (0.9, 0.95), 1e-8, 1e-2, 0.1
State = tuple[list[Tensor], ...]


def state_of(dtype: torch.dtype) -> State:
    """Weights, copies and moments."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator).to(DEVICE) for shape in SHAPES]
    copies = [weight.to(dtype) for weight in weights]
    return weights, copies, *([torch.zeros_like(w) for w in weights] for _ in range(2))


def gradients_of(step: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1 + step)
    return [torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for shape in SHAPES]


def decays() -> list[float]:
    return [DECAY if len(shape) > 1 else 0.0 for shape in SHAPES]


def update(state: State, gradients: list[Tensor], step: int, *, skip: float = 0) -> None:
    weights, copies, exp_avg, exp_avg_sq = state
    count, scale = torch.tensor(float(step + 1)), torch.tensor(0.5)
    adamw_(
        weights,
        copies,
        gradients,
        exp_avg,
        exp_avg_sq,
        decays=decays(),
        betas=BETAS,
        eps=EPS,
        factors_4=factors(count, scale, betas=BETAS, learning_rate=RATE).to(DEVICE),
        skipped=torch.tensor(skip, device=DEVICE),
    )


def passes_of(step: int, passes: int, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of several backward passes, one after the other; unlike ones."""
    return [g * 4.0**n for n in range(passes) for g in gradients_of(10 * step + n, dtype)]


def exact_sums(gradients: list[Tensor]) -> list[Tensor]:
    return [sum(g.double() for g in gradients[i :: len(SHAPES)]) for i in range(len(SHAPES))]


@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_match_pytorch_in_fp64(dtype: torch.dtype, passes: int) -> None:
    state = state_of(dtype)
    oracle = [weight.double().requires_grad_() for weight in state[0]]
    groups = [{"params": [w], "weight_decay": d} for w, d in zip(oracle, decays(), strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS)
    for step in range(5):
        gradients = passes_of(step, passes, dtype)
        for weight, gradient in zip(oracle, exact_sums(gradients), strict=True):
            weight.grad = 0.5 * gradient
        optimizer.step()
        update(state, gradients, step)
    for index, want in enumerate(oracle):
        moments = optimizer.state[want]
        for got, exact in (
            (state[0][index], want.detach()),
            (state[2][index], moments["exp_avg"]),
            (state[3][index], moments["exp_avg_sq"]),
        ):
            # five steps of some ten fp32 roundings each, of gradients up to 4 ** passes; a sum
            # in fp16 would be off by 1e-3
            torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=2e-7 * 4**passes)
        assert torch.equal(state[1][index], state[0][index].to(dtype))


@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_squares_of_sums_match_fp64(
    dtype: torch.dtype, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = passes_of(0, passes, dtype)
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        return empty(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty", poisoned)
    squares = squares_of_sums(gradients, num_tensors=len(SHAPES))
    exact = sum(g.square().sum() for g in exact_sums(gradients))
    assert squares.item() == pytest.approx(exact.item(), rel=1e-6)
    assert torch.equal(squares, squares_of_sums(gradients, num_tensors=len(SHAPES)))
    reference = truth.squares_of_sums(gradients, len(SHAPES))
    assert reference.item() == pytest.approx(exact.item(), rel=1e-6)
    gradients[len(SHAPES) - 2][-1] = torch.inf  # in a block that is not full
    assert not squares_of_sums(gradients, num_tensors=len(SHAPES)).isfinite()


def test_kernel_and_reference_agree() -> None:
    state, plain = state_of(torch.float16), state_of(torch.float16)
    for step in range(3):
        gradients = gradients_of(step, torch.float16)
        update(state, gradients, step)
        shared = factors(torch.tensor(step + 1), torch.tensor(0.5), betas=BETAS, learning_rate=RATE)
        lists = (plain[0], plain[1], gradients, plain[2], plain[3])
        skipped = torch.zeros((), device=DEVICE)
        truth.adamw_(*lists, decays(), *BETAS, EPS, shared.to(DEVICE), skipped)
    for got, want in zip(state, plain, strict=True):
        for a, b in zip(got, want, strict=True):
            rounding = 2e-3 if a.dtype == torch.float16 else 1e-6
            torch.testing.assert_close(a, b, rtol=rounding, atol=1e-6)


def test_passes_are_added_in_fp32_in_their_order() -> None:
    """In the bits of an fp32 sum that the usual collection makes."""
    together, before = state_of(torch.float16), state_of(torch.float16)
    first, second, third = (passes_of(n, 1, torch.float16) for n in range(3))
    update(together, [*first, *second, *third], 0)
    triples = zip(first, second, third, strict=True)
    update(before, [a.float() + b.float() + c.float() for a, b, c in triples], 0)
    assert all(map(torch.equal, chain(*together), chain(*before)))


@pytest.mark.parametrize("value", [torch.nan, 1.0])
def test_a_skipped_step_changes_nothing(value: float) -> None:
    state, before = state_of(torch.float16), state_of(torch.float16)
    gradients = [torch.full_like(g, value) for g in gradients_of(0, torch.float16)]
    update(state, gradients, 0, skip=1)
    assert all(map(torch.equal, chain(*state), chain(*before)))
    update(state, [torch.ones_like(g) for g in gradients], 0)
    assert not torch.equal(state[0][0], before[0][0])


def test_gradients_that_are_slices_and_moved() -> None:
    """Addresses that are no multiple of 16 bytes, and others at every step."""
    state, want = state_of(torch.float16), state_of(torch.float16)
    held = []  # so that no gradient lies where an earlier one did
    for step in range(2):
        gradients = gradients_of(step, torch.float16)
        slices = [torch.cat([g.new_zeros(3), g.flatten()])[3:].view(g.shape) for g in gradients]
        held.append((gradients, slices))
        update(state, slices, step)
        update(want, gradients, step)
    assert all(map(torch.equal, chain(*state), chain(*want)))


def test_factors_of_late_and_early_steps() -> None:
    early, late = (
        factors(torch.tensor(n), torch.tensor(1.0), betas=(0.9, 0.999), learning_rate=1e-3)
        for n in (1.0, 1e6)
    )
    torch.testing.assert_close(early.tolist(), [1.0, 1e-2, 1e-3**-0.5, 1e-3], rtol=1e-6, atol=0)
    torch.testing.assert_close(late.tolist(), [1.0, 1e-3, 1.0, 1e-3], rtol=1e-6, atol=0)


def test_opcheck() -> None:
    weights, copies, exp_avg, exp_avg_sq = state_of(torch.float16)
    shared = factors(torch.tensor(1.0), torch.tensor(1.0), betas=BETAS, learning_rate=RATE)
    lists = (weights, copies, gradients_of(0, torch.float16), exp_avg, exp_avg_sq)
    skipped = torch.zeros((), device=DEVICE)
    arguments = (*lists, decays(), *BETAS, EPS, shared.to(DEVICE), skipped)
    torch.library.opcheck(torch.ops.ecgfast.adamw_.default, arguments)
    arguments = (passes_of(0, 2, torch.float16), len(SHAPES))
    torch.library.opcheck(torch.ops.ecgfast.squares_of_sums.default, arguments)


def test_wrong_arguments() -> None:
    weights, copies, exp_avg, exp_avg_sq = state_of(torch.float16)
    with pytest.raises(ValueError, match="6 tensors of the weights' shapes, got 5"):
        update((weights, copies[:-1], exp_avg, exp_avg_sq), gradients_of(0, torch.float16), 0)
    with pytest.raises(ValueError, match="6 tensors of the weights' shapes, got 5"):
        update((weights, copies, exp_avg, exp_avg_sq), passes_of(0, 2, torch.float16)[:-1], 0)
    with pytest.raises(ValueError, match="must hold 6 contiguous tensors of the same shapes"):
        squares_of_sums(passes_of(0, 2, torch.float16)[:-1], num_tensors=6)
    strided = [torch.zeros(130, 3).T, *weights[1:]]
    with pytest.raises(ValueError, match="must be contiguous"):
        update((strided, copies, exp_avg, exp_avg_sq), gradients_of(0, torch.float16), 0)


def test_a_slice_slows_down_no_other_tensor() -> None:
    """Whether 16 divides all five addresses is said row by row."""
    from ecgfast_kernels.ops.adamw_triton import _table

    first = [[16, 32], [48, 64], [80, 96 + 6], [112, 128], [144, 160]]  # one slice of 2-byte values
    table = _table(tuple(chain(*first)), (7, 9), torch.device(DEVICE)).tolist()
    assert table == [[16, 48, 80, 112, 144, 7, 1], [32, 64, 102, 128, 160, 9, 0]]
