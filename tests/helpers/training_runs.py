"""A small labelled store, and training runs in processes of their own."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from ecgfast.convert import convert
from ecgfast.labels.commands import label_store
from ecgfast.log import read_metrics

PRESET = """
[model]
encoder_width = 16
encoder_depth = 2
encoder_heads = 2
decoder_width = 16
decoder_depth = 1
decoder_heads = 2
[train]
batch_size = 8
epochs = 10
microbatch = 2
log_every = 1
checkpoint_every = 7
val_every = 10
[optim]
base_lr = 0.032
warmup_epochs = 1
[finetune]
epochs = 3
batch_size = 8
learning_rates = [1e-3, 1e-4]
"""


def make_store(
    folder: Path, *, num_records: int = 64, num_sites: int = 2, num_windows: int = 1
) -> Path:
    """Write a store of noisy sines; every third record is a case with a 10 Hz wave on top.

    Recordings have so many windows of ten seconds each, and the store has all of them.
    """
    source = folder / "source"
    source.mkdir()
    random = np.random.default_rng(0)
    seconds = np.arange(5000 * num_windows) / 500
    lines = []
    for i in range(num_records):
        rate, phase = random.uniform(0.8, 2.0), random.uniform(0, 6, (12, 1))
        signal_uv = 300 * np.sin(2 * np.pi * rate * seconds + phase)
        signal_uv += random.normal(0, 20, (12, len(seconds)))
        if i % 3 == 0:
            signal_uv += 150 * np.sin(2 * np.pi * 10 * seconds)
        np.save(source / f"r{i:03d}.npy", signal_uv.astype(np.int16))
        facts = {"sampling_rate_hz": 500, "scale_uv": 4.88, "site": str(1 + i % num_sites)}
        facts["patient_id"] = f"P{i // 2}"
        (source / f"r{i:03d}.json").write_text(json.dumps(facts))
        fraction = "" if i % 11 == 5 else ("30" if i % 3 == 0 else "60")
        split = ("train", "train", "train", "valid", "test")[i // 2 % 5]
        lines.append((f"r{i:03d}", fraction, split))
    labels = folder / "labels.csv"
    with labels.open("w", newline="") as file:
        csv.writer(file).writerows([("record_id", "ejection_fraction", "split"), *lines])
    convert([source], folder / "store", workers=1, window="first" if num_windows == 1 else "all")
    label_store(folder / "store", labels, split="column")
    return folder / "store"


def make_column_store(folder: Path, *, num_windows: int = 1) -> Path:
    """Write `make_store` with fractions of 20 to 70, higher without the wave, and a rhythm."""
    made, random = make_store(folder, num_windows=num_windows), np.random.default_rng(1)
    lines = [("record_id", "ejection_fraction", "rhythm")]
    for i in range(64):
        fraction = (30 if i % 3 == 0 else 60) + random.normal(0, 4)
        rhythm = "" if i % 13 == 6 else ("AF", "SR", "VT")[i % 3]
        lines.append((f"r{i:03d}", "" if i % 11 == 5 else f"{fraction:.1f}", rhythm))
    with (folder / "more.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    label_store(made, folder / "more.csv", columns=["ejection_fraction", "rhythm"])
    return made


def preset(folder: Path) -> Path:
    """Write the preset of these tests, small enough for two cores."""
    path = folder / "tiny_test.toml"
    path.write_text(PRESET)
    return path


def start(
    command: Sequence[str],
    *,
    ranks: int = 0,
    restarts: int = 0,
    largest_file: int | None = None,
    launch: Sequence[str] = ("--standalone",),
) -> subprocess.Popen[str]:
    """Start ``ecgfast COMMAND``, under torchrun when `ranks` is given.

    Args:
        command: its words.
        ranks: how many, 0 without torchrun.
        restarts: of torchrun.
        largest_file: the system lets no file grow beyond so many bytes, as a quota would.
        launch: options of torchrun, such as those of one of several machines.
    """
    launcher = [sys.executable, "-m"]
    if ranks:
        launcher += ["torch.distributed.run", *launch, f"--nproc-per-node={ranks}"]
        launcher += [f"--max-restarts={restarts}", "--monitor-interval=0.2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        [*launcher, "ecgfast", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=None if largest_file is None else lambda: _limit_files(largest_file),
    )


def _limit_files(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def finish(process: subprocess.Popen[str], *, timeout_s: float = 300) -> str:
    """Wait for a run to end well; return what it printed."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output
    return output


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Return when a run has logged a step."""
    deadline = time.monotonic() + 120
    while not any(row["step"] >= step for row in read_metrics(run)):
        assert process.poll() is None, f"ended early: {process.communicate()[0]}"
        assert time.monotonic() < deadline, f"no step {step} after two minutes"
        time.sleep(0.02)


def kill(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> int:
    """Send a signal and return the process's status."""
    process.send_signal(number)
    process.communicate(timeout=120)
    return process.returncode


def loss_trace(run: Path) -> dict[float, float]:
    """Losses by step."""
    return {row["step"]: row["loss"] for row in read_metrics(run)}


def weights(run: Path) -> dict[str, bytes]:
    """Exported weights as bytes, so that equal means bit-equal."""
    return {name: t.numpy().tobytes() for name, t in load_file(run / "model.safetensors").items()}
