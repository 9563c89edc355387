"""Exported models: the same bits as the run's, nothing of a patient, from a folder or the hub."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from local_server import serving

import ecgfast
from ecgfast.cli import main
from ecgfast.config import load_config
from ecgfast.convert.preprocess import read_windows
from ecgfast.data.loader import build_loader
from ecgfast.embedding import embed
from ecgfast.errors import ConfigError, FormatError, ResumeError, ShapeError
from ecgfast.ingest.inventory import discover
from ecgfast.runs.digests import RUN_FILES, entries, export_safetensors, read_facts, sealed
from ecgfast.runs.export import export, located
from ecgfast.runs.inference import score_rows
from ecgfast.runs.loading import RESULT, WEIGHTS, load_model, load_run
from ecgfast.runs.register import read_register
from ecgfast.store import open_store
from ecgfast.train.pretrain import pretrain

FILES = {"model.safetensors", "config.json", "config.toml", "README.md"}


@pytest.fixture(scope="module")
def shared(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tuned, tmp_path_factory.mktemp("shared") / "model")


@pytest.fixture(scope="module")
def encoder(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(pretrained, tmp_path_factory.mktemp("encoder"))


def test_predictions_are_the_runs_bit_for_bit(tuned: Path, shared: Path, store: Path) -> None:
    assert {each.name for each in shared.iterdir()} == FILES
    opened = open_store(store)
    rows = np.arange(len(opened))
    of_run, of_export = load_model(tuned), load_model(shared)
    ours, theirs = (
        score_rows(
            model,
            opened,
            rows,
            meta.preprocessing.normalisation,
            meaning=meta.task.predictions,
            name="x",
        )
        for model, _, meta in (of_run, of_export)
    )
    assert np.array_equal(ours, theirs)
    assert len(np.unique(ours)) > 30  # a model that tells records apart
    assert of_export[1] == of_run[1]
    assert of_export[2].thresholds == of_run[2].thresholds


def test_an_autoencoder_keeps_encoder_and_decoder(pretrained: Path, encoder: Path) -> None:
    ours, theirs = (load_model(each)[0].state_dict() for each in (pretrained, encoder))
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("decoder_blocks") for name in theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    card = (encoder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ecgfast\n")
    assert "4 updates of 8 records without labels, of 52 records; 75 % of the patches" in card


def test_raw_signals_are_prepared_as_the_store_does(shared: Path, store: Path) -> None:
    model = ecgfast.load_model(shared)
    assert not model.training
    opened = open_store(store)
    (batch,) = build_loader(opened, batch_size=len(opened), shuffle=False, drop_last=False)
    sources = store.with_name("source")
    record = {
        line.split(",")[0]: line.split(",")[3]
        for line in store.with_name("store.sources.csv").read_text().splitlines()
    }
    for row in (0, 7):
        name = record[opened.records["record_id"][row].as_py()]
        signal_uv = np.load(sources / f"{name}.npy") * np.float32(4.88)
        patches = model.patches(signal_uv)
        assert patches.shape == (1, 240, 256)
        # microvolt are rounded to int16 once more, in steps of a 32767th of a lead's peak
        assert (patches[0] - batch.patches[row]).abs().max() < 2e-3
        (item,) = discover([sources / f"{name}.npy"])
        found = read_windows(item, window="first", short="quarantine")
        assert torch.equal(model.prepare(found.samples, found.windows)[0], batch.patches[row])
        with torch.no_grad():
            expected = torch.sigmoid(model(batch.patches[row : row + 1]).double()).numpy()
        assert model.predict(signal_uv) == pytest.approx(expected, abs=1e-4)


def test_signals_that_cannot_be_scored_are_refused(shared: Path, encoder: Path) -> None:
    model = ecgfast.load_model(shared)
    with pytest.raises(ShapeError, match=r"got shape \(3, 5000\), allowed \(12, T\)"):
        model.predict(np.zeros((3, 5000)))
    with pytest.raises(FormatError, match="too short: 4999 timesteps at 500 Hz"):
        model.predict(np.zeros((12, 4999)))
    with pytest.raises(ConfigError, match="a pretrain run gives no probabilities"):
        ecgfast.load_model(encoder).predict(np.zeros((12, 5000)))
    assert ecgfast.load_model(encoder)(torch.zeros(2, 240, 256)).shape == (2, 241, 16)


def test_nothing_of_a_patient_is_passed_on(
    tuned: Path, shared: Path, pretrained: Path, encoder: Path, store: Path
) -> None:
    opened = open_store(store)
    for run, folder in ((tuned, shared), (pretrained, encoder)):
        register = read_register(run)
        assert register is not None
        secrets = set(register.rows["patient"].to_pylist()) | {
            *opened.records["record_id"].to_pylist(),
            *opened.records["patient_id"].to_pylist(),
            *filter(None, register.rows["content"].to_pylist()),
            *(f"r{number:03d}" for number in range(64)),
            *(f"P{number}" for number in range(32)),
            *(register.key_fingerprint, str(store), str(run), store.parent.name, run.name),
            *(os.environ["HOME"], "register"),
        }
        assert len(secrets) > 100
        for path in folder.iterdir():
            content = path.read_bytes()
            head = content[: 8 + int.from_bytes(content[:8], "little")]
            text = head if path.suffix == ".safetensors" else content  # behind it: fp32 weights
            assert {each for each in secrets if each.encode() in text} == set(), path


def test_a_selection_may_name_patients_and_stays_out(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    config = load_config(str(tiny), ["train.max_steps=1"])
    out = pretrain(store, tmp_path / "run", preset=config, select="site in (1, 2)", device="cpu")
    folder = export(out, tmp_path / "out")
    for name in ("config.json", "README.md"):
        text = (folder / name).read_text()
        assert "site in" not in text
        assert "a selection that is not passed on" in text


def test_embed_predict_and_finetune_take_it(
    shared: Path, tuned: Path, encoder: Path, pretrained: Path, store: Path, tiny: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    ours, theirs = (embed(each, store).values for each in (shared, tuned))
    assert np.array_equal(ours, theirs)
    tables = []
    for run in (shared, tuned):
        out = tmp_path / f"{run.name}.csv"
        files = [str(path) for path in sorted(store.with_name("source").glob("r00*.npy"))]
        assert main(["predict", str(run), *files, "--out", str(out)]) == 0
        tables.append([line.rsplit(",", 1)[0] for line in out.read_text().splitlines()])
    assert tables[0] == tables[1]  # but for the note: whom the run learned from is not known
    losses = []
    for init in (encoder, pretrained):
        run = tmp_path / f"from_{init.name}"
        words = ["finetune", str(store), "--out", str(run), "--init", str(init)]
        assert main([*words, "--set", "finetune.epochs=1", "--device", "cpu"]) == 0
        result = json.loads((run / "result.json").read_text())
        losses.append(result["val_loss"])
        register = read_register(run)
        assert register is not None
        assert register.encoder == ("unknown" if init == encoder else "run")
    assert losses[0] == losses[1]


def test_what_is_tested_must_say_whom_it_learned_from(shared: Path, store: Path) -> None:
    with pytest.raises(ConfigError, match="is an exported model, which does not say whom it"):
        load_run(shared, open_store(store))


def test_damage_and_folders_of_others_are_refused(shared: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "config.toml"):
        folder = tmp_path / name
        folder.mkdir()
        for each in FILES:
            content = (shared / each).read_bytes()
            if each == name:
                content = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
            (folder / each).write_bytes(content)
        with pytest.raises(ResumeError, match=name):
            load_model(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ResumeError, match="describes no model that ecgfast exported"):
        load_model(tmp_path / "other")


def test_a_folder_with_something_in_it_is_not_written_to(
    tuned: Path, shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="must be a new or empty folder"):
        export(tuned, tmp_path)
    with pytest.raises(ConfigError, match="is an exported model already"):
        export(shared, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_weights_that_are_no_numbers_are_refused_by_every_command(
    tuned: Path, store: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    model, config, _ = load_model(tuned)
    state = model.state_dict()
    next(iter(state.values())).view(-1)[0] = torch.nan
    export_safetensors(state, run / WEIGHTS, config)
    facts = read_facts(run / RESULT)
    facts[RUN_FILES] |= entries(run, (WEIGHTS,))
    body = {name: value for name, value in facts.items() if name != "digest"}
    (run / RESULT).write_bytes(sealed(body))
    for command in (
        lambda: export(run, tmp_path / "shared"),
        lambda: ecgfast.load_model(run),
        lambda: ecgfast.evaluate([run], store, tmp_path / "report", device="cpu"),
        lambda: ecgfast.predict(run, [store.with_name("source")]),
        lambda: embed(run, store, device="cpu"),
    ):
        with pytest.raises(ConfigError, match="run has weights that are not finite"):
            command()
    assert not (tmp_path / "shared").exists()


def test_only_hf_names_leave_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # whoever asks for it fails
    assert located("owner/name") == Path("owner/name")
    assert located(Path("runs/vit")) == Path("runs/vit")
    with pytest.raises(ResumeError, match="owner/name is not the folder of a run"):
        ecgfast.load_model("owner/name")


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """A server with one repository, owner/name, as the hub answers for it."""
    commit = "0" * 40
    info = {
        **{"id": "owner/name", "modelId": "owner/name", "sha": commit, "private": False},
        "siblings": [{"rfilename": name} for name in (*sorted(FILES), "pytorch_model.bin")],
        "tags": [],
    }

    sizes = {each.name: each.stat().st_size for each in folder.iterdir()}
    tree = [
        {"type": "file", "path": name, "size": size, "oid": commit} for name, size in sizes.items()
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            if path.startswith("/api/models/owner/name/revision/"):
                return self._send(json.dumps(info).encode(), "application/json")
            if path.startswith("/api/models/owner/name/tree/"):
                return self._send(json.dumps(tree).encode(), "application/json")
            if path.startswith("/owner/name/resolve/") and name in FILES:
                return self._send((folder / name).read_bytes(), "application/octet-stream")
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()

        do_HEAD = do_GET  # noqa: N815 (the name that the library asks for)

        def _send(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    with serving(Handler) as address:
        yield address


@pytest.mark.slow  # five processes that import torch
def test_a_model_of_the_hub_is_fetched_once(shared: Path, tmp_path: Path) -> None:
    code = """
import sys, torch, ecgfast
model = ecgfast.load_model(sys.argv[1])
print(model(torch.ones(1, 240, 256)).item())
"""

    def ask(name: str, address: str) -> subprocess.CompletedProcess[str]:
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(
            [sys.executable, "-c", code, name],
            capture_output=True,
            text=True,
            env={**os.environ, **settings, "HF_HUB_DISABLE_TELEMETRY": "1"},
            check=False,
        )

    expected = ecgfast.load_model(shared)(torch.ones(1, 240, 256)).item()
    with hub(shared) as address:
        first = ask("hf://owner/name", address)
        assert first.stdout.strip() == repr(expected), first.stderr
        lost = ask("hf://owner/other", address)
        assert "hf://owner/other cannot be fetched" in lost.stderr
    assert ask("hf://owner/name@main", address).stdout.strip() == repr(expected)  # from the cache
    assert "the hub cannot be reached" in ask("hf://owner/third", address).stderr
    assert "is hf://OWNER/NAME" in ask("hf://owner", address).stderr
