"""A whole model trains the same with the kernels as with the reference ops."""

import pytest
import torch
from small_mae import NUM_STEPS, losses_of
from tolerances import TOY_LOSS_FP32

from ecgfast.settings import ModelConfig

TINY = ModelConfig(
    encoder_width=32,
    encoder_depth=1,
    encoder_heads=2,
    decoder_width=32,
    decoder_depth=1,
    decoder_heads=2,
    num_leads=12,
    num_timesteps=500,
)


@pytest.mark.slow
def test_thirty_steps_with_kernels_and_reference() -> None:
    got = losses_of("triton", TINY, batch=2, dtype=torch.float32)
    want = losses_of("reference", TINY, batch=2, dtype=torch.float32)
    assert len(got) == NUM_STEPS
    assert got == pytest.approx(want, rel=TOY_LOSS_FP32)
    assert got[-1] < 0.95 * got[0]  # it learns, so that later steps depend on the gradients
