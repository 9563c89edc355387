"""The first steps of a pretraining run, by value; a plain fp64 loop is the oracle."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ecgfast_kernels.codec.philox import epoch_order
from ecgfast_kernels.ops import reference
from tolerances import FIRST_LOSSES
from torch import Tensor
from torch.nn import functional
from training_runs import make_store, preset

from ecgfast.config import load_config
from ecgfast.log import read_metrics
from ecgfast.model.build import build_model
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.train.pretrain import pretrain

NUM_RECORDS, BATCH, EPOCHS, STEPS = 20, 8, 4, 6  # 16 records are read: two steps per epoch
PEAK_RATE = 0.032 * BATCH / 256  # after one epoch of warm-up
NUM_PATCHES, NUM_KEEP = 240, 60
HEADS = 2
BETA1, BETA2, EPS, DECAY = 0.9, 0.95, 1e-8, 0.05
Weights = dict[str, Tensor]


def records(store: StoreReader) -> tuple[np.ndarray, Tensor]:
    """Rows that pretraining may read, and (R, N, 250) patches of all rows in fp64.

    Each lead has mean 0 and standard deviation 1; the model gets fp16, so the oracle does too.
    """
    rows = np.flatnonzero([split != "test" for split in store.records["split"].to_pylist()])
    signal = store.read(range(len(store))).astype(np.float64)
    z = (signal - signal.mean(-1, keepdims=True)) / signal.std(-1, keepdims=True)
    patches = z.astype(np.float16).astype(np.float64).reshape(len(z), NUM_PATCHES, 250)
    return rows, torch.from_numpy(patches)


def block(x: Tensor, w: Weights, name: str) -> Tensor:
    """Pre-norm attention and MLP with residuals (Dosovitskiy et al. 2021, equations 2 and 3)."""

    def norm(x: Tensor, which: str) -> Tensor:
        scale, shift = w[f"{name}.{which}.weight"], w[f"{name}.{which}.bias"]
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale + shift

    def linear(x: Tensor, which: str) -> Tensor:
        return x @ w[f"{name}.{which}.weight"].T + w[f"{name}.{which}.bias"]

    q, k, v = linear(norm(x, "norm1"), "attn.qkv").unflatten(-1, (3, HEADS, -1)).unbind(2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
    x = x + linear(mixed, "attn.proj")
    hidden = linear(norm(x, "norm2"), "mlp.fc1")
    gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return x + linear(gelu, "mlp.fc2")


def loss_of(w: Weights, patches: Tensor, kept: Tensor, removed: Tensor) -> Tensor:
    """He et al. 2022, section 3: encode what is kept, predict what is removed.

    Args:
        w: weights by their names.
        patches: (B, N, 250).
        kept: (B, K) patches that are kept, ascending.
        removed: (B, N) bool, True = removed.
    """
    width = len(w["norm.weight"])
    take = kept[..., None]
    embedded = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    x = (embedded + w["pos_embed"][:, 1:]).gather(1, take.expand(-1, -1, width))
    first = (w["cls_token"] + w["pos_embed"][:, :1]).expand(len(x), -1, -1)
    x = torch.cat([first, x], dim=1)
    for number in range(2):
        x = block(x, w, f"blocks.{number}")
    x = functional.layer_norm(x, (width,), w["norm.weight"], w["norm.bias"], 1e-6)
    x = x @ w["decoder_embed.weight"].T + w["decoder_embed.bias"]
    full = w["mask_token"].expand(len(x), NUM_PATCHES, -1)
    full = full.scatter(1, take.expand(-1, -1, x.shape[-1]), x[:, 1:])
    x = torch.cat([x[:, :1], full], dim=1) + w["decoder_pos_embed"]
    x = block(x, w, "decoder_blocks.0")
    x = functional.layer_norm(
        x, x.shape[-1:], w["decoder_norm.weight"], w["decoder_norm.bias"], 1e-6
    )
    predicted = (x @ w["decoder_pred.weight"].T + w["decoder_pred.bias"])[:, 1:]
    target = patches - patches.mean(-1, keepdim=True)
    target = target / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    return (predicted - target).square().mean(-1)[removed].mean()


def rate_of(step: int) -> float:
    """One epoch of linear warm-up, then half a cosine down to 0 at the end of the last epoch."""
    epoch = step / 2
    if epoch < 1:
        return PEAK_RATE * epoch
    return PEAK_RATE * (1 + math.cos(math.pi * (epoch - 1) / (EPOCHS - 1))) / 2


def plain_loop(store: StoreReader, w: Weights) -> list[dict[str, float]]:
    """Loss, gradient norm and learning rate of every step; AdamW as in Loshchilov and Hutter."""
    rows, patches = records(store)
    trained = {n: t.requires_grad_() for n, t in w.items() if "pos_embed" not in n}
    first = {n: torch.zeros_like(t) for n, t in trained.items()}
    second = {n: torch.zeros_like(t) for n, t in trained.items()}
    steps = []
    for step in range(STEPS):
        epoch, half = divmod(step, 2)
        order = rows[epoch_order(len(rows), seed=0, epoch=epoch)]
        batch = torch.from_numpy(order[half * BATCH : (half + 1) * BATCH])
        kept, _, removed = reference.random_mask(
            batch, seed=0, epoch=epoch, num_patches=NUM_PATCHES, num_keep=NUM_KEEP
        )
        loss = loss_of(w, patches[batch], kept, removed)
        gradients = dict(zip(trained, torch.autograd.grad(loss, trained.values()), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        rate = rate_of(step)
        steps.append({"loss": loss.item(), "grad_norm": norm, "lr": rate})
        with torch.no_grad():
            for name, weight in trained.items():
                if weight.ndim > 1 and not name.endswith("_token"):
                    weight *= 1 - rate * DECAY
                g, m, v = gradients[name], first[name], second[name]
                m += (1 - BETA1) * (g - m)
                v += (1 - BETA2) * (g * g - v)
                mean, square = m / (1 - BETA1 ** (step + 1)), v / (1 - BETA2 ** (step + 1))
                weight -= rate * mean / (square.sqrt() + EPS)
    return steps


def test_the_first_steps_are_those_of_a_plain_fp64_loop(tmp_path: Path) -> None:
    settings = [f"train.epochs={EPOCHS}", f"train.max_steps={STEPS}"]
    config = load_config(str(preset(tmp_path)), settings)
    store = make_store(tmp_path, num_records=NUM_RECORDS)
    rows = read_metrics(pretrain(store, tmp_path / "run", preset=config, device="cpu"))
    weights = {name: t.double() for name, t in build_model(config).state_dict().items()}
    expected = plain_loop(open_store(store), weights)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, plain in zip(rows, expected, strict=True):
        assert row["lr"] == pytest.approx(plain["lr"], rel=1e-12, abs=1e-18)
        assert row["loss"] == pytest.approx(plain["loss"], rel=FIRST_LOSSES)
        assert row["grad_norm"] == pytest.approx(plain["grad_norm"], rel=10 * FIRST_LOSSES)
    losses = [plain["loss"] for plain in expected]
    assert abs(losses[1] - losses[-1]) > 1000 * FIRST_LOSSES, "the weights must have moved"
