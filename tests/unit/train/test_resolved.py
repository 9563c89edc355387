"""What is resolved before the first step."""

import pytest
import torch
from toy import toy_meta

from ecgfast.config import load_config
from ecgfast.errors import ConfigError
from ecgfast.model.attention_choice import Shape
from ecgfast.train.distributed import Ranks
from ecgfast.train.microbatch import rank_share
from ecgfast.train.run_folder import resolve_attention, resolve_compile, resolve_precision

GPU = Ranks(device=torch.device("cuda"))


def test_ranks_share_a_batch_equally_or_not_at_all() -> None:
    assert rank_share(12, Ranks(world_size=4)) == 3
    with pytest.raises(ConfigError, match=r"train\.batch_size must be .* of the 4 ranks, got 10"):
        rank_share(10, Ranks(world_size=4))
    with pytest.raises(ConfigError, match=r"^finetune\.batch_size must be"):
        rank_share(2, Ranks(world_size=4), key="finetune.batch_size")


def test_precision_is_bf16_on_a_gpu_unless_asked_for() -> None:
    kernels = "kernels=reference"  # runs on any device
    auto = load_config("demo", [kernels])
    assert (resolve_precision(auto, Ranks()), resolve_precision(auto, GPU)) == (
        "fp32",
        "bf16",
    )
    for asked in ("fp32", "bf16"):
        config = load_config("demo", [kernels, f"train.precision={asked}"])
        assert resolve_precision(config, Ranks()) == asked
        assert resolve_precision(config, GPU) == asked


def test_blocks_are_compiled_on_a_gpu_unless_asked_for() -> None:
    auto = load_config("demo")
    assert (resolve_compile(auto, Ranks()), resolve_compile(auto, GPU)) == (False, True)
    for asked in (True, False):
        config = load_config("demo", [f"train.compile={str(asked).lower()}"])
        assert resolve_compile(config, Ranks()) is asked
        assert resolve_compile(config, GPU) is asked


def test_a_resumed_run_keeps_its_attention_kernels_unless_others_are_asked_for() -> None:
    kept = {"encoder": "of the checkpoint"}
    before = toy_meta(attention_kernels=kept)
    shape = Shape(num_tokens=61, num_heads=2, head_width=8, dtype=torch.float32)
    encoder, both = {"encoder": shape}, {"encoder": shape, "decoder": shape}
    auto, asked = load_config("demo"), load_config("demo", ["attention=math"])
    assert resolve_attention(auto, encoder, Ranks(), before) == kept
    chosen = resolve_attention(auto, both, Ranks(), before)  # another kind of run
    assert chosen.keys() == both.keys()
    assert "of the checkpoint" not in chosen.values()
    assert resolve_attention(asked, encoder, Ranks(), before) == {"encoder": "math"}
