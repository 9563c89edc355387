"""The step benchmark: the reference is a masked autoencoder too, and rows come out."""

import pytest
import torch

from ecgfast.bench import peers_module, run
from ecgfast.bench.step import build_step, measure_embed, measure_step
from ecgfast.config import load_config
from ecgfast.errors import ConfigError
from ecgfast.model.mae import num_parameters
from ecgfast.train.distributed import join

DEMO = load_config("demo")
PEERS = peers_module("step_peers")
needs_timm = pytest.mark.skipif(not PEERS.installed(), reason="timm is not installed")


@needs_timm
def test_reference_has_the_parameters_of_our_model() -> None:
    with torch.device("meta"):
        reference = PEERS.ReferenceMae(DEMO.model)
    trainable = sum(p.numel() for p in reference.parameters() if p.requires_grad)
    assert trainable == sum(num_parameters(DEMO.model))


@needs_timm
def test_reference_learns_and_attention_variants_agree() -> None:
    signal = torch.randn(2, 1, 12, 5000, generator=torch.Generator().manual_seed(0))
    losses = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = PEERS.ReferenceMae(DEMO.model, fused_attention=fused)
        loss = model(signal)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    assert 0.9 < losses[0] < 3  # normalised targets have variance 1


def test_embed_is_measured_beside_its_forward_pass() -> None:
    rows = list(measure_embed("cpu", num_records=64, turns=2))
    measured = {(row.provider, row.metric): row for row in rows}
    assert set(measured) == {
        *(("ecgfast", "throughput"), ("ecgfast", "of_forward"), ("forward", "throughput")),
    }
    rates = [measured[name, "throughput"].p50 for name in ("ecgfast", "forward")]
    assert measured["ecgfast", "of_forward"].p50 == pytest.approx(rates[0] / rates[1], rel=0.5)
    assert {row.n for row in rows} == {2}


def test_rows_of_a_step_on_the_cpu() -> None:
    names = [*(["reference-eager-timm"] if PEERS.installed() else []), "ecgfast-eager"]
    everyone = ["ecgfast", *names]
    rows = list(measure_step("cpu", microbatch=2, variants=names, repeats=3))
    measured = {(r.provider, r.metric): r.p50 for r in rows}
    expected = {(name, metric) for name in everyone for metric in ("time", "throughput")}
    peaks = {("torch", "throughput"), ("torch", "bandwidth")}
    assert set(measured) == peaks | expected | {(name, "relative_time") for name in names}
    for provider in everyone:
        rate, time_ms = measured[provider, "throughput"], measured[provider, "time"]
        assert rate == pytest.approx(2e3 / time_ms)  # of three repeats, the middle one
    assert all(r.preset == "demo" and r.shape == "2 records fp32" for r in rows[2:])


def test_shards_and_replicas_on_one_rank_take_the_same_steps() -> None:
    """What is compared with ours must be ours, but for who keeps the weights."""
    losses: dict[str | None, list[float]] = {}
    with join("cpu", mesh_of_one=True) as ranks:
        for parallel in (None, "fsdp", "replicas"):
            torch.manual_seed(0)
            settings = "" if parallel is None else f"train.parallel={parallel}"
            step = build_step(settings, "demo", ranks, microbatch=2)
            losses[parallel] = [step().item() for _ in range(3)]
    assert losses["fsdp"] == pytest.approx(losses[None], rel=1e-5)
    assert losses["replicas"] == losses[None]
    assert losses[None][0] != losses[None][1]


def test_adamw_in_one_pass_takes_the_same_steps() -> None:
    losses = {}
    with join("cpu", mesh_of_one=True) as ranks:
        for one_pass in (False, True):
            torch.manual_seed(0)
            settings = f"optim.one_pass={str(one_pass).lower()}"
            step = build_step(settings, "demo", ranks, microbatch=2)
            losses[one_pass] = [step().item() for _ in range(3)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert losses[True][0] != losses[True][1]


def test_a_graph_that_cannot_be_recorded_gives_no_row() -> None:
    rows = measure_step("cpu", microbatch=2, variants=["ecgfast-graph"], repeats=1)
    assert {row.provider for row in rows} == {"torch", "ecgfast"}


def test_an_attention_that_cannot_run_gives_no_row() -> None:
    rows = measure_step("cpu", microbatch=2, variants=["ecgfast-xformers"], repeats=1)
    assert {row.provider for row in rows} == {"torch", "ecgfast"}


def test_without_timm_its_peers_are_left_out_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(PEERS, "find_spec", lambda name: None)
    assert PEERS.installed() == {}
    assert "pip install timm torchvision" in caplog.text


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown variant 'warp'"):
        next(measure_step("cpu", microbatch=2, variants=["warp"]))
    with pytest.raises(ConfigError, match="unknown bench case 'steps'"):
        run("steps")
