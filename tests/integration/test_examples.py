"""The recipes for many machines, run here: a SLURM of thirty lines does each job at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from recordings import KEY, convert_quietly, snapshot, write_cohort
from training_runs import loss_trace, wait_for_step

EXAMPLES = Path(__file__).parents[2] / "examples"

# Does a job where it is submitted, and prints its number; --array gives one task after another.
SBATCH = """#!/usr/bin/env bash
set -euo pipefail
array= wrap=
while [[ ${1-} == --* ]]; do
    case $1 in
        --array=0-*) array=${1#--array=0-} ;;
        --wrap=*) wrap=${1#--wrap=} ;;
    esac
    shift
done
echo 7
export SLURM_CPUS_PER_TASK=1
if [[ $wrap ]]; then
    bash -c "$wrap" >&2
else
    export SLURM_ARRAY_TASK_COUNT=$((array + 1))
    for SLURM_ARRAY_TASK_ID in $(seq 0 "$array"); do
        export SLURM_ARRAY_TASK_ID
        bash "$@" >&2
    done
fi
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """1,026 records, two units, and the store that they give in one go."""
    write_cohort(tmp_path / "in", 2)
    header = (tmp_path / "in/r00000.hea").read_text()
    for number in range(2, 1026):
        (tmp_path / f"in/r{number:05d}.hea").write_text(header)
    convert_quietly([tmp_path / "in"], tmp_path / "whole/store")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/store.key").touch(mode=0o600)
    (tmp_path / "run/store.key").write_text(KEY)
    return tmp_path / "in"


@pytest.mark.parametrize("script", [*EXAMPLES.rglob("*.sh"), *EXAMPLES.rglob("*.sbatch")], ids=str)
def test_shell_scripts_are_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


def environment(tmp_path: Path) -> dict[str, str]:
    """Commands of this environment are found, and `sbatch`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH)
    (folder / "ecgfast").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ecgfast "$@"\n')
    for file in folder.iterdir():
        file.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_slurm(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "run/store"
    script = [EXAMPLES / "slurm/convert.sh", source, store, "3"]
    result = subprocess.run(script, env=environment(tmp_path), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "1,026 inputs, 2 units" in result.stderr
    assert snapshot(tmp_path / "run") == snapshot(tmp_path / "whole")


@pytest.mark.slow  # torchrun twice
def test_a_pretraining_out_of_time_is_queued_again(store: Path, tiny: Path, tmp_path: Path) -> None:
    """USR1 comes after three steps of two ranks; the second time it trains to its end."""
    env = environment(tmp_path) | {
        **{"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"},
        **{"SLURM_JOB_NODELIST": "here", "OMP_NUM_THREADS": "1"},
    }
    tools = {
        "scontrol": f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho localhost\n',
        "srun": '#!/bin/sh\nexec "$@"\n',
        "torchrun": f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n',
    }
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    run = tmp_path / "pretrained"
    script = ["bash", str(EXAMPLES / "slurm/pretrain.sbatch"), str(store), str(run)]
    options = ["--preset", str(tiny), "--device", "cpu", "--set"]
    process = subprocess.Popen(
        [*script, *options, "train.max_steps=10000"], env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for_step(run, 3, process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=300)
    assert "requeue 7" in (tmp_path / "asked").read_text(), output
    (saved,) = (run / "checkpoints").glob(f"step-{int(max(loss_trace(run))):08d}")
    steps = int(saved.name.removeprefix("step-")) + 2
    again = [*script, *options, f"train.max_steps={steps}"]
    done = subprocess.run(again, env=env, capture_output=True, text=True, timeout=300, check=True)
    assert saved.name in done.stdout + done.stderr
    assert max(loss_trace(run)) == steps
    assert (run / "model.safetensors").exists()


@pytest.mark.slow  # two processes that train
def test_fine_tunings_of_several_seeds(store: Path, pretrained: Path, tmp_path: Path) -> None:
    env = environment(tmp_path)
    (tmp_path / "bin/srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "bin/srun").chmod(0o755)
    script = ["bash", str(EXAMPLES / "slurm/finetune.sbatch"), str(store), str(tmp_path / "tuned")]
    options = ["--init", str(pretrained), "--device", "cpu", "--set", "finetune.epochs=1"]
    for seed in "01":
        task = env | {"SLURM_ARRAY_TASK_ID": seed}
        subprocess.run([*script, *options], env=task, check=True, timeout=300)
        assert f"\nseed = {seed}\n" in (tmp_path / f"tuned-seed{seed}/config.toml").read_text()
        assert (tmp_path / f"tuned-seed{seed}/best.safetensors").exists()


def test_kubernetes(source: Path, tmp_path: Path) -> None:
    """The commands of the Jobs, each with its index."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    jobs = list(yaml.safe_load_all((EXAMPLES / "kubernetes/convert.yaml").read_text()))
    assert [job["metadata"]["labels"]["step"] for job in jobs] == ["plan", "units", "seal"]
    env = environment(tmp_path)
    for job in jobs:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        command = [
            word.replace("/share/ecg", str(source)).replace(
                "/share/cohort", f"{tmp_path}/run/store"
            )
            for word in container["command"]
        ]
        indices = range(job["spec"].get("completions", 1))
        assert f"/{len(indices)}" in " ".join(command) or len(indices) == 1
        for index in [0, 1] if len(indices) > 1 else [0]:  # the other parts have no unit
            subprocess.run(command, check=True, env=env | {"JOB_COMPLETION_INDEX": str(index)})
    assert snapshot(tmp_path / "run") == snapshot(tmp_path / "whole")


@pytest.mark.slow  # a scheduler and a worker take ten seconds to start
def test_dask(source: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with distributed.LocalCluster(n_workers=1, dashboard_address=None) as cluster:
        script = [sys.executable, EXAMPLES / "dask/convert.py", cluster.scheduler_address]
        subprocess.run([*script, source, tmp_path / "run/store"], check=True)
    assert snapshot(tmp_path / "run") == snapshot(tmp_path / "whole")
