"""Blocks compile as one graph each, share their code, and compute what eager blocks compute."""

import pytest
import torch
from small_mae import small_masks, small_model, small_patches
from torch._dynamo.testing import CompileCounterWithBackend

from ecgfast.model.block import Block
from ecgfast.vocabulary import AttentionKernel, Fused

# torch 2.13's tracer looks at .grad of inner tensors and makes instances of autograd.Function
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
)

FP32_STATISTICS = 1e-6  # our kernels keep those of softmax and norms in fp32, even for fp64 tokens
FP32_TOKENS = 1e-5  # products of a few hundred terms, added in another order


def compile_counted(blocks: torch.nn.ModuleList, backend: CompileCounterWithBackend) -> None:
    for block in blocks:
        assert isinstance(block, Block)
        block.forward = torch.compile(  # type: ignore[method-assign]  # what is tested
            block.forward,
            backend=backend,
            fullgraph=True,
            dynamic=False,
        )


def compare(kernel: AttentionKernel, *, fused: Fused = "off") -> int:
    """Compile both halves with `kernel`; check loss and gradients; return the graphs it took."""
    torch._dynamo.reset()
    dtype = torch.float32 if fused == "triton" else torch.float64
    eager, compiled = small_model(dtype), small_model(dtype, fused=fused)
    counter = CompileCounterWithBackend("aot_eager")
    for model in (eager, compiled):
        model.set_attention(encoder=kernel, decoder=kernel)
    compile_counted(compiled.blocks, counter)
    compile_counted(compiled.decoder_blocks, counter)
    patches, masks = small_patches(2, dtype), small_masks(2)
    losses = [model(patches, *masks)[0] for model in (eager, compiled)]
    for loss in losses:
        loss.backward()
    tolerance = FP32_STATISTICS if dtype == torch.float64 else FP32_TOKENS
    torch.testing.assert_close(losses[0], losses[1], rtol=tolerance, atol=0)
    for (name, one), other in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(
            one.grad, other.grad, rtol=1e-4, atol=tolerance, msg=f"gradient of {name}"
        )
    return int(counter.frame_count)


def test_blocks_of_one_shape_share_their_code() -> None:
    assert compare("auto") == 2  # encoder and decoder


def test_short_attention_stays_inside_the_graph() -> None:
    assert compare("triton") == 2


@pytest.mark.parametrize("fused", ["separate", "triton"])
def test_fused_blocks_compute_the_same_and_stay_one_graph(fused: Fused) -> None:
    assert compare("triton", fused=fused) == 3  # the encoder's second block differs
