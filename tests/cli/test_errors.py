"""Mistakes of users are one line on stderr and exit code 2; other failures exit with 1."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from ecgfast.cli import main
from ecgfast.convert import convert
from ecgfast.evaluate import cohort
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.runs.digests import RUN_FILES, entries, sealed


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_cohort(folder / "cohort", num_records=6, num_sites=1, seed=0)
    convert([folder / "cohort"], folder / "store", codec="none", workers=1)
    return folder / "store"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must be refused; returns its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if " INFO " not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "no such command 'frobnicate'; see ecgfast --help"),
        (["info"], "missing argument 'STORE'; see ecgfast info --help"),
        (["info", "a", "b"], "see ecgfast info --help"),
        (["synth", "out", "--records", "many"], "--records"),
        (["synth", "out", "--records", "0"], "--records"),
        (["synth", "out", "--shares", "2,x"], "must be whole numbers from 1, such as 2,1,1, got"),
        (["synth", "out", "--site-shift", "3"], "site_shift must be in [0, 1], got 3"),
        (["synth", "out", "--unlabelled", "9"], "no site '9'; allowed: 1, 2, 3, 4"),
        (["convert", "x", "--out", "y", "--codec", "zip"], "'ecgpack', 'zstd', 'none'"),
        (["pretrain", "x"], "missing option '--out'"),
        (["pretrain", "x", "--out", "y", "--preset", "vit_lrge"], "did you mean 'vit_large'"),
        (["pretrain", "x", "--out", "y", "--set", "train.epoch=1"], "did you mean 'epochs'"),
        (["pretrain", "x", "--out", "y", "--set", "train.epochs=many"], "must be an integer"),
        (["pretrain", "x", "--out", "y", "--set", "mask.ratio=1.2"], "must be in [0, 1), got 1.2"),
        (["reproduce", "x", "--out", "y", "--part", "3/3"], "I/N with 0 <= I < N, got '3/3'"),
        (["reproduce", "x", "--out", "y", "--part", "1"], "I/N with 0 <= I < N, got '1'"),
        (["reproduce", "x", "--out", "y", "--fractions", "0.1,2"], "at most 1, each once, such as"),
        (["reproduce", "x", "--out", "y", "--fractions", "1,"], "numbers above 0 and at most 1"),
        (["convert", "x", "--out", "y@2"], "cannot be named y@2, which means generation 2 of y;"),
        (["convert", "x", "--out", "y@2", "--stage", "plan"], "take y-2"),
        (["fetch", "https://x.org/y", "y@2"], "cannot be named y@2"),
        (["bench", "everything"], "unknown bench case 'everything'"),
        (["reconstruct", "r", "s", "--record", "1", "--out", "p", "--leads", "II,V9"], "got V9"),
    ],
)
def test_wrong_commands(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert words in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (None, "no such file"),
        (b"", "an empty file"),
        (b"\xff\xfe1\x00", "a file that is no UTF-8 text"),
    ],
)
def test_lists_of_patients_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    store: Path,
    content: bytes | None,
    got: str,
) -> None:
    listed = tmp_path / "ids.txt"
    if content is not None:
        listed.write_bytes(content)
    line = refused(capsys, "erase", store, "--patients", listed)
    assert f"--patients {listed}: got {got}, allowed a text file (UTF-8) with one id a line" in line


def test_a_table_of_other_patients(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, store: Path
) -> None:
    table = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"patient_id": [1, 2], "ejection_fraction": [30.0, 60.0]}), table)
    line = refused(capsys, "label", store, table)
    assert (
        f"labels {table}: no line names a patient of {store}, got 2 lines; patient_id must" in line
    )
    assert f"see column patient of {store.name}.sources.csv beside the store" in line


@pytest.mark.parametrize("command", ["info", "verify", "pretrain"])
def test_what_is_not_a_store(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    options = ["--out", tmp_path / "run", "--preset", "demo"] if command == "pretrain" else []
    line = refused(capsys, command, tmp_path / "nowhere", *options)
    assert "nowhere" in line
    (tmp_path / "empty").mkdir()
    assert "not a store" in refused(capsys, command, tmp_path / "empty", *options)


def test_sources_and_runs_that_are_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, store: Path
) -> None:
    line = refused(capsys, "convert", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert "nowhere" in line
    assert "config.toml" in refused(
        capsys, "evaluate", tmp_path / "no-run", store, "--out", tmp_path / "report"
    )
    assert "config.toml" in refused(capsys, "predict", tmp_path / "no-run", store)


def test_wrong_selections_and_targets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, store: Path
) -> None:
    assert "has record_id" in refused(capsys, "info", store, "--target", "no_such_column<4")
    line = refused(
        capsys, "pretrain", store, "--out", tmp_path / "run", "--preset", "demo",
        "--select", "site ? 1",
    )  # fmt: skip
    assert "site ? 1" in line


def test_a_damaged_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, store: Path
) -> None:
    run = tmp_path / "run"
    command = [
        "pretrain", store, "--out", run, "--preset", "demo", "--resume",
        "--set", "train.batch_size=2", "--set", "train.max_steps=1",
        "--set", "train.val_fraction=0",
    ]  # fmt: skip
    assert main([str(word) for word in command]) == 0
    capsys.readouterr()
    (data,) = (run / "checkpoints").glob("step-*/*.distcp")
    data.write_bytes(data.read_bytes()[:-100])
    assert "checkpoint" in refused(capsys, *command)


def test_a_damaged_store_is_named_by_verify(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, store: Path
) -> None:
    assert main(["verify", str(store)]) == 0
    shard = next((store / "signals.zarr" / "signal").glob("c.*"))
    content = np.frombuffer(shard.read_bytes(), np.uint8).copy()
    content[1000] ^= 1
    backup = shard.read_bytes()
    try:
        shard.write_bytes(content.tobytes())
        assert main(["verify", str(store)]) == 1
        assert shard.name in capsys.readouterr().out
    finally:
        shard.write_bytes(backup)


@pytest.mark.parametrize("name", ["config.toml", "result.json", "best.safetensors"])
def test_a_damaged_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    identity = {"store": "", "select": None, "target": "age<1", "init": "random", "fold": None}
    identity |= {"model": "cnn", "model.kind": "cnn"}
    made = {"store": {"window": "first", "short": "quarantine"}, "cohort": None}
    save_file({"a": torch.zeros(1 << 20)}, run / "best.safetensors")
    result = {"kind": "finetune", "identity": identity, "preprocessing": made}
    result[RUN_FILES] = entries(run, ["best.safetensors"])
    (run / "config.toml").write_text("[model]\nkind = 'cnn'\n")
    (run / "result.json").write_bytes(sealed(result))
    if name != "best.safetensors":  # that one holds another model's weights already
        (run / name).write_bytes(b"\xff[")
    line = refused(capsys, "predict", run, tmp_path)
    assert name in line
    assert "restore" in line


def test_what_this_machine_cannot_run(tmp_path: Path, store: Path) -> None:
    command = [
        *(sys.executable, "-m", "ecgfast", "pretrain", str(store), "--out", str(tmp_path / "run")),
        *("--preset", "demo", "--device", "cpu"),
        *("--set", "kernels=triton", "--set", "train.batch_size=2", "--set", "train.max_steps=1"),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: kernels=triton needs")


def test_stores_that_nothing_can_lie_beside(
    capsys: pytest.CaptureFixture[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "a folder with a name, got '/'" in refused(capsys, "convert", store, "--out", "/")
    monkeypatch.chdir(store)
    assert "labels nowhere.csv: no such file" in refused(capsys, "label", ".", "nowhere.csv")
    assert store.with_name("store.key").exists()
    assert sorted(path.name for path in store.parent.glob("*.lock")) == []


def test_labels_are_read_before_anything_is_converted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, store: Path
) -> None:
    out = tmp_path / "out"
    line = refused(capsys, "convert", store.with_name("cohort"), "--out", out, "--labels", tmp_path)
    assert "labels" in line
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_store_is_no_source(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "begun" / "signals.zarr").mkdir(parents=True)
    line = refused(capsys, "convert", tmp_path / "begun", "--out", tmp_path / "out")
    assert "unfinished store" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_full_disk_and_a_reader_that_goes(store: Path) -> None:
    command = [sys.executable, "-m", "ecgfast", "info", str(store)]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 2
    assert result.stderr.startswith("error: disk full")
    assert len(result.stderr.splitlines()) == 1


def test_names_that_the_locale_cannot_show(tmp_path: Path, store: Path) -> None:
    link = tmp_path / "Süd"
    link.symlink_to(store)
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(
        [sys.executable, "-m", "ecgfast", "info", str(link)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert r"S\xfcd" in result.stdout


def test_an_empty_argument_is_not_the_current_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a shell makes of a variable that is not set."""
    monkeypatch.chdir(tmp_path)
    for command in (
        ("convert", store.with_name("cohort"), "--out", ""),
        ("convert", "", "--out", tmp_path / "out"),
        ("pretrain", store, "--out=", "--preset", "demo"),
        ("predict", "run", ""),
    ):
        assert "is empty" in refused(capsys, *command)
    assert list(tmp_path.iterdir()) == []


def test_a_current_folder_that_was_removed(tmp_path: Path, store: Path) -> None:
    command = f"mkdir gone; cd gone; rmdir ../gone; exec {sys.executable} -m ecgfast convert "
    result = subprocess.run(
        command + f"{store.with_name('cohort')} --out out", shell=True, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr == (
        "error: the current folder does not exist any more; cd to one that does\n"
    )


@pytest.mark.parametrize("command", ["convert", "pretrain"])
def test_an_output_behind_a_broken_link(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, store: Path, command: str
) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    source = store.with_name("cohort") if command == "convert" else store
    options = ["--workers", 1] if command == "convert" else ["--preset", "demo"]
    line = refused(capsys, command, source, "--out", tmp_path / "link", *options)
    assert line == (
        f"error: {tmp_path / 'link'} is a link to nowhere, which does not exist; make that folder "
        "or remove the link"
    )


def test_names_that_are_no_text(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    link = Path(os.fsdecode(os.fsencode(store) + b"\xff"))
    link.symlink_to(store)
    try:
        assert main(["info", str(link)]) == 0
        assert r"store\udcff" in capsys.readouterr().out
    finally:
        link.unlink()


def test_ctrl_c_while_the_commands_are_imported(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    result = subprocess.run(
        [sys.executable, "-m", "ecgfast", "info", "store"], capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


def test_ctrl_c_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cohort, "describe", interrupted)
    assert main(["info", str(store)]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert "the same command" in line


def test_a_failure_that_nobody_expected_is_one_line_and_exit_1() -> None:
    impossible = "n" * 300  # no file system takes a name of this length
    command = [sys.executable, "-m", "ecgfast", "synth", impossible, "--records", "9"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "--debug" in result.stderr
    result = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
