"""The masked autoencoder against the published equations, written out record by record in fp64."""

import math

import torch
from small_mae import SMALL, small_masks, small_model, small_patches
from torch import Tensor

from ecgfast.model import MaskedAutoencoder

Weights = dict[str, Tensor]
EXACT = 1e-11  # fp64, sums of at most a few thousand terms in another order


def norm(x: Tensor, w: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def affine(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attend(x: Tensor, w: Weights, name: str, num_heads: int) -> Tensor:
    width = x.shape[1]
    head = width // num_heads
    qkv = affine(x, w, f"{name}.qkv")
    heads = []
    for h in range(num_heads):
        q, k, v = (qkv[:, i * width + h * head :][:, :head] for i in range(3))
        weights = torch.exp(q @ k.T / math.sqrt(head))
        heads.append(weights / weights.sum(1, keepdim=True) @ v)
    return affine(torch.cat(heads, dim=1), w, f"{name}.proj")


def block(x: Tensor, w: Weights, name: str, num_heads: int) -> Tensor:
    x = x + attend(norm(x, w, f"{name}.norm1"), w, f"{name}.attn", num_heads)
    hidden = affine(norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + affine(hidden, w, f"{name}.mlp.fc2")


def one_record(w: Weights, patches: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """Squared errors of the removed patches (R,), and the prediction (N, 250), of one record."""
    kept = [n for n in range(len(patches)) if not removed[n]]
    projection = w["patch_embed.proj.weight"].reshape(SMALL.encoder_width, 250)
    tokens = [w["cls_token"][0, 0] + w["pos_embed"][0, 0]]
    for n in kept:
        embedded = projection @ patches[n, :250] + w["patch_embed.proj.bias"]
        tokens.append(embedded + w["pos_embed"][0, 1 + n])
    x = torch.stack(tokens)
    for i in range(SMALL.encoder_depth):
        x = block(x, w, f"blocks.{i}", SMALL.encoder_heads)
    x = affine(norm(x, w, "norm"), w, "decoder_embed")
    places = [w["mask_token"][0, 0] if gone else None for gone in removed]
    full = [x[1 + kept.index(n)] if token is None else token for n, token in enumerate(places)]
    x = torch.stack([x[0], *full]) + w["decoder_pos_embed"][0]
    for i in range(SMALL.decoder_depth):
        x = block(x, w, f"decoder_blocks.{i}", SMALL.decoder_heads)
    pred = affine(norm(x, w, "decoder_norm"), w, "decoder_pred")[1:]
    errors = []
    for n in range(len(patches)):
        if removed[n]:
            patch = patches[n, :250]
            variance = ((patch - patch.mean()) ** 2).sum() / 249
            target = (patch - patch.mean()) / torch.sqrt(variance + 1e-6)
            errors.append(((pred[n] - target) ** 2).sum() / 250)
    return torch.stack(errors), pred


def weights_of(model: MaskedAutoencoder) -> Weights:
    return {
        name: value.detach().clone().requires_grad_(value.requires_grad)
        for name, value in model.state_dict(keep_vars=True).items()
    }


def test_loss_prediction_and_every_gradient_follow_the_equations() -> None:
    model, patches, masks = small_model(), small_patches(4), small_masks(4)
    loss, pred = model(patches, *masks)
    loss.backward()

    weights = weights_of(model)
    results = [
        one_record(weights, p, removed) for p, removed in zip(patches, masks[2], strict=True)
    ]
    expected = torch.cat([errors for errors, _ in results]).mean()
    expected.backward()

    torch.testing.assert_close(loss, expected.detach(), rtol=EXACT, atol=0, check_dtype=True)
    torch.testing.assert_close(pred, torch.stack([p for _, p in results]), rtol=EXACT, atol=EXACT)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, f"{name} learns nothing"
        torch.testing.assert_close(
            parameter.grad, weights[name].grad, rtol=1e-9, atol=EXACT, msg=f"gradient of {name}"
        )


def test_gradient_follows_the_loss_along_a_random_direction() -> None:
    model, patches, masks = small_model(), small_patches(2), small_masks(2)
    model(patches, *masks)[0].backward()
    generator = torch.Generator().manual_seed(5)
    slope, losses, step = 0.0, [], 1e-5
    directions = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()
    ]
    for parameter, direction in zip(model.parameters(), directions, strict=True):
        assert parameter.grad is not None
        slope += float((parameter.grad * direction).sum())
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, direction in zip(model.parameters(), directions, strict=True):
                parameter.add_(direction, alpha=sign * step)
            losses.append(float(model(patches, *masks)[0]))
    measured = (losses[0] - losses[1]) / (2 * step)
    assert abs(measured - slope) < 1e-5 * abs(slope)
