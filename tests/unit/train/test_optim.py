"""Parameter groups, the schedule, clipping, and steps that are not finite."""

import math

import pytest
import torch
from toy import toy_batch, toy_config, toy_model

from ecgfast.settings import OptimConfig
from ecgfast.train.distributed import Ranks
from ecgfast.train.loop import train_step
from ecgfast.train.optim import MasterAdamW, is_decayed, learning_rate
from ecgfast.train.pretrain import masked_loss


def _rate(step: int, **changes: float) -> float:
    return learning_rate(
        step, peak=6e-4, warmup_epochs=40, epochs=1600, steps_per_epoch=10, **changes
    )


def test_schedule_is_the_papers() -> None:
    assert _rate(0) == 0
    assert _rate(200) == pytest.approx(3e-4)  # half of the warm-up
    assert _rate(400) == pytest.approx(6e-4)  # base x 1024 / 256
    assert _rate(400 + 7800) == pytest.approx(3e-4)  # half of the cosine
    assert _rate(16000) == pytest.approx(0, abs=1e-12)
    assert _rate(16000, min_lr=1e-6) == pytest.approx(1e-6)
    assert _rate(400 + 7800, min_lr=1e-4) == pytest.approx(3.5e-4)  # half between both
    assert _rate(20000) == pytest.approx(0, abs=1e-12)  # a run that is longer than its schedule
    assert all(_rate(s) > _rate(s + 1) for s in range(400, 16000, 97))


@pytest.mark.parametrize(("warmup", "step", "share"), [(0, 0, 1), (2, 20, 1), (2, 21, 0)])
def test_a_schedule_may_have_no_warm_up_or_nothing_else(
    warmup: int, step: int, share: float
) -> None:
    rate = learning_rate(step, peak=1e-3, warmup_epochs=warmup, epochs=2, steps_per_epoch=10)
    assert rate == pytest.approx(share * 1e-3)


def test_only_matrices_decay() -> None:
    model = toy_model(toy_config())
    decayed = {n for n, p in model.named_parameters() if is_decayed(n, p)}
    assert "blocks.0.attn.qkv.weight" in decayed
    assert "patch_embed.proj.weight" in decayed
    others = {n for n, _ in model.named_parameters()} - decayed
    assert {"cls_token", "mask_token", "norm.weight", "blocks.0.norm1.bias"} <= others
    assert all(n.endswith(("bias", "_token")) or "norm" in n for n in others)
    assert not is_decayed("scale", torch.zeros(()))
    assert not is_decayed("encoder.pos_embed", torch.zeros(1, 13, 16))


def test_weights_move_as_with_the_plain_optimizer() -> None:
    """Ours wraps the fused AdamW; the plain one, step by step, is the oracle."""
    config = toy_config("train.clip_norm=0.05")
    ours, oracle = toy_model(config), toy_model(config)
    optimizer = MasterAdamW(ours, Ranks(), config.optim, clip_norm=0.05)
    groups = [
        {
            "params": [p for n, p in oracle.named_parameters() if is_decayed(n, p) is decayed],
            "weight_decay": 0.05 if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    plain = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=False, foreach=False)
    batch = toy_batch()
    for _ in range(5):
        report = train_step(
            ours, optimizer, masked_loss(ours, config), batch, microbatch=2, learning_rate=1e-3
        )
        plain.zero_grad()
        loss = masked_loss(oracle, config)(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.05)
        plain.step()
        assert report.loss.item() == pytest.approx(loss.item(), rel=1e-5)
        assert report.grad_norm.item() == pytest.approx(norm.item(), rel=1e-4)
        assert norm > 0.05, "the clip must bite, or it is not tested"
    for (name, a), b in zip(ours.named_parameters(), oracle.parameters(), strict=True):
        # five steps of 1e-3; sums in another order, through AdamW's division, move 1 % of a step
        torch.testing.assert_close(a, b, rtol=0, atol=5e-5, msg=name)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(value: float) -> None:
    config = toy_config()
    model = toy_model(config)
    optimizer = MasterAdamW(model, Ranks(), config.optim)
    loss_of, batch = masked_loss(model, config), toy_batch()
    train_step(model, optimizer, loss_of, batch, microbatch=8, learning_rate=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    moments = [t.clone() for _, _, t in optimizer.tensors()]
    batch.patches[2, 3, 7] = value
    report = train_step(model, optimizer, loss_of, batch, microbatch=8, learning_rate=1e-3)
    assert report.skipped.item() == 1
    assert optimizer.num_updates.item() == 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    kept = [t for _, _, t in optimizer.tensors()]
    assert all(torch.equal(a, b) for a, b in zip(moments, kept, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_under_a_finite_loss_changes_nothing(value: float) -> None:
    """As of a kernel that overflows on the way back."""
    config = toy_config("train.clip_norm=1.0")
    model = toy_model(config)
    optimizer = MasterAdamW(model, Ranks(), config.optim, clip_norm=1.0)
    loss_of, batch = masked_loss(model, config), toy_batch()
    train_step(model, optimizer, loss_of, batch, microbatch=8, learning_rate=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    moments = [t.clone() for _, _, t in optimizer.tensors()]
    hook = model.decoder_pred.bias.register_hook(lambda gradient: gradient * value)
    report = train_step(model, optimizer, loss_of, batch, microbatch=8, learning_rate=1e-3)
    assert math.isfinite(report.loss.item())
    assert report.skipped.item() == 1
    assert optimizer.num_updates.item() == 1
    kept = [t for _, _, t in optimizer.tensors()]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(moments, kept, strict=True))
    hook.remove()
    report = train_step(model, optimizer, loss_of, batch, microbatch=8, learning_rate=1e-3)
    assert (report.skipped.item(), optimizer.num_updates.item()) == (0, 2)


@pytest.mark.parametrize("one_pass", ["false", "true"])
def test_a_gradient_below_the_clip_is_left_as_it_is(one_pass: str) -> None:
    """Seen in the moments: AdamW's first update does not depend on the gradient's scale."""
    config = toy_config(f"optim.one_pass={one_pass}")
    moments = []
    for clip_norm in (None, 1000.0):
        model = toy_model(config)
        optimizer = MasterAdamW(model, Ranks(), config.optim, clip_norm=clip_norm)
        report = train_step(
            model,
            optimizer,
            masked_loss(model, config),
            toy_batch(),
            microbatch=8,
            learning_rate=1e-3,
        )
        assert 0 < report.grad_norm.item() < 1000
        moments.append([t for _, _, t in optimizer.tensors()])
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


def test_parameters_learn_at_their_own_rate() -> None:
    """The first step of Adam is the rate, whatever the gradient; decay is a share of it."""
    model = torch.nn.ModuleDict({"slow": torch.nn.Linear(2, 1), "fast": torch.nn.Linear(2, 1)})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = MasterAdamW(
        model, Ranks(), OptimConfig(weight_decay=0.5),
        scale_of=lambda name: 0.1 if name.startswith("slow") else 1.0,
    )  # fmt: skip
    loss = sum(layer(torch.ones(1, 2)).sum() for layer in model.values())
    loss.backward()
    optimizer.step(loss, learning_rate=1e-2)
    for name, parameter in model.named_parameters():
        rate = 1e-3 if name.startswith("slow") else 1e-2
        decay = 0.5 if name.endswith("weight") else 0.0
        expected = before[name] * (1 - rate * decay) - rate
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)


def test_a_parameter_without_a_gradient_is_named() -> None:
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 1), "unused": torch.nn.Linear(2, 1)})
    optimizer = MasterAdamW(model, Ranks(), OptimConfig(weight_decay=0.0))
    loss = model["used"](torch.ones(1, 2)).sum()
    loss.backward()
    with pytest.raises(AssertionError, match=r"unused\.weight got no gradient"):
        optimizer.step(loss, learning_rate=1e-3)


def test_a_rank_without_any_part_of_the_weights_takes_part_in_a_step() -> None:
    """FSDP2 leaves the last ranks nothing where no weight has rows enough for all of them."""
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight = torch.nn.Parameter(torch.empty(0, 3))
    optimizer = MasterAdamW(model, Ranks(), OptimConfig(weight_decay=0.0))
    loss = model(torch.ones(2, 3)).sum() + 4
    loss.backward()
    optimizer.collect(num_microbatches=1)
    report = optimizer.step(loss, learning_rate=1e-3)
    assert (report.loss.item(), report.grad_norm.item(), report.skipped.item()) == (4, 0, 0)
