"""Linear probes: scikit-learn's own on the same features, and a run like any other."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import finish, loss_trace, start, weights

import ecgfast
import ecgfast.embedding
from ecgfast.cli import main
from ecgfast.config import load_config
from ecgfast.data.loader import build_loader
from ecgfast.data.normalise import Normalisation
from ecgfast.errors import ConfigError
from ecgfast.evaluate.report import evaluate
from ecgfast.evaluate.saliency import occlusion
from ecgfast.log import read_metrics
from ecgfast.model.build import build_model
from ecgfast.model.classifier import Classifier
from ecgfast.predict import predict
from ecgfast.runs.export import export
from ecgfast.runs.loading import load_run
from ecgfast.store.reader import open_store
from ecgfast.train.distributed import Ranks
from ecgfast.train.pretrain import pretrain
from ecgfast.train.probe import probe
from ecgfast.train.validation import Probe

TARGET = "ejection_fraction<40"
STRENGTHS = (1e-3, 1e-1, 1.0)
SETTINGS = {"finetune.probe_c": list(STRENGTHS)}


@pytest.fixture(scope="module")
def probed(store: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probed") / "run"
    targets = [TARGET, "site=1"]
    return probe(
        pretrained, store, out, target=targets, pool="mean", settings=SETTINGS, device="cpu"
    )


def columns(store: Path) -> tuple[NDArray[np.str_], NDArray[np.float64], NDArray[np.bool_]]:
    records = open_store(store).records
    split, fraction, site = (records[n].to_pylist() for n in ("split", "ejection_fraction", "site"))
    return np.array(split), np.array(fraction, dtype=float), np.array(site) == "1"


def test_it_is_scikit_learns_regression_on_the_features_of_embed(
    store: Path, pretrained: Path, probed: Path
) -> None:
    features = ecgfast.embed(pretrained, store, pool="mean", device="cpu").values.astype(float)
    split, fraction, site = columns(store)
    opened = open_store(store)
    found = load_run(probed, opened).probabilities(opened, np.arange(len(opened)))
    result = json.loads((probed / "result.json").read_text())
    truths = (np.where(np.isnan(fraction), np.nan, fraction < 40), site.astype(float))
    areas = []
    for number, truth in enumerate(truths):
        train, valid = (np.flatnonzero((split == s) & ~np.isnan(truth)) for s in ("train", "valid"))
        fits = [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-8, max_iter=10_000)).fit(
                features[train], truth[train]
            )
            for c in STRENGTHS
        ]
        losses = [log_loss(truth[valid], fit.predict_proba(features[valid])) for fit in fits]
        best = int(np.argmin(losses))
        expected = fits[best].predict_proba(features)[:, 1]
        np.testing.assert_allclose(found[:, number], expected, atol=1e-4)
        assert np.ptp(expected) > 0.01
        assert result["c"][number] == STRENGTHS[best]
        tried = [row["val_loss"][number] for row in result["tried"]]
        np.testing.assert_allclose(tried, losses, rtol=1e-4)
        areas.append(roc_auc_score(truth[valid], expected[valid]))
    assert result["val_auroc"] == pytest.approx(np.mean(areas))
    assert set(result["outputs"]) == {TARGET, "site=1"}


def test_it_stands_beside_fine_tuned_runs_and_is_used_as_they_are(
    store: Path, pretrained: Path, tuned: Path, tmp_path: Path
) -> None:
    run = ecgfast.probe(pretrained, store, tmp_path / "run", settings=SETTINGS, device="cpu")
    metrics = json.loads(
        evaluate([tuned, run], store, tmp_path / "report", device="cpu")
        .with_name("metrics.json")
        .read_text()
    )
    names = ["ViT, pretrained", "ViT, pretrained, probe"]
    assert all(list(cohort)[:2] == names for cohort in metrics["cohorts"].values())
    files = [store.with_name("source") / f"r00{number}.npy" for number in range(3)]
    shares = [line.probability for line in predict(run, files)]
    shared = export(run, tmp_path / "shared")
    assert shares == [line.probability for line in predict(shared, files)]
    assert len(set(shares)) == 3
    card = (run / "MODEL_CARD.md").read_text()
    assert "A linear probe: logistic regression" in card
    assert "which chose C and thresholds" in card
    assert "Learning rate" not in card
    assert "ViT, pretrained, probe" in (shared / "README.md").read_text()
    weights = [load_run(each, open_store(store)).model().state_dict() for each in (run, tuned)]
    assert {n for n in weights[0] if n.startswith("head")} == {"head.0.weight", "head.0.bias"}
    moved = [n for n in weights[1] if n.startswith("encoder.blocks")]
    first = ecgfast.load_model(pretrained).model.state_dict()
    assert all(weights[0][n].equal(first[n.removeprefix("encoder.")]) for n in moved)


def test_what_its_answer_rests_on_is_that_of_its_linear_layer(
    store: Path, pretrained: Path, tmp_path: Path
) -> None:
    run = probe(pretrained, store, tmp_path / "run", pool="mean", settings=SETTINGS, device="cpu")
    html = evaluate([run], store, tmp_path / "report", device="cpu").read_text()
    assert "What the answer rests on: ViT, pretrained, probe" in html
    model, weights = load_run(run, open_store(store)).model(), load_file(run / "best.safetensors")
    assert isinstance(model, Classifier)
    (batch,) = build_loader(open_store(store), batch_size=1, select=np.array([0]), shuffle=False)
    patches = batch.patches.float()
    flat = patches.clone()
    flat[0, 25, :250] = torch.from_numpy(np.linspace(*patches[0, 25, [0, 249]].numpy(), 250))
    with torch.no_grad():
        change = model.features(patches) - model.features(flat)
    expected = (change @ weights["head.0.weight"][0]).item()
    assert abs(expected) > 1e-4
    assert occlusion(model, patches[0], [25]) == pytest.approx([expected], abs=1e-5)


def test_the_command_does_the_same(store: Path, pretrained: Path, tmp_path: Path) -> None:
    logger = logging.getLogger("ecgfast")
    kept = logger.handlers[:], logger.propagate, logger.level
    few = ["--set", "finetune.label_fraction=0.5", "--set", "train.seed=3", "--pool", "mean"]
    words = ["probe", str(pretrained), str(store), "--out", str(tmp_path / "cli"), *few]
    try:
        assert main([*words, "--target", TARGET, "--device", "cpu"]) == 0
    finally:
        logger.handlers[:], logger.propagate = kept[:2]
        logger.setLevel(kept[2])
    settings = {"finetune.label_fraction": 0.5, "train.seed": 3}
    out = probe(
        pretrained, store, tmp_path / "api", pool="mean", settings=settings, device="cpu"
    )  # fmt: skip
    for name in ("best.safetensors", "register.parquet"):
        assert (tmp_path / "cli" / name).read_bytes() == (out / name).read_bytes()
    counts = json.loads((out / "result.json").read_text())["counts"]
    split, fraction, _ = columns(store)
    everybody = int(((split == "train") & ~np.isnan(fraction)).sum())
    assert 0 < counts["train_cases"] + counts["train_controls"] < 0.7 * everybody


def test_what_it_refuses(
    store: Path, pretrained: Path, tuned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(text: str, run: str | Path = pretrained, **options: object) -> None:
        out = {"out": tmp_path / "run", "device": "cpu", **options}
        with pytest.raises(ConfigError, match=text):
            probe(run, store, **out)  # type: ignore[arg-type]  # options of any kind

    refused(r"must be a new or empty folder; name another one", out=tuned)
    refused("a probe is of a ViT, got model.kind=cnn", "random", preset="cnn")
    refused(f"^RUN {tuned} must be a pretraining run, got a finetune run", tuned)
    refused(r"^RUN must be a run, a .safetensors or .pth file, .* got 'nowhere'", "nowhere")
    refused("split 'train' must hold cases and controls", target="ejection_fraction<10")
    refused("label_fraction=0.01 leaves no", settings={"finetune.label_fraction": 0.01})
    refused("probe_c must be one or more numbers above 0", settings={"finetune.probe_c": []})
    assert list((tmp_path / "run").iterdir()) == []
    with caplog.at_level("WARNING", logger="ecgfast"):
        probe(
            pretrained, store, tmp_path / "run", device="cpu",
            settings=["finetune.epochs=3", "finetune.probe_c=[0.1]"],
        )  # fmt: skip
    assert "--set: a probe ignores finetune.epochs" in caplog.text


def test_features_in_a_file_give_the_same_probe(
    store: Path, pretrained: Path, tmp_path: Path
) -> None:
    run, other = pretrained, tmp_path / "cls.parquet"
    for name in ("mean.zarr", "mean.parquet"):
        ecgfast.embedding.write_features(tmp_path / name, run, store, pool="mean", device="cpu")
    ecgfast.embedding.write_features(other, run, store, pool="cls", layer=1, device="cpu")
    own = probe(run, store, tmp_path / "own", pool="mean", settings=SETTINGS, device="cpu")
    expected = load_file(own / "best.safetensors")
    for name in ("mean.zarr", "mean.parquet"):
        out = tmp_path / "given" / name
        given = tmp_path / name
        probe(run, store, out, features=given, settings=SETTINGS, device="cpu")  # the file's pool
        for key, tensor in load_file(out / "best.safetensors").items():
            np.testing.assert_allclose(tensor, expected[key], rtol=1e-3, atol=1e-5)
    some = tmp_path / "some.zarr"
    ecgfast.embedding.write_features(
        some, run, store, pool="mean", select="site=1", device="cpu"
    )  # fmt: skip
    for text, given, options in (
        (r"--features have layer '1', not 'last'; make them with ecgfast embed", other, {}),
        (r"--features have pool 'mean', not 'cls'", tmp_path / "mean.zarr", {"pool": "cls"}),
        (r"--features lack \d+ of \d+ labelled records; make them", some, {}),
    ):
        with pytest.raises(ConfigError, match=text):
            probe(
                run, store, tmp_path / "no", features=given, device="cpu",
                settings=SETTINGS, **options,  # type: ignore[arg-type]  # a pool
            )  # fmt: skip
    with pytest.raises(ConfigError, match=r"--features have weights '.*', not 'none'"):
        probe(
            "random", store, tmp_path / "no", features=tmp_path / "mean.zarr", device="cpu",
            preset=run / "config.toml",
        )  # fmt: skip


WATCHED = ("train.max_steps=6", f"train.probe={TARGET}", "train.probe_every=4")


@pytest.fixture(scope="module")
def watched(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("watched") / "run"
    return pretrain(store, run, preset=load_config(str(tiny), WATCHED), device="cpu")


def areas(run: Path) -> dict[float, float]:
    """AUROC of the probes by step."""
    return {row["step"]: row["probe_auroc"] for row in read_metrics(run) if "probe_auroc" in row}


def test_pretraining_is_watched_by_the_same_probe(
    watched: Path, store: Path, tmp_path: Path
) -> None:
    assert list(areas(watched)) == [4, 6]
    out = probe(watched, store, tmp_path / "probe", pool="mean", device="cpu")
    expected = json.loads((out / "result.json").read_text())["val_auroc"]
    assert areas(watched)[6] == pytest.approx(expected)
    events = EventAccumulator(str(watched / "tensorboard")).Reload().Scalars("probe_auroc")
    assert [(event.step, event.value) for event in events] == [
        (step, pytest.approx(area)) for step, area in areas(watched).items()
    ]


def test_a_probe_changes_no_bit_of_pretraining(
    watched: Path, store: Path, tiny: Path, tmp_path: Path
) -> None:
    config = load_config(str(tiny), WATCHED[:1])
    run = pretrain(store, tmp_path / "run", preset=config, device="cpu")
    assert loss_trace(run) == loss_trace(watched)
    assert weights(run) == weights(watched)
    rare = load_config(str(tiny), [*WATCHED, "train.log_every=3"])
    run = pretrain(store, tmp_path / "rare", preset=rare, device="cpu")
    assert [row["step"] for row in read_metrics(run)] == [3, 4, 6]
    assert weights(run) == weights(watched)


def test_a_watched_run_is_resumed(watched: Path, store: Path, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    before = load_config(str(tiny), [*WATCHED, "train.max_steps=3", "train.probe=site=1"])
    pretrain(store, run, preset=before, device="cpu")
    pretrain(store, run, preset=load_config(str(tiny), WATCHED), device="cpu", resume=True)
    assert {step: area for step, area in areas(run).items() if step > 3} == areas(watched)
    assert weights(run) == weights(watched)


def test_a_probe_of_pretraining_reads_no_test_patient(store: Path, tiny: Path) -> None:
    opened, config = open_store(store), load_config(str(tiny))
    made = Probe(
        build_model(config), TARGET, opened, config, Ranks(), None, batch_size=2,
        normalisation=Normalisation(mode="record_lead"),
    )  # fmt: skip
    split, fraction, _ = columns(store)
    known = ~np.isnan(fraction)
    expected = [np.flatnonzero(known & (split == name)) for name in ("train", "valid")]
    assert made.rows.tolist() == np.concatenate(expected).tolist()
    torn = opened.records.to_pylist()
    of_test = {row["patient_id"] for row in torn if row["split"] == "test"}
    assert of_test
    assert not of_test & {torn[row]["patient_id"] for row in made.rows}


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("ejection_fraction<10", "split 'train' must hold cases and controls"),
        ("lvef<40", "lvef"),
        ("ejection_fraction<", "ejection_fraction<"),
    ],
)
def test_a_target_that_the_store_cannot_give_ends_pretraining_before_its_first_step(
    store: Path, tiny: Path, tmp_path: Path, target: str, text: str
) -> None:
    config = load_config(str(tiny), {"train.max_steps": 2, "train.probe": target})
    with pytest.raises(ConfigError, match=text):
        pretrain(store, tmp_path / "run", preset=config, device="cpu")
    assert read_metrics(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp", "replicas"])
def test_ranks_watch_together(
    watched: Path, store: Path, tiny: Path, tmp_path: Path, parallel: str
) -> None:
    words = ["pretrain", str(store), "--out", str(tmp_path / "run"), "--preset", str(tiny)]
    settings = [*WATCHED, f"train.parallel={parallel}"]
    finish(
        start([*words, "--device", "cpu", *(w for s in settings for w in ("--set", s))], ranks=2)
    )
    assert areas(tmp_path / "run") == pytest.approx(areas(watched), abs=0.05)
