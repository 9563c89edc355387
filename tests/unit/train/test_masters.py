"""One rank in bf16: fp32 weights beside bf16 copies, gradients added up in fp32."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import toy_batch, toy_config, toy_loop, toy_model

from ecgfast.config import Config
from ecgfast.errors import ConfigError
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.runs.checkpoint_reader import newest
from ecgfast.train.checkpoint import load, training_state
from ecgfast.train.distributed import Ranks, full_state, join, master, spread
from ecgfast.train.guards import StopSignals
from ecgfast.train.loop import train_step
from ecgfast.train.microbatch import split
from ecgfast.train.optim import MasterAdamW, is_decayed
from ecgfast.train.pretrain import build_spread, masked_loss


def _bf16(config: Config) -> MaskedAutoencoder:
    model = toy_model(config)
    spread(model, Ranks(), precision="bf16", compile_blocks=False)
    return model


def _step(
    model: MaskedAutoencoder, optimizer: MasterAdamW, config: Config, microbatch: int = 4
) -> float:
    report = train_step(
        model,
        optimizer,
        masked_loss(model, config),
        toy_batch(),
        microbatch=microbatch,
        learning_rate=1e-3,
    )
    return report.grad_norm.item()


def _masters(model: MaskedAutoencoder) -> list[Tensor]:
    return [master(p).clone() for p in model.parameters()]


def _require_rounded(model: MaskedAutoencoder) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert master(parameter).dtype == torch.float32
        assert torch.equal(parameter, master(parameter).bfloat16()), name


def test_masters_begin_as_the_weights_before_the_cast() -> None:
    config = toy_config()
    model, whole = _bf16(config), toy_model(config)
    _require_rounded(model)
    for parameter, first in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(master(parameter), first)
    assert any(not torch.equal(master(p), p.float()) for p in model.parameters())
    for buffer, first in zip(model.buffers(), whole.buffers(), strict=True):
        assert torch.equal(buffer, first)
        assert buffer.dtype == first.dtype


def test_copies_follow_their_masters() -> None:
    config = toy_config()
    model = _bf16(config)
    before = _masters(model)
    optimizer = MasterAdamW(model, Ranks(), config.optim)
    for _ in range(3):
        _step(model, optimizer, config)
        _require_rounded(model)
    assert not any(torch.equal(a, b) for a, b in zip(before, _masters(model), strict=True))


def test_small_updates_add_up_in_fp32() -> None:
    """A step of a thousandth of bf16's spacing is lost on the copy, and kept by the master."""
    config = toy_config()
    model = _bf16(config)
    optimizer = MasterAdamW(model, Ranks(), config.optim)
    weight = dict(model.named_parameters())["blocks.0.norm1.weight"]  # begins as ones
    spacing = 2**-8  # of bf16 below 1
    for _ in range(3):
        train_step(
            model,
            optimizer,
            masked_loss(model, config),
            toy_batch(),
            microbatch=8,
            learning_rate=spacing / 1000,
        )
    assert torch.equal(weight, torch.ones_like(weight))
    assert not torch.equal(master(weight), torch.ones_like(master(weight)))


def _gradients(config: Config, microbatch: int) -> dict[str, Tensor]:
    """Each microbatch's bf16 gradients from a model of its own, added up in fp32."""
    pieces = list(split(toy_batch(), microbatch))
    sums: dict[str, Tensor] = {}
    for piece in pieces:
        model = _bf16(config)
        (masked_loss(model, config)(piece) / len(pieces)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.bfloat16
            sums[name] = sums.get(name, 0.0) + parameter.grad.float()
    return sums


@pytest.mark.parametrize("microbatch", [8, 1])
def test_a_step_is_the_plain_optimizers_on_fp32_sums(microbatch: int) -> None:
    config, clip = toy_config(), 0.05
    model = _bf16(config)
    oracle = {n: torch.nn.Parameter(p.detach()) for n, p in toy_model(config).named_parameters()}
    groups = [
        {
            "params": [p for n, p in oracle.items() if is_decayed(n, p) is decayed],
            "weight_decay": 0.05 if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    plain = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=False, foreach=False)
    for name, gradient in _gradients(config, microbatch).items():
        oracle[name].grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(oracle.values(), clip).item()
    plain.step()

    optimizer = MasterAdamW(model, Ranks(), config.optim, clip_norm=clip)
    assert _step(model, optimizer, config, microbatch) == pytest.approx(norm, rel=1e-6)

    assert norm > clip, "the clip must bite, or it is not tested"
    for name, parameter in model.named_parameters():
        # the oracle rounds in another order; a sum in bf16 would be off by 1e-3 of a step of 1e-3
        torch.testing.assert_close(
            master(parameter), oracle[name].detach(), rtol=1e-6, atol=1e-7, msg=name
        )
    _require_rounded(model)


def test_fsdp_on_a_mesh_of_one_takes_the_same_steps() -> None:
    """Several ranks compute on FSDP2's copies; ours must not be another training."""
    config = toy_config("train.precision=bf16")
    losses: dict[bool, list[float]] = {}
    weights: dict[bool, dict[str, Tensor]] = {}
    for mesh_of_one in (False, True):
        with join("cpu", mesh_of_one=mesh_of_one) as ranks:
            assert (ranks.mesh is not None) is mesh_of_one
            model, _ = build_spread(config, ranks, None)
            optimizer = MasterAdamW(model, ranks, config.optim, clip_norm=1.0)
            losses[mesh_of_one] = [_step(model, optimizer, config) for _ in range(4)]
            weights[mesh_of_one] = full_state(model)
    assert losses[True] == losses[False]
    assert all(torch.equal(t, weights[False][n]) for n, t in weights[True].items())


def test_gradients_of_one_step_never_reach_the_next() -> None:
    config = toy_config()
    model = _bf16(config)
    optimizer = MasterAdamW(model, Ranks(), config.optim)
    masked_loss(model, config)(toy_batch()).backward()
    optimizer.collect(num_microbatches=1)
    optimizer.zero_grad()
    fresh = _bf16(config)
    expected = _step(fresh, MasterAdamW(fresh, Ranks(), config.optim), config)
    assert _step(model, optimizer, config) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_neither(value: float) -> None:
    config = toy_config()
    model = _bf16(config)
    optimizer = MasterAdamW(model, Ranks(), config.optim, clip_norm=1.0)
    _step(model, optimizer, config)
    before, copies = _masters(model), [p.detach().clone() for p in model.parameters()]
    moments = [t.clone() for _, _, t in optimizer.tensors()]
    batch = toy_batch()
    batch.patches[2, 3, 7] = value
    report = train_step(
        model, optimizer, masked_loss(model, config), batch, microbatch=4, learning_rate=1e-3
    )
    assert report.skipped.item() == 1
    assert optimizer.num_updates.item() == 1
    kept = [t for _, _, t in optimizer.tensors()]
    now = [*_masters(model), *model.parameters(), *kept]
    for old, new in zip([*before, *copies, *moments], now, strict=True):
        assert torch.equal(old, new)


def test_a_forgotten_collect_is_a_bug() -> None:
    config = toy_config()
    model = _bf16(config)
    optimizer = MasterAdamW(model, Ranks(), config.optim)
    loss = masked_loss(model, config)(toy_batch())
    loss.backward()
    with pytest.raises(AssertionError, match="collect"):
        optimizer.step(loss, learning_rate=1e-3)


def test_exports_and_checkpoints_hold_the_masters(tmp_path: Path) -> None:
    config = toy_config("train.precision=bf16")
    loop = toy_loop(config, tmp_path, num_steps=5)
    assert loop.run_to_end(StopSignals(Ranks()))
    state, parameters = full_state(loop.model), dict(loop.model.named_parameters())
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert all(torch.equal(state[n], master(p)) for n, p in parameters.items())

    other = _bf16(config)
    optimizer = MasterAdamW(other, Ranks(), config.optim)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    load(checkpoint, training_state(other, optimizer), Ranks(), optimizer)
    for parameter, (name, found) in zip(parameters.values(), other.named_parameters(), strict=True):
        assert torch.equal(master(parameter), master(found)), name
    _require_rounded(other)


def test_in_fp32_the_parameters_are_their_own_masters() -> None:
    model = toy_model(toy_config())
    spread(model, Ranks(), precision="fp32", compile_blocks=False)
    assert all(master(p) is p for p in model.parameters())


@pytest.mark.parametrize("ranks", [Ranks(), Ranks(world_size=2)])
def test_a_graph_needs_a_gpu(ranks: Ranks) -> None:
    config = toy_config("train.cuda_graph=true", "train.precision=bf16")
    with pytest.raises(ConfigError, match=r"set train\.cuda_graph=false"):
        build_spread(config, ranks, None)
