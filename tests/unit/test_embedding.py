"""Features of encoders: those of the model itself, in memory and in files."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from training_runs import make_store, preset

import ecgfast
from ecgfast.config import Config, load_config
from ecgfast.data.loader import build_loader
from ecgfast.embedding import embed, write_features
from ecgfast.errors import ConfigError
from ecgfast.model.block import Block
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.runs.loading import load_model
from ecgfast.store import open_store
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain
from ecgfast.vocabulary import Pool


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("cohort"), num_records=70)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    few = ["train.max_steps=2", "finetune.epochs=1", "finetune.learning_rates=[1e-3]"]
    return load_config(str(preset(tmp_path_factory.mktemp("preset"))), few)


@pytest.fixture(scope="module")
def run(store: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(store, tmp_path_factory.mktemp("run"), preset=config, device="cpu")


def patches_of(store: Path) -> torch.Tensor:
    opened = open_store(store)
    loader = build_loader(opened, batch_size=len(opened), shuffle=False, drop_last=False)
    (batch,) = loader
    return batch.patches.float()


def test_features_are_the_encoders(store: Path, run: Path) -> None:
    model, *_ = load_model(run)
    assert isinstance(model, MaskedAutoencoder)
    with torch.no_grad():
        tokens = model.encode(patches_of(store))
    by_lead = tokens[:, 1:].reshape(70, 12, 20, -1)
    both = torch.stack([by_lead.mean(2), by_lead.amax(2)], 2).flatten(1)
    expected: dict[Pool, torch.Tensor] = {
        "cls": tokens[:, 0],
        "mean": tokens[:, 1:].mean(1),
        "lead_mean_max": both,
    }
    for pool, values in expected.items():
        found = embed(run, store, pool=pool, device="cpu")
        np.testing.assert_allclose(found.values, values, atol=1e-6)
        assert found.values.dtype == np.float32
    assert found.record_id == open_store(store).records["record_id"].to_pylist()
    assert (found.facts["pool"], found.facts["layer"]) == ("lead_mean_max", "last")
    assert ecgfast.embed is embed


def test_a_layer_is_the_output_of_its_block(store: Path, run: Path) -> None:
    model, *_ = load_model(run)
    assert isinstance(model, MaskedAutoencoder)
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        assert isinstance(block, Block)
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        model.encode(patches_of(store))
    for layer, tokens in enumerate(seen, 1):
        found = embed(run, store, pool="cls", layer=layer, device="cpu")
        np.testing.assert_allclose(found.values, tokens[:, 0], atol=1e-6)


def test_files_hold_what_memory_does(store: Path, run: Path, tmp_path: Path) -> None:
    found = embed(run, store, select="site=1", device="cpu")
    assert 0 < len(found.record_id) < 70
    for name in ("a.parquet", "a.npy"):
        shape = write_features(tmp_path / "new" / name, run, store, select="site=1", device="cpu")
        assert shape == found.values.shape
    table = pq.read_table(tmp_path / "new/a.parquet")
    assert table["record_id"].to_pylist() == found.record_id
    values = np.array(table["features"].to_pylist(), np.float32)
    assert values.tobytes() == found.values.tobytes()
    rows = table["row"].to_numpy()
    ids = open_store(store).records["record_id"].take(rows).to_pylist()
    assert ids == found.record_id
    assert table.schema.metadata[b"pool"] == b"mean"
    assert np.load(tmp_path / "new/a.npy").tobytes() == found.values.tobytes()
    names = (tmp_path / "new/a.npy.records.csv").read_text().split()
    assert names == ["record_id", *found.record_id]
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_a_classifier_gives_what_its_head_reads(
    store: Path, config: Config, run: Path, tmp_path: Path
) -> None:
    target = "ejection_fraction<40"
    tuned = finetune(
        store, tmp_path / "vit", preset=config, init=str(run), target=target, device="cpu"
    )
    model, *_ = load_model(tuned)
    with torch.no_grad():
        expected = model.features(patches_of(store))
    found = embed(tuned, store, pool="cls", device="cpu")
    np.testing.assert_allclose(found.values, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layer": 0}, r"--layer must be in \[1, 2\], got 0"),
        ({"layer": 3}, r"--layer must be in \[1, 2\], got 3"),
        ({"select": "site=9"}, "select 'site=9' has no record; widen it"),
    ],
)
def test_mistakes_are_one_error(
    store: Path, run: Path, tmp_path: Path, options: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        write_features(tmp_path / "a.npy", run, store, device="cpu", **options)  # type: ignore[arg-type]  # meant
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_user_stay(store: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_text("precious")
    with pytest.raises(ConfigError, match=r"a.npy is there already; move it away"):
        write_features(tmp_path / "a.npy", run, store)
    assert (tmp_path / "a.npy").read_text() == "precious"
    with pytest.raises(ConfigError, match=r"--out must end with .parquet or .npy, got '.*a.csv'"):
        write_features(tmp_path / "a.csv", run, store)
