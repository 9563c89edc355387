"""The masked autoencoder: names, counts, dtypes, and what masks hide."""

import pytest
import torch
from small_mae import SMALL, small_masks, small_model, small_patches
from torch.utils.flop_counter import FlopCounterMode

from ecgfast.config import load_config
from ecgfast.errors import ConfigError, ShapeError
from ecgfast.model import MaskedAutoencoder, build_model
from ecgfast.model.mae import flops_per_record, num_kept, num_parameters

SIZES = ("demo", "vit_tiny", "vit_small", "vit_base", "vit_large")


def reference_shapes(
    width: int, depth: int, dec: int, dec_depth: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public masked autoencoder's state dict for 12 x 5000 records."""

    def block(prefix: str, d: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (out, into) in {
            "attn.qkv": (3 * d, d),
            "attn.proj": (d, d),
            "mlp.fc1": (4 * d, d),
            "mlp.fc2": (d, 4 * d),
        }.items():
            shapes |= {f"{prefix}.{layer}.weight": (out, into), f"{prefix}.{layer}.bias": (out,)}
        for layer in ("norm1", "norm2"):
            shapes |= {f"{prefix}.{layer}.weight": (d,), f"{prefix}.{layer}.bias": (d,)}
        return shapes

    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 241, width),
        "patch_embed.proj.weight": (width, 1, 1, 250),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "decoder_embed.weight": (dec, width),
        "decoder_embed.bias": (dec,),
        "mask_token": (1, 1, dec),
        "decoder_pos_embed": (1, 241, dec),
        "decoder_norm.weight": (dec,),
        "decoder_norm.bias": (dec,),
        "decoder_pred.weight": (250, dec),
        "decoder_pred.bias": (250,),
    }
    for i in range(depth):
        shapes |= block(f"blocks.{i}", width)
    for i in range(dec_depth):
        shapes |= block(f"decoder_blocks.{i}", dec)
    return shapes


@pytest.mark.parametrize("preset", SIZES)
def test_parameter_counts_follow_the_formula(preset: str) -> None:
    config = load_config(preset).model
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    decoder = {id(p) for n, p in model.named_parameters() if n.startswith(("decoder", "mask_"))}
    counts = [0, 0]
    for parameter in model.parameters():
        counts[id(parameter) in decoder] += parameter.numel()
    assert tuple(counts) == num_parameters(config)


def test_vit_large_is_the_study_model() -> None:
    assert num_parameters(load_config("vit_large").model) == (302_569_472, 25_873_658)


def test_state_dict_has_the_reference_names_and_loads_strictly() -> None:
    model = build_model("demo")
    shapes = reference_shapes(128, 4, 96, 2)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    model.load_state_dict(state, strict=True)
    assert {name: tuple(v.shape) for name, v in model.state_dict().items()} == shapes
    assert torch.equal(
        model.state_dict()["blocks.3.mlp.fc2.weight"], state["blocks.3.mlp.fc2.weight"]
    )


def test_flops_formula_agrees_with_a_counter() -> None:
    model, patches, masks = (
        small_model(torch.float32),
        small_patches(2, torch.float32),
        small_masks(2),
    )
    model.set_attention(encoder="math", decoder="math")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(patches, *masks)
    tokens = 1 + SMALL.num_patches
    padding = 2 * tokens * SMALL.decoder_width * 6  # the last projection is padded to 256 columns
    counted = counter.get_total_flops() / 2 - padding
    assert counted == flops_per_record(SMALL, 0.75, train=False)


def test_vit_large_flops_are_those_of_the_design() -> None:
    config = load_config("vit_large").model
    assert flops_per_record(config, train=False) / 1e9 == pytest.approx(50.45, abs=0.01)
    assert flops_per_record(config) / 1e9 == pytest.approx(151.34, abs=0.01)


def test_flops_of_a_cnn_are_refused() -> None:
    with pytest.raises(ConfigError, match="vit"):
        flops_per_record(load_config("cnn").model)


def test_prediction_does_not_see_removed_patches() -> None:
    model, patches, masks = small_model(), small_patches(3), small_masks(3)
    other = torch.where(masks[2][..., None], -3 * patches, patches)
    (loss, pred), (other_loss, other_pred) = model(patches, *masks), model(other, *masks)
    assert torch.equal(pred, other_pred)
    assert loss != other_loss  # a sign flip of normalised targets


def test_loss_counts_removed_patches_only() -> None:
    model, patches, masks = small_model(), small_patches(3), small_masks(3)
    model.norm_patch_loss = False
    loss, pred = model(patches, *masks)
    removed = masks[2]
    expected = (pred - patches[..., :250])[removed].square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("patch_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_stays_near_fp64(dtype: torch.dtype, patch_dtype: torch.dtype) -> None:
    patches, masks = small_patches(3, patch_dtype), small_masks(3)
    expected, _ = small_model()(patches.double(), *masks)
    with torch.no_grad():
        loss, pred = small_model(dtype)(patches, *masks)
    assert loss.dtype == torch.float32
    assert pred.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]  # bf16 keeps 8 bits
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)


def test_wrong_patches_are_refused_with_the_shape() -> None:
    model, masks = small_model(), small_masks(2)
    with pytest.raises(ShapeError, match=r"\(B, 12, 256\), got \(2, 12, 250\)"):
        model(small_patches(2)[..., :250], *masks)


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 3), (0.0, 12), (0.9, 1)])
def test_num_keep(ratio: float, kept: int) -> None:
    assert num_kept(12, ratio) == kept


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 0.99])
def test_a_ratio_that_keeps_nothing_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="keep at least one"):
        num_kept(12, ratio)


def test_heads_must_divide_the_width() -> None:
    config = load_config("demo", ["model.encoder_heads=3"])
    with pytest.raises(ConfigError, match="multiple of its 3 heads"):
        build_model(config)


def test_a_model_trained_with_a_gpu_kernel_still_runs_on_a_cpu() -> None:
    model = build_model(load_config("demo", ["attention=xformers"]))
    assert model.encode(torch.zeros(1, 240, 256)).shape == (1, 241, 128)


def test_pretraining_a_cnn_is_refused() -> None:
    with pytest.raises(ConfigError, match="kind 'vit'"):
        build_model("cnn")


@pytest.mark.slow
def test_vit_large_runs_forward_and_backward_in_bf16() -> None:
    config = load_config("vit_large").model
    torch.manual_seed(0)
    model = MaskedAutoencoder(config).to(torch.bfloat16)
    patches = torch.randn(1, 240, 256).half()
    patches[..., 250:] = 0
    order = torch.randperm(240)
    keep, removed = order[:60].sort().values, order[60:].sort().values
    restore = torch.cat([keep, removed]).argsort()
    mask = torch.ones(240, dtype=torch.bool).index_fill(0, keep, False)
    loss, pred = model(patches, keep[None], restore[None], mask[None])
    loss.backward()
    assert pred.shape == (1, 240, 250)
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
