"""Training on one GPU: bf16 copies, compiled blocks, exact resume, CUDA graph, no waiting."""

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ecgfast_kernels.codec import PATCH_WIDTH
from numpy.typing import NDArray
from torch import Tensor
from toy import toy_meta

from ecgfast.config import Config, load_config
from ecgfast.data.loader import Loader, RankOrder
from ecgfast.log import read_metrics
from ecgfast.runs.checkpoint_reader import newest
from ecgfast.train.distributed import Ranks, full_state, join, master, repeatable
from ecgfast.train.guards import StopSignals
from ecgfast.train.loop import Loop, train_step
from ecgfast.train.microbatch import choose_microbatch
from ecgfast.train.optim import MasterAdamW, StepReport
from ecgfast.train.pretrain import build_spread, masked_loss, memory_probe, microbatch_graph

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # advice of Inductor and NCCL differs by GPU
]

NUM_RECORDS = 64
SETTINGS = (
    *("model.encoder_width=128", "model.encoder_depth=2", "model.encoder_heads=2"),
    *("model.decoder_width=64", "model.decoder_depth=1", "model.decoder_heads=2"),
    *("train.batch_size=16", "train.epochs=10", "train.microbatch=8", "train.log_every=1"),
    *("train.checkpoint_every=5", "optim.base_lr=0.016", "optim.warmup_epochs=1"),
)


class WaveEngine:
    """Records that need no store: noisy waves, made from the record's number."""

    def batches(self, schedule: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in schedule:
            index = torch.from_numpy(rows.copy())
            seconds = torch.arange(60_000).view(1, 240, 250) / 500
            waves = torch.sin(seconds * (5 + index.view(-1, 1, 1) % 7))
            patches = torch.nn.functional.pad(waves, (0, PATCH_WIDTH - 250)).half()
            yield patches.cuda(), index.cuda()


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()  # each test compiles for shapes of its own


def _config(*settings: str) -> Config:
    return load_config("vit_tiny", [*SETTINGS, *settings])


def _loader(batch_size: int = 16) -> Loader:
    return Loader(WaveEngine(), RankOrder(index=np.arange(NUM_RECORDS), batch_size=batch_size))


def _loop(config: Config, ranks: Ranks, run: Path, num_steps: int, *, microbatch: int = 8) -> Loop:
    model, identity = build_spread(config, ranks, None)
    run.mkdir(exist_ok=True)
    return Loop(
        ranks=ranks,
        run=run,
        train=config.train,
        model=model,
        optimizer=MasterAdamW(model, ranks, config.optim, recorded=config.train.cuda_graph),
        loader=_loader(),
        loss_of=masked_loss(model, config),
        learning_rate_at=lambda step: 1e-3,
        microbatch=microbatch,
        steps_per_epoch=NUM_RECORDS // 16,
        num_steps=num_steps,
        meta=toy_meta(**identity),
        flops_per_record=1e9,
        graph=microbatch_graph(model, config, num_pieces=16 // microbatch),
    )


def _trace(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run)]


def _train(config: Config, run: Path, num_steps: int) -> dict[str, bytes]:
    """Train from the run's checkpoint, if it has one; return the weights as bytes."""
    with repeatable(config.train.deterministic), join("cuda") as ranks, StopSignals(ranks) as stop:
        loop = _loop(config, ranks, run, num_steps)
        if (checkpoint := newest(run)) is not None:
            loop.resume(checkpoint)
        assert loop.run_to_end(stop)
        return {n: t.numpy().tobytes() for n, t in full_state(loop.model).items()}


@pytest.mark.parametrize(
    "settings",
    [
        ("train.precision=bf16",),
        ("train.precision=bf16", "train.cuda_graph=true"),
        ("train.precision=bf16", "train.cuda_graph=true", "optim.one_pass=true"),
        ("train.precision=fp32",),
    ],
    ids=["bf16", "bf16-graph", "bf16-graph-one-pass", "fp32"],
)
def test_deterministic_runs_resume_in_the_same_bits(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    config = _config("train.deterministic=true", *settings)
    unbroken = _train(config, tmp_path / "unbroken", 12)
    _train(config, tmp_path / "broken", 7)
    assert _train(config, tmp_path / "broken", 12) == unbroken
    assert _trace(tmp_path / "broken") == _trace(tmp_path / "unbroken")


def test_training_learns_in_bf16_as_in_fp32(tmp_path: Path) -> None:
    traces = {}
    for precision in ("bf16", "fp32"):
        _train(_config(f"train.precision={precision}"), tmp_path / precision, 40)
        traces[precision] = _trace(tmp_path / precision)
    assert traces["fp32"][-1] < 0.9 * traces["fp32"][0]
    # bf16 has 8 bits; its rounding averages out over a loss of 10^5 values
    assert abs(traces["bf16"][-1] - traces["fp32"][-1]) < 0.05 * traces["fp32"][-1]


def test_a_replayed_graph_trains_as_the_same_kernels_launched_one_by_one(tmp_path: Path) -> None:
    """Two microbatches a step, checkpoints in between, and masks that differ in every epoch."""
    traces = {}
    for graph in (False, True):
        run = tmp_path / str(graph)
        _train(_config("train.precision=bf16", f"train.cuda_graph={graph}".lower()), run, 40)
        traces[graph] = _trace(run)
    # attention's backward may add in another order each time: bf16 weights then round differently
    np.testing.assert_allclose(traces[True], traces[False], rtol=0.05)
    np.testing.assert_allclose(traces[True][:2], traces[False][:2], rtol=1e-3)
    assert traces[True][-1] < 0.9 * traces[True][0]


@pytest.mark.parametrize("microbatch", [16, 8])
def test_a_recorded_one_pass_update_trains_as_the_usual_one(
    microbatch: int, tmp_path: Path
) -> None:
    """Gradients read where the graph left them, or added up over two microbatches."""
    traces = {}
    for one_pass in (False, True):
        config = _config(
            *("train.precision=bf16", "train.cuda_graph=true", "train.deterministic=true"),
            f"optim.one_pass={one_pass}".lower(),
        )
        run = tmp_path / str(one_pass)
        with repeatable(True), join("cuda") as ranks, StopSignals(ranks) as stop:
            loop = _loop(config, ranks, run, 40, microbatch=microbatch)
            loop.learning_rate_at = lambda step: 1e-3 * (1 + step % 3)
            assert loop.run_to_end(stop)
            for name, parameter in loop.model.named_parameters():
                assert torch.equal(parameter, master(parameter).bfloat16()), name
        traces[one_pass] = _trace(run)
    np.testing.assert_allclose(traces[True], traces[False], rtol=0.05)  # bf16 rounds another way
    np.testing.assert_allclose(traces[True][:2], traces[False][:2], rtol=1e-4)
    assert traces[True][-1] < 0.9 * traces[True][0]


def test_a_mesh_of_one_trains_as_a_single_rank() -> None:
    """FSDP2's bf16 copies and ours: the same forward pass, gradients added in the same order."""
    config = _config("train.precision=bf16", "train.compile=false")
    losses: dict[bool, list[float]] = {}
    for mesh_of_one in (False, True):
        with join("cuda", mesh_of_one=mesh_of_one) as ranks:
            model, _ = build_spread(config, ranks, None)
            optimizer = MasterAdamW(model, ranks, config.optim)
            loss_of = masked_loss(model, config)
            losses[mesh_of_one] = [
                float(
                    train_step(
                        model, optimizer, loss_of, batch, microbatch=8, learning_rate=1e-3
                    ).loss
                )
                for _, batch in zip(range(4), _loader(), strict=False)
            ]
    np.testing.assert_allclose(losses[True], losses[False], rtol=2e-3)  # atomics in attention


@pytest.mark.parametrize("parallel", ["fsdp", "replicas"])
def test_nccl_on_one_rank_is_recorded_and_replayed(parallel: str) -> None:
    """Collectives, and FSDP2's streams, inside the graph; one microbatch a step."""
    losses: dict[bool, list[float]] = {}
    for graph in (False, True):
        config = _config(
            *("train.precision=bf16", "train.deterministic=true", "optim.one_pass=true"),
            *(f"train.parallel={parallel}", f"train.cuda_graph={graph}".lower()),
        )
        with repeatable(True), join("cuda", mesh_of_one=True) as ranks:
            model, _ = build_spread(config, ranks, None)
            optimizer = MasterAdamW(model, ranks, config.optim, recorded=graph)
            replayed = microbatch_graph(model, config, num_pieces=1)
            losses[graph] = [
                train_step(
                    model,
                    optimizer,
                    masked_loss(model, config),
                    batch,
                    microbatch=16,
                    learning_rate=1e-3,
                    graph=replayed,
                ).loss.item()
                for _ in range(3)
                for batch in _loader()
            ]
            del replayed  # before NCCL ends: the graph holds its communicator
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-3)
    assert losses[True][-1] < losses[True][0]


def test_gpu_and_cpu_agree_in_fp32(tmp_path: Path) -> None:
    """Triton kernels and compiled blocks on one side, plain PyTorch on the other."""
    config = _config("train.precision=fp32")
    losses: dict[str, list[float]] = {}
    for device in ("cuda", "cpu"):
        with join(device) as ranks:
            model, _ = build_spread(config, ranks, None)
            optimizer = MasterAdamW(model, ranks, config.optim)
            loss_of = masked_loss(model, config)
            losses[device] = []
            for _, batch in zip(range(4), _loader(), strict=False):
                moved = type(batch)(
                    patches=batch.patches.to(device),
                    record_index=batch.record_index.to(device),
                    epoch=batch.epoch,
                )
                report = train_step(
                    model, optimizer, loss_of, moved, microbatch=8, learning_rate=1e-3
                )
                losses[device].append(float(report.loss))
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=2e-4)  # exp and sums differ


@pytest.mark.parametrize("graph", ["false", "true"])
def test_a_step_never_waits_for_the_device(graph: str, tmp_path: Path) -> None:
    config = _config(f"train.cuda_graph={graph}")
    with join("cuda") as ranks:
        loop = _loop(config, ranks, tmp_path / "run", 10)
        batches = list(_loader())
        for number, batch in enumerate(batches):  # the first ones compile
            if number == 2:
                torch.cuda.set_sync_debug_mode("error")
            try:
                train_step(
                    loop.model,
                    loop.optimizer,
                    loop.loss_of,
                    batch,
                    microbatch=8,
                    learning_rate=1e-3,
                    graph=loop.graph,
                )
            finally:
                if number == len(batches) - 1:
                    torch.cuda.set_sync_debug_mode("default")


def test_the_microbatch_is_found_by_measuring() -> None:
    config = _config("train.microbatch=auto", "train.batch_size=1024")
    with join("cuda") as ranks:
        model, _ = build_spread(config, ranks, None)
        optimizer = MasterAdamW(model, ranks, config.optim)
        chosen = choose_microbatch(
            "auto", 1024, ranks, before=None, probe=memory_probe(model, optimizer, config, ranks)
        )
    assert chosen == 1024  # so small a model fits at once


@pytest.mark.parametrize("graph", ["false", "true"])
def test_a_step_that_is_not_finite_changes_nothing(graph: str, tmp_path: Path) -> None:
    config = _config("train.precision=bf16", f"train.cuda_graph={graph}")
    with join("cuda") as ranks:
        loop = _loop(config, ranks, tmp_path / "run", 10)
        model, optimizer, batch = loop.model, loop.optimizer, next(iter(_loader()))

        def step() -> StepReport:
            return train_step(
                model,
                optimizer,
                loop.loss_of,
                batch,
                microbatch=8,
                learning_rate=1e-3,
                graph=loop.graph,
            )

        step()
        before = [t.detach().clone() for p in model.parameters() for t in (p, master(p))]
        clean = batch.patches[3].clone()
        batch.patches[3] = float("nan")
        assert step().skipped.item() == 1
        assert optimizer.num_updates.item() == 1
        now = [t for p in model.parameters() for t in (p, master(p))]
        assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
        batch.patches[3] = clean
        assert step().skipped.item() == 0  # nothing of the lost step is left behind


def test_a_preempted_run_goes_on(tmp_path: Path) -> None:
    """The command itself, from a store: SIGTERM, then --resume."""
    pytest.importorskip("zarr", reason="writing the test's store needs zarr")
    from training_runs import finish, kill, loss_trace, make_store, preset, start, wait_for_step

    store, tiny, run = make_store(tmp_path), preset(tmp_path), tmp_path / "run"
    command = [
        *("pretrain", str(store), "--out", str(run), "--preset", str(tiny), "--resume"),
        *("--device", "cuda", "--set", "train.epochs=200", "--set", "train.max_steps=400"),
    ]
    process = start(command)
    wait_for_step(run, 20, process)
    assert kill(process, signal.SIGTERM) == -signal.SIGTERM
    stopped_at = int(max(loss_trace(run)))
    assert newest(run).step == stopped_at < 400  # type: ignore[union-attr]  # there is one
    output = finish(start(command))
    assert f"step-{stopped_at:08d}" in output
    assert sorted(loss_trace(run)) == list(range(1, 401))
