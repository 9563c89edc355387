"""Gradient buckets on a mesh of one: every gradient arrives unchanged, in views of flat buffers."""

import pytest
import torch
import torch.distributed as dist
from toy import toy_batch, toy_config, toy_model

from ecgfast.errors import ConfigError
from ecgfast.train.distributed import full_state, join, master, spread
from ecgfast.train.loop import train_step
from ecgfast.train.optim import MasterAdamW
from ecgfast.train.pretrain import build_spread, masked_loss, microbatch_graph
from ecgfast.train.replicas import GradientBuckets


def test_buckets_hold_the_gradients_in_backward_order(monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config()
    alone, model = toy_model(config), toy_model(config)
    masked_loss(alone, config)(toy_batch()).backward()
    sent: list[int] = []
    real = dist.all_reduce

    def counted(flat: torch.Tensor, *, async_op: bool) -> object:
        sent.append(flat.data_ptr())
        return real(flat, async_op=async_op)

    monkeypatch.setattr(dist, "all_reduce", counted)
    with join("cpu", mesh_of_one=True):
        GradientBuckets(model, every_pass=True, bucket_bytes=4096)
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = None
            masked_loss(model, config)(toy_batch()).backward()
    half = len(sent) // 2
    assert half > 3
    assert sent[:half] == sent[half:]  # the same buffers in the same order
    bases = []
    named = zip(model.named_parameters(), alone.parameters(), strict=True)
    for (name, parameter), want in named:
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None
        assert want.grad is not None
        assert torch.equal(parameter.grad, want.grad), name
        assert parameter.grad.data_ptr() % 16 == 0
        bases.append(parameter.grad._base.data_ptr())  # type: ignore[union-attr]  # a view
    assert set(bases) == set(sent)
    assert bases == sorted(bases, key=sent.index, reverse=True)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_replica_alone_takes_the_steps_of_one_rank(precision: str) -> None:
    """Two microbatches: in bf16 each is averaged, in fp32 their sum; dividing by 1 is exact."""
    results = {}
    for mesh_of_one in (False, True):
        config = toy_config(f"train.precision={precision}", "train.parallel=replicas")
        with join("cpu", mesh_of_one=mesh_of_one) as ranks:
            model, _ = build_spread(config, ranks, None)
            optimizer = MasterAdamW(model, ranks, config.optim, clip_norm=0.05)
            loss_of = masked_loss(model, config)
            norms = [
                train_step(
                    model, optimizer, loss_of, toy_batch(), microbatch=4, learning_rate=1e-3
                ).grad_norm.item()
                for _ in range(3)
            ]
            results[mesh_of_one] = norms, full_state(model)
    assert results[True][0] == results[False][0]
    assert all(torch.equal(t, results[False][1][n]) for n, t in results[True][1].items())


def test_a_parameter_without_a_gradient_is_a_bug() -> None:
    config = toy_config()
    with join("cpu", mesh_of_one=True) as ranks:
        model = toy_model(config)
        model.extra = torch.nn.Linear(2, 2)  # used by nothing
        spread(model, ranks, precision="fp32", compile_blocks=False, parallel="replicas")
        assert all(master(p) is p for p in model.parameters())
        with pytest.raises(AssertionError, match="got no gradient"):
            masked_loss(model, config)(toy_batch()).backward()


def test_shards_are_replayed_in_one_microbatch_only() -> None:
    config = toy_config("train.precision=bf16", "train.cuda_graph=true")
    with join("cpu", mesh_of_one=True) as ranks:
        shards, replica = toy_model(config), toy_model(config)
        spread(shards, ranks, precision="bf16", compile_blocks=False)
        spread(replica, ranks, precision="bf16", compile_blocks=False, parallel="replicas")
        assert microbatch_graph(shards, config, num_pieces=1) is not None
        assert microbatch_graph(replica, config, num_pieces=2) is not None
        with pytest.raises(ConfigError, match="one microbatch per step, got 2"):
            microbatch_graph(shards, config, num_pieces=2)
