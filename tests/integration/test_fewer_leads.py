"""Runs on some leads, and runs on all of them that are asked about files with fewer.

The reference is always the model of all leads that is told to keep the patches of some.
"""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from recordings import ecg_like, write_wfdb
from torch import Tensor

import ecgfast
from ecgfast.cli import main
from ecgfast.config import Config, load_config
from ecgfast.convert.preprocess import read_windows
from ecgfast.data.loader import build_loader
from ecgfast.errors import ConfigError, ResumeError, ShapeError
from ecgfast.evaluate.reconstructions import reconstruct
from ecgfast.ingest.inventory import discover
from ecgfast.model.vit import Encoder
from ecgfast.predictor import EcgModel
from ecgfast.records import LEADS
from ecgfast.runs.loading import load_run
from ecgfast.store.reader import open_store
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain

TARGET = "ejection_fraction<40"
SIGNAL = ecg_like(1, seed=5, largest=500)[0]


def on(config: Config, *leads: str, more: tuple[str, ...] = ()) -> Config:
    return load_config(config, [f"data.leads={list(leads)}", *more])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def probability(run: Path, file: Path, leads: tuple[str, ...]) -> float:
    """Of a run and a file of all leads: patches of the others are left out by number."""
    model = ecgfast.load_model(run)
    (item,) = discover([file])
    found = read_windows(item, window="first", short="quarantine")
    patches = model.prepare(found.samples, found.windows).float()
    return of_leads(model, patches, leads)[0]


def of_leads(model: EcgModel, patches: Tensor, leads: tuple[str, ...]) -> list[float]:
    ids = torch.tensor([[LEADS.index(lead) * 20 + n for lead in leads for n in range(20)]])
    encoder = model.model.encoder
    assert isinstance(encoder, Encoder)
    with torch.no_grad():
        tokens = encoder.encode_kept(patches, ids.repeat(len(patches), 1))
        logits = model.model.head(tokens[:, 0], None).squeeze(-1)
    probabilities: list[float] = torch.sigmoid(logits.double()).tolist()
    return probabilities


@pytest.fixture(scope="module")
def two(store: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining on two leads; the setting names them in another order than records do."""
    out = tmp_path_factory.mktemp("two")
    return pretrain(store, out, preset=on(config, "II", "I"), device="cpu")


@pytest.fixture(scope="module")
def tuned_on_two(
    store: Path, config: Config, two: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("tuned-on-two")
    return finetune(store, out, init=str(two), target=TARGET, device="cpu")


def test_a_file_that_lacks_leads_is_refused_until_that_is_allowed(
    tuned: Path, tmp_path: Path
) -> None:
    write_wfdb(tmp_path / "in/whole", SIGNAL)
    write_wfdb(tmp_path / "in/three", SIGNAL[[1, 0, 6]], leads=["II", "I", "V1"])
    write_wfdb(tmp_path / "in/other", SIGNAL[:2], leads=["Pleth", "RESP"])
    command = ["predict", str(tuned), str(tmp_path / "in"), "--out", str(tmp_path / "out.csv")]
    assert main(command) == 0
    lines = {Path(line["file"]).stem: line for line in rows_of(tmp_path / "out.csv")}
    assert "leads" not in lines["whole"]
    assert not lines["three"]["probability"]
    assert "no lead V2, V3, V4, V5, V6, got II, I, V1" in lines["three"]["note"]
    assert main([*command, "--allow-missing-leads"]) == 0
    allowed = {Path(line["file"]).stem: line for line in rows_of(tmp_path / "out.csv")}
    assert allowed["whole"].pop("leads") == " ".join(LEADS)
    assert allowed["whole"] == lines["whole"]
    three = allowed["three"]
    # III, aVR, aVL and aVF follow from I and II, as everywhere
    assert three["leads"] == "I II III aVR aVL aVF V1"
    assert three["note"] == "leads_derived unchecked"
    expected = probability(tuned, tmp_path / "in/whole.hea", tuple(three["leads"].split()))
    assert float(three["probability"]) == pytest.approx(expected, abs=2e-6)
    assert three["probability"] != lines["whole"]["probability"]
    assert (allowed["other"]["probability"], allowed["other"]["leads"]) == ("", "")
    assert "no lead at all, got Pleth, RESP" in allowed["other"]["note"]


def test_chosen_leads_are_the_same_of_every_file(tuned: Path, tmp_path: Path) -> None:
    off = SIGNAL.copy()
    off[11] = -32768  # an electrode that was never connected
    write_wfdb(tmp_path / "in/off", off)
    write_wfdb(tmp_path / "in/pair", SIGNAL[:2], leads=["I", "II"])
    write_wfdb(tmp_path / "in/whole", SIGNAL)
    write_wfdb(tmp_path / "in/without", SIGNAL[[0]], leads=["I"])
    command = ["predict", str(tuned), str(tmp_path / "in"), "--out", str(tmp_path / "out.csv")]
    assert main([*command, "--leads", "II,I"]) == 0
    lines = {Path(line["file"]).stem: line for line in rows_of(tmp_path / "out.csv")}
    shares = {name: line["probability"] for name, line in lines.items()}
    assert shares["off"] == shares["pair"] == shares["whole"]
    assert float(shares["pair"]) == pytest.approx(
        probability(tuned, tmp_path / "in/whole.hea", ("I", "II")), abs=2e-6
    )
    assert {line["leads"] for name, line in lines.items() if name != "without"} == {"I II"}
    assert "no lead II, got I; those asked for are needed" in lines["without"]["note"]
    assert main([*command, "--leads", "II,I", "--allow-missing-leads"]) == 0
    lines = {Path(line["file"]).stem: line for line in rows_of(tmp_path / "out.csv")}
    assert [lines[name]["leads"] for name in ("without", "pair")] == ["I", "I II"]


@pytest.mark.parametrize(
    ("leads", "message"),
    [("I,X", "leads must be one or more of I, II, .*, each once, got I, X"), ("I,I", "got I, I")],
)
def test_wrong_leads_are_named(tuned: Path, leads: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ecgfast.load_model(tuned, leads=leads.split(","))


def test_a_run_on_two_leads_reads_no_others(
    tuned_on_two: Path, store: Path, tmp_path: Path
) -> None:
    write_wfdb(tmp_path / "in/pair", SIGNAL[:2], leads=["I", "II"])
    other = SIGNAL.copy()
    other[6:] = other[6:][::-1]
    write_wfdb(tmp_path / "in/whole", other)
    assert main(["predict", str(tuned_on_two), str(tmp_path / "in"), "--out",
                 str(tmp_path / "out.csv")]) == 0  # fmt: skip
    lines = rows_of(tmp_path / "out.csv")
    assert [line["leads"] for line in lines] == ["I II"] * 2
    assert lines[0]["probability"] == lines[1]["probability"] != ""
    model = ecgfast.load_model(tuned_on_two)
    assert model.leads == ("I", "II")
    (of_pair,), (of_all,) = model.predict(SIGNAL[:2] * 5.0), model.predict(other * 5.0)
    assert of_pair == of_all == pytest.approx(float(lines[0]["probability"]), abs=1e-4)
    with pytest.raises(ShapeError, match=r"got shape \(3, 5000\), allowed \(12, T\)"):
        model.predict(SIGNAL[:3] * 5.0)
    with pytest.raises(ConfigError, match="among the leads of the run, I, II, got V1; leave"):
        model.on_leads(["I", "V1"])
    opened = open_store(store)
    loaded = load_run(tuned_on_two, opened)
    assert loaded.meta.preprocessing.normalisation.leads == ("I", "II")
    shares = loaded.probabilities(opened, np.arange(4))
    signal = (opened.read(np.arange(4)) - opened.offset_adc[:4, :, None]) * opened.scale_uv[
        :4, :, None
    ]
    for share, signal_uv in zip(shares, signal, strict=True):
        assert share == pytest.approx(model.predict(signal_uv)[0], abs=1e-5)
    assert ecgfast.embed(tuned_on_two, store, pool="lead_mean_max").values.shape == (64, 2 * 2 * 16)
    card = (tuned_on_two / "MODEL_CARD.md").read_text()
    assert "- 2 leads (I, II), 5000 timesteps at 500 Hz" in card
    assert "for ten seconds of a 2-lead ECG at rest" in card


def test_reports_of_a_run_on_two_leads(two: Path, tuned_on_two: Path, tuned: Path, store: Path,
                                       tmp_path: Path) -> None:  # fmt: skip
    runs = [str(run) for run in (tuned, tuned_on_two, two)]
    assert main(["evaluate", *runs, str(store), "--out", str(tmp_path / "report")]) == 0
    opened = open_store(store)
    name = opened.records["record_id"][0].as_py()
    png = reconstruct(two, store, record_id=name, out=tmp_path / "ecg.png", leads=("II", "V5"))
    assert png.stat().st_size > 1000


def test_the_leads_belong_to_the_run(
    two: Path, tuned_on_two: Path, pretrained: Path, store: Path, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ResumeError, match=r"data\.leads \(now \('I',\), in .* \['I', 'II'\]"):
        pretrain(store, two, preset=on(config, "I"), resume=True, device="cpu")
    with pytest.raises(ResumeError, match=r"data\.leads \(now None, in .* \['I', 'II'\]"):
        pretrain(store, two, preset=config, resume=True, device="cpu")
    assert pretrain(store, two, preset=on(config, "I", "II"), resume=True, device="cpu") == two
    common = {"target": TARGET, "device": "cpu"}
    with pytest.raises(ConfigError, match=r"know the leads I, II, got III, aVR, .* besides; set"):
        finetune(store, tmp_path / "more", init=str(two), preset=config, **common)
    fewer = on(config, "V1", more=("finetune.epochs=1",))
    run = finetune(store, tmp_path / "fewer", init=str(pretrained), preset=fewer, **common)
    assert ecgfast.load_model(run).leads == ("V1",)


@pytest.mark.parametrize("settings", [["model.kind=cnn"], ["model.pool=lead_mean_max"]])
def test_a_model_that_knows_leads_by_their_place_needs_all_of_its_own(
    store: Path, config: Config, settings: list[str], tmp_path: Path
) -> None:
    chosen = on(config, "I", "II", "V1", more=("finetune.epochs=1", *settings))
    run = finetune(store, tmp_path / "run", init="random", preset=chosen, target=TARGET,
                   device="cpu")  # fmt: skip
    write_wfdb(tmp_path / "three", SIGNAL[[0, 1, 6]], leads=["I", "II", "V1"])
    (line,) = ecgfast.predict(run, [tmp_path / "three.hea"])
    assert line.probability is not None
    assert line.leads == ("I", "II", "V1")
    what = settings[0].replace(".", r"\.")
    with pytest.raises(ConfigError, match=rf"of {what} needs every .* on, I, II, V1, got fewer"):
        ecgfast.predict(run, [tmp_path / "three.hea"], leads=["I"])
    with pytest.raises(ConfigError, match=rf"of {what} needs every lead that it was trained on"):
        ecgfast.predict(run, [tmp_path / "three.hea"], allow_missing=True)


def test_a_report_shows_what_fewer_leads_cost(tuned: Path, store: Path, tmp_path: Path) -> None:
    command = ["evaluate", str(tuned), str(store), "--out", str(tmp_path)]
    assert main([*command, "--leads", "V1,II", "--leads", "I"]) == 0
    by_run: dict[str, dict[str, float]] = {}
    for line in pq.read_table(tmp_path / "scores.parquet").to_pylist():
        by_run.setdefault(line["run"], {})[line["record_id"]] = line["probability"]
    whole, *fewer = by_run
    assert fewer == [f"{whole}, leads II V1", f"{whole}, leads I"]
    opened, model = open_store(store), ecgfast.load_model(tuned)
    names = opened.records["record_id"].to_pylist()
    rows = np.array([row for row, name in enumerate(names) if name in by_run[whole]])
    assert len(rows) > 8
    (batch,) = build_loader(opened, batch_size=len(rows), select=rows, shuffle=False)
    for run, leads in zip(fewer, (("II", "V1"), ("I",)), strict=True):
        assert by_run[run].keys() == by_run[whole].keys()
        found = [by_run[run][names[row]] for row in rows]
        expected = of_leads(model, batch.patches.float(), leads)
        np.testing.assert_allclose(found, expected, atol=2e-5)
    with pytest.raises(ConfigError, match=r"--leads must be one or more of .* got I, X"):
        ecgfast.evaluate([tuned], store, tmp_path / "x", leads=[["I", "X"]])
