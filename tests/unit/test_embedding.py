"""Features of encoders: those of the model itself, in memory and in files."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from training_runs import make_store, preset

import ecgfast
from ecgfast.cli import main
from ecgfast.config import Config, load_config
from ecgfast.data.loader import build_loader
from ecgfast.embedding import embed, write_features
from ecgfast.errors import ConfigError, FormatError
from ecgfast.model.block import Block
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.runs.features import blocks, read
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
    for name in ("a.parquet", "a.npy", "a.zarr"):
        done = write_features(tmp_path / "new" / name, run, store, select="site=1", device="cpu")
        assert done[:2] == found.values.shape
    table = pq.read_table(tmp_path / "new/a.parquet")
    assert table["record_id"].to_pylist() == found.record_id
    values = np.array(table["features"].to_pylist(), np.float32)
    assert values.tobytes() == found.values.tobytes()
    rows = table["row"].to_numpy()
    ids = open_store(store).records["record_id"].take(rows).to_pylist()
    assert ids == found.record_id
    assert table.schema.metadata[b"pool"] == b"mean"
    assert np.load(tmp_path / "new/a.npy").tobytes() == found.values.tobytes()
    lines = (tmp_path / "new/a.npy.records.csv").read_text().split()
    assert lines == ["record_id,row", *map("{},{}".format, found.record_id, rows)]
    group = zarr.open_group(tmp_path / "new/a.zarr", mode="r")
    assert group["features"].metadata.zarr_format == 3
    assert group["features"][:].tobytes() == found.values.tobytes()
    assert group["record_id"][:].tolist() == found.record_id
    assert group["row"][:].tolist() == rows.tolist()
    assert dict(group.attrs) == found.facts
    assert len(list((tmp_path / "new").iterdir())) == 4
    for name in ("a.parquet", "a.zarr"):
        back = read(tmp_path / "new" / name)
        assert back.values.tobytes() == found.values.tobytes()
        assert back.names.equals(found.names)
        assert back.facts == found.facts
    with pytest.raises(FormatError, match=r"b\.zarr is no \.zarr or \.parquet of ecgfast embed"):
        read(tmp_path / "new/b.zarr")


def test_blocks_are_cut_anew() -> None:
    parts = [np.arange(a, b) for a, b in ((0, 3), (3, 4), (4, 12), (12, 13))]
    assert [block.tolist() for block in blocks(parts, 5)] == [
        [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12],
    ]  # fmt: skip
    assert [len(block) for block in blocks(parts[:1], 3)] == [3]


def test_raw_files_are_read_as_predict_does(store: Path, run: Path, tmp_path: Path) -> None:
    """Their features are those of the store's records; a bad file never stops the rest."""
    files = tmp_path / "files"
    files.mkdir()
    for number in range(66):
        for name in (f"r{number:03d}.npy", f"r{number:03d}.json"):
            (files / name).write_bytes((store.with_name("source") / name).read_bytes())
    (files / "r001.npy").write_bytes(b"no array")
    out = tmp_path / "new/a.zarr"
    assert main(["embed", str(run), str(files), "--out", str(out), "--device", "cpu"]) == 0
    group = zarr.open_group(out, mode="r")
    expected = embed(run, store, device="cpu")
    with store.with_name("store.sources.csv").open() as file:
        keys = {row["record_id"]: row["record"] for row in csv.DictReader(file)}
    of_record = {keys[i]: v for i, v in zip(expected.record_id, expected.values, strict=True)}
    names = group["record_id"][:].tolist()
    assert names == [f"r{number:03d}" for number in range(66) if number != 1]
    for name, values in zip(names, group["features"][:], strict=True):
        np.testing.assert_allclose(values, of_record[name], atol=1e-5)
    assert set(group["start_s"][:]) == {0.0}
    assert group["file"][:][0] == str(files / "r000.npy")
    (refused,) = csv.DictReader((tmp_path / "new/a.zarr.refused.csv").read_text().splitlines())
    assert refused["file"] == str(files / "r001.npy")
    found = embed(run, [files], device="cpu")
    assert found.values.tobytes() == group["features"][:].tobytes()
    assert [path for path, _ in found.refused] == [refused["file"]]
    bad = ["embed", str(run), str(files / "r001.npy"), "--out", str(tmp_path / "b.npy")]
    assert main(bad) == 1
    assert sorted(each.name for each in tmp_path.glob("b.*")) == ["b.npy.refused.csv"]
    with pytest.raises(ConfigError, match="--select is for records of a store, got 'site=1'"):
        embed(run, files, select="site=1")


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
    with pytest.raises(
        ConfigError, match=r"--out must end with .zarr, .parquet, .npy, got '.*a.csv'"
    ):
        write_features(tmp_path / "a.csv", run, store)
