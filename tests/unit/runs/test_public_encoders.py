"""Weights of public ECG encoders: files with the names and shapes of theirs, made here.

Sources of names and shapes: github.com/bakqui/ST-MEM (models/st_mem.py, models/encoder/*.py) and
github.com/oetu/mae (models_mae.py, models_vit.py).
"""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ecgfast.config import Config, load_config
from ecgfast.errors import FormatError
from ecgfast.model.build import build_classifier
from ecgfast.runs.initial import apply_initial, read_initial
from ecgfast.runs.public_encoders import stretched

WIDTH, DEPTH, HEADS = 128, 2, 2


def config_of(*more: str) -> Config:
    size = (f"encoder_width={WIDTH}", f"encoder_depth={DEPTH}", f"encoder_heads={HEADS}")
    return load_config("vit_tiny", [*(f"model.{each}" for each in size), *more])


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def linear(name: str, out: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def norm(name: str, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def st_mem(depth: int = DEPTH) -> dict[str, Tensor]:
    """Its encoder: 30 patches of 75 timesteps in each of 12 leads, SEP at both ends."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embedding": (1, 32, WIDTH),
        "sep_embedding": (WIDTH,),
        **{f"lead_embeddings.{lead}": (WIDTH,) for lead in range(12)},
        **norm("to_patch_embedding.1", 75),
        **linear("to_patch_embedding.2", WIDTH, 75),
        **norm("to_patch_embedding.3"),
        **norm("norm"),
    }
    for block in range(depth):
        shapes |= norm(f"block{block}.attn.norm")
        shapes |= linear(f"block{block}.attn.fn.to_qkv", 3 * WIDTH, WIDTH)
        shapes |= linear(f"block{block}.attn.fn.to_out.0", WIDTH, WIDTH)
        shapes |= norm(f"block{block}.ff.norm")
        shapes |= linear(f"block{block}.ff.fn.net.0", 4 * WIDTH, WIDTH)
        shapes |= linear(f"block{block}.ff.fn.net.3", WIDTH, 4 * WIDTH)
    return filled(shapes)


def whole_st_mem() -> dict[str, Tensor]:
    """With decoder: the encoder's tensors have a prefix, and its embedding two names."""
    own = st_mem()
    twice = {name: own[name] for name in own if name.startswith("to_patch_embedding")}
    decoder = filled({
        **linear("to_decoder_embedding", 256, WIDTH), "mask_embedding": (1, 1, 256),
        "decoder_pos_embed": (1, 32, 256), **norm("decoder_blocks.0.attn.norm", 256),
        **norm("decoder_norm", 256), **linear("decoder_head", 75, 256),
    })  # fmt: skip
    return {**{f"encoder.{name}": tensor for name, tensor in own.items()}, **twice, **decoder}


def oetu(patch: tuple[int, ...] = (1, 1, 100), grid: int = 12 * 50) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + grid, WIDTH),
        "patch_embed.proj.weight": (WIDTH, *patch),
        "patch_embed.proj.bias": (WIDTH,),
        **norm("norm"),
        "mask_token": (1, 1, 64),
        **norm("decoder_norm", 64),
        "projector.0.weight": (1024, WIDTH),
        "projector.1.running_mean": (1024,),
        "predictor.3.weight": (WIDTH, 128),
    }
    for block in range(DEPTH):
        shapes |= {**norm(f"blocks.{block}.norm1"), **norm(f"blocks.{block}.norm2")}
        shapes |= linear(f"blocks.{block}.attn.qkv", 3 * WIDTH, WIDTH)
        shapes |= linear(f"blocks.{block}.attn.proj", WIDTH, WIDTH)
        shapes |= linear(f"blocks.{block}.mlp.fc1", 4 * WIDTH, WIDTH)
        shapes |= linear(f"blocks.{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    return filled(shapes)


def started(path: Path, config: Config) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State of a classifier's encoder before and after the weights of a file."""
    model = build_classifier(config)
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    apply_initial(model, read_initial(str(path), config), source=path.name)
    return before, model.encoder.state_dict()


def by_hand(kernel: Tensor) -> Tensor:
    """Linear between the middles of the timesteps, scaled to the response to a constant."""
    length = kernel.shape[-1]
    middles = (np.arange(250) + 0.5) * length / 250 - 0.5
    values = [np.interp(middles, np.arange(length), each) for each in kernel.flatten(1).numpy()]
    return torch.from_numpy(np.array(values)).float().reshape(-1, 1, 1, 250) * (length / 250)


ST_MEM_NAMES = {
    "attn.norm": "norm1", "attn.fn.to_qkv": "attn.qkv", "attn.fn.to_out.0": "attn.proj",
    "ff.norm": "norm2", "ff.fn.net.0": "mlp.fc1", "ff.fn.net.3": "mlp.fc2",
}  # fmt: skip


@pytest.mark.parametrize("is_whole", [False, True])
def test_st_mem_gives_blocks_norm_and_a_stretched_embedding(
    is_whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    caplog.set_level("INFO")
    weights = st_mem()
    torch.save({"model": whole_st_mem() if is_whole else weights, "epoch": 7}, tmp_path / "st.pth")
    before, after = started(tmp_path / "st.pth", config_of())
    for block in range(DEPTH):
        for theirs, ours in ST_MEM_NAMES.items():
            for part in ("weight", "bias"):
                found = after[f"blocks.{block}.{ours}.{part}"]
                assert torch.equal(found, weights[f"block{block}.{theirs}.{part}"]), ours
    assert torch.equal(after["norm.weight"], weights["norm.weight"])
    assert torch.equal(after["patch_embed.proj.bias"], weights["to_patch_embedding.2.bias"])
    expected = by_hand(weights["to_patch_embedding.2.weight"])
    torch.testing.assert_close(after["patch_embed.proj.weight"], expected, rtol=1e-4, atol=5e-5)
    for name in ("cls_token", "pos_embed"):
        assert torch.equal(after[name], before[name])
    lines = [record.getMessage().strip() for record in caplog.records]
    left_out = 18 + (6 if is_whole else 0) + (4 if is_whole else 0)  # SEP, leads, positions, norms
    assert f"weights of st.pth: 27 tensors loaded, 1 tensors adapted, 2 tensors begun anew, " \
           f"{left_out} tensors of the file left out" in lines[0]  # fmt: skip
    prefix = "encoder." if is_whole else ""
    assert (
        f"blocks.1.norm1.weight of {prefix}block1.attn.norm.weight: loaded; in the file (128,), in "
        "the model (128,)"
    ) in lines
    assert "cls_token: begun anew; in the file none, in the model (1, 1, 128)" in lines
    assert (
        f"{prefix}lead_embeddings.11: of the file left out; in the file (128,), in the model none"
    ) in lines
    assert any(
        line.startswith("patch_embed.proj.weight of ")
        and line.endswith("adapted; in the file (128, 75), in the model (128, 1, 1, 250)")
        for line in lines
    )


def test_another_autoencoder_gives_all_but_positions_and_its_own_heads(tmp_path: Path) -> None:
    weights = oetu()
    options = Namespace(input_size=(1, 12, 5000), model="mae_vit_base_patchX")
    torch.save({"model": weights, "epoch": 3, "args": options}, tmp_path / "checkpoint-3.pth")
    initial = read_initial(str(tmp_path / "checkpoint-3.pth"), config_of())
    # class token, norm (2), 2 blocks of 12, the embedding's bias
    assert initial.tensors == {
        "loaded": 28, "adapted": 1, "begun anew": 1, "of the file left out": 6,
    }  # fmt: skip
    before, after = started(tmp_path / "checkpoint-3.pth", config_of())
    adapted = after.pop("patch_embed.proj.weight")
    expected = by_hand(weights["patch_embed.proj.weight"])
    torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=5e-5)
    assert torch.equal(after.pop("pos_embed"), before["pos_embed"])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in after.items())


@pytest.mark.parametrize("patch", [(1, 12, 100), (5, 1, 100), ()])
def test_an_embedding_across_leads_begins_anew(patch: tuple[int, ...], tmp_path: Path) -> None:
    torch.save(oetu(patch), tmp_path / "a.pth")
    before, after = started(tmp_path / "a.pth", config_of())
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias"):
        assert torch.equal(after[name], before[name])


def test_a_patch_of_our_length_is_taken_as_it_is(tmp_path: Path) -> None:
    weights = oetu((1, 1, 250), 240)
    torch.save(weights, tmp_path / "a.pth")
    _, after = started(tmp_path / "a.pth", config_of())
    assert torch.equal(after["patch_embed.proj.weight"], weights["patch_embed.proj.weight"])
    assert "adapted" not in read_initial(str(tmp_path / "a.pth"), config_of()).tensors


@pytest.mark.parametrize(("length", "least"), [(75, 0.99), (100, 0.99), (500, 0.99)])
def test_a_stretched_kernel_answers_alike(length: int, least: float) -> None:
    """A constant gives what it gave, and a slow wave over the patch nearly so."""
    kernel = torch.randn(4, 1, 1, length, generator=torch.Generator().manual_seed(2)).cumsum(-1)
    wide = stretched(kernel)
    assert wide.shape == (4, 1, 1, 250)
    share = (torch.arange(length) + 0.5) / length, (torch.arange(250) + 0.5) / 250
    for wave in (torch.ones_like, lambda x: torch.sin(6.2832 * x)):
        narrow_answer, wide_answer = (
            (each.flatten(1) * wave(x)).sum(1)
            for each, x in zip((kernel, wide), share, strict=True)
        )
        torch.testing.assert_close(wide_answer, narrow_answer, rtol=1 - least, atol=0.3)


def test_another_size_is_said_with_its_cure(tmp_path: Path) -> None:
    torch.save(st_mem(), tmp_path / "st.pth")
    with pytest.raises(FormatError, match=r"got model\.encoder_heads 4; --set model.*heads=2$"):
        read_initial(str(tmp_path / "st.pth"), config_of("model.encoder_heads=4"))
    with pytest.raises(FormatError, match=r"_width 192, .*depth 12, .*heads 3; --set model"):
        read_initial(str(tmp_path / "st.pth"), load_config("vit_tiny"))
    torch.save(oetu(), tmp_path / "a.pth")
    with pytest.raises(FormatError, match=r"got model\.encoder_depth 3; --set .*_depth=2$"):
        read_initial(str(tmp_path / "a.pth"), config_of("model.encoder_depth=3"))


def test_a_file_of_no_known_encoder_is_one_error(tmp_path: Path) -> None:
    other = {"layer1.0.conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(1)}
    torch.save(other, tmp_path / "resnet.pth")
    with pytest.raises(FormatError, match=r"of no encoder that is known, got .* such as fc\.bias"):
        read_initial(str(tmp_path / "resnet.pth"), config_of())
    weights = oetu()
    del weights["blocks.1.mlp.fc2.bias"]
    weights["norm.bias"] = torch.zeros(64)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(FormatError, match=r"no blocks\.1\.mlp\.fc2\.bias; norm\.bias is \(64,\)"):
        read_initial(str(tmp_path / "odd.pth"), config_of())
