"""Initial weights: where they come from, which fit, and what the files of a run say of them."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from toy import classifier_run, pretraining_run, toy_config

from ecgfast.config import load_config
from ecgfast.data.normalise import Normalisation
from ecgfast.errors import ConfigError, FormatError
from ecgfast.model.build import build_classifier
from ecgfast.model.classifier import Classifier
from ecgfast.runs.initial import (
    Initial,
    apply_initial,
    imagenet_file,
    initial_name,
    read_initial,
    require_same_preprocessing,
)
from ecgfast.runs.meta import Preprocessing
from ecgfast.runs.register import Register, write_register

TEXTS = ("patient", "content", "site", "role")
NOBODY = pa.table(
    {n: pa.nulls(0, pa.string()) for n in TEXTS}
    | {"is_case": pa.nulls(0, pa.bool_()), "probability": pa.nulls(0, pa.float64())}
)


@pytest.mark.parametrize(
    ("init", "name"),
    [
        ("random", "random"),
        ("imagenet-mae", "imagenet-mae"),
        ("/home/jane.doe/runs/pre", "pre"),
        ("runs/pre/", "pre"),
        ("weights.safetensors", "weights.safetensors"),
        ("runs/random", "./random"),
    ],
)
def test_of_a_path_the_last_name_alone(init: str, name: str) -> None:
    assert initial_name(init) == name


def test_a_folder_that_is_named_by_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pre").mkdir()
    monkeypatch.chdir(tmp_path / "pre")
    assert initial_name(".") == "pre"


def test_weights_are_for_records_that_were_prepared_alike() -> None:
    def prepared(normalise: str, **store: int) -> Preprocessing:
        return Preprocessing(store=store, normalisation=Normalisation(mode=normalise))

    initial = Initial(preprocessing=prepared("m", a=1, b=2))
    require_same_preprocessing(initial, prepared("m", b=2, a=1), "pre")
    require_same_preprocessing(Initial(), prepared("z"), "file")
    for other in ("a", "z"):
        with pytest.raises(ConfigError, match=f"'normalise' is '{other}' here, .* with 'm'"):
            require_same_preprocessing(initial, prepared(other, a=1, b=2), "pre")
    with pytest.raises(ConfigError, match=r"'store' is \{'a': 1, 'b': 3\} here"):
        require_same_preprocessing(initial, prepared("m", a=1, b=3), "pre")


def _encoder() -> tuple[Classifier, dict[str, Tensor]]:
    model = build_classifier(toy_config())
    return model, {n: torch.ones_like(t) for n, t in model.encoder.state_dict().items()}


def test_positions_alone_may_be_missing_from_a_file() -> None:
    model, weights = _encoder()
    positions = weights.pop("pos_embed")
    apply_initial(model, Initial(encoder=weights), source="a.pth")
    now = model.encoder.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in weights.items())
    assert not torch.equal(now["pos_embed"], positions)
    del weights["patch_embed.proj.bias"]
    for source in ("a.pth", "z.pth"):
        with pytest.raises(FormatError, match=r"no patch_embed\.proj\.bias; choose"):
            apply_initial(model, Initial(encoder=weights), source=source)
    apply_initial(model, Initial(encoder=weights), source="imagenet-mae")


@pytest.mark.parametrize(("number", "more"), [(3, ""), (4, " and 1 more"), (6, " and 3 more")])
def test_three_problems_are_named_and_the_others_counted(number: int, more: str) -> None:
    model, weights = _encoder()
    unknown = {f"x{i}": torch.zeros(1) for i in range(number)}
    with pytest.raises(FormatError, match=f"model: unknown x0; unknown x1; unknown x2{more}; cho"):
        apply_initial(model, Initial(encoder=weights | unknown), source="a.pth")


@pytest.mark.parametrize("width", [8, 32])
def test_another_shape_is_named(width: int) -> None:
    model, weights = _encoder()
    weights["norm.bias"] = torch.zeros(width)
    with pytest.raises(FormatError, match=rf"norm\.bias is \({width},\), the model has \(16,\)"):
        apply_initial(model, Initial(encoder=weights), source="a.pth")


def test_a_run_says_whose_ecgs_its_encoder_read_or_nobody_knows(tmp_path: Path) -> None:
    config = toy_config()
    run = pretraining_run(tmp_path, config)
    assert read_initial(str(run), config).origin == "unknown"
    write_register(run, Register(rows=NOBODY, key_fingerprint="key", patient_ids="site"))
    initial = read_initial(str(run), config)
    assert initial.origin == "run"
    assert initial.register is not None
    assert initial.register.key_fingerprint == "key"
    assert initial.preprocessing is not None
    assert initial.encoder is not None
    assert initial.encoder.keys() == build_classifier(config).encoder.state_dict().keys()


def test_a_classifier_gives_no_initial_weights(tmp_path: Path) -> None:
    config = toy_config()
    run = classifier_run(tmp_path, config)
    with pytest.raises(ConfigError, match="must be a pretraining run, got a finetune run"):
        read_initial(str(run), config)


@pytest.mark.parametrize("name", ["a.pth", "zoo.pth"])
def test_an_absent_file_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"got '{name}', which does not exist"):
        read_initial(name, toy_config())


def test_each_tensor_of_imagenet_weights_is_shown_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of the reference's names, as wide as ViT-Base, with two blocks, decoder and mask."""
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    caplog.set_level("INFO")
    config = load_config("vit_base", ["model.encoder_depth=2", "model.encoder_heads=12"])
    blocks = {
        **{"norm1": 768, "norm2": 768, "attn.proj": 768, "attn.qkv": 2304},
        **{"mlp.fc1": 3072, "mlp.fc2": 768},
    }
    weights = {"cls_token": torch.ones(1, 1, 768), "pos_embed": torch.ones(1, 197, 768)}
    weights |= {f"norm.{part}": torch.ones(768) for part in ("weight", "bias")}
    weights["patch_embed.proj.weight"] = torch.ones(768, 3, 16, 16)
    weights["patch_embed.proj.bias"] = torch.ones(768)
    for name, size in blocks.items():
        inner = {"attn.proj": 768, "attn.qkv": 768, "mlp.fc1": 768, "mlp.fc2": 3072}.get(name)
        for block in range(2):
            shape = (size,) if inner is None else (size, inner)
            weights[f"blocks.{block}.{name}.weight"] = torch.full(shape, 0.5)
            weights[f"blocks.{block}.{name}.bias"] = torch.full((size,), 0.5)
    weights |= {"mask_token": torch.ones(1, 1, 512), "decoder_norm.bias": torch.ones(512)}
    path = tmp_path / "mae.pth"
    torch.save({"model": weights}, path)
    monkeypatch.setenv("ECGFAST_IMAGENET_MAE", str(path))
    initial = read_initial("imagenet-mae", config)
    # class token, norm (2), two blocks of 12; patch projection (2) and positions; mask and decoder
    assert initial.tensors == {"loaded": 27, "begun anew": 3, "of the file left out": 2}
    lines = [record.getMessage().strip() for record in caplog.records]
    assert "cls_token: loaded; in the file (1, 1, 768), in the model (1, 1, 768)" in lines
    assert "pos_embed: begun anew; in the file (1, 197, 768), in the model (1, 241, 768)" in lines
    assert "mask_token: of the file left out; in the file (1, 1, 512), in the model none" in lines
    assert len(lines) == 33  # a line of counts, and one a tensor
    model = build_classifier(config)
    apply_initial(model, initial, source="imagenet-mae")
    now = model.encoder.state_dict()
    shown = {line.partition(":")[0] for line in lines if ": loaded;" in line}
    assert shown == {
        name for name in now if name in weights and torch.equal(now[name], weights[name])
    }


def test_imagenet_weights_lie_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ECGFAST_IMAGENET_MAE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path / ".cache", tmp_path / "xdg"):
        path = folder / "ecgfast" / "mae_pretrain_vit_base.pth"
        with pytest.raises(ConfigError, match=f"needs the file {path}, which"):
            imagenet_file(load_config("vit_base"))
        path.parent.mkdir(parents=True)
        path.touch()
        assert imagenet_file(load_config("vit_base")) == path
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
