"""Weights as files: out and in again, from ImageNet, and what is refused."""

import errno
import hashlib
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import toy_config, toy_model

from ecgfast.config import load_config
from ecgfast.errors import ConfigError, EcgfastError, FormatError
from ecgfast.model.build import build_classifier
from ecgfast.runs.digests import export_safetensors, read_weights
from ecgfast.runs.initial import apply_initial, imagenet_file, read_initial
from ecgfast.runs.register import Register, write_register
from ecgfast.train.distributed import full_state
from ecgfast.train.run_folder import write_settings


def test_export_and_read_give_the_same_bits(tmp_path: Path) -> None:
    model = toy_model(toy_config())
    export_safetensors(full_state(model), tmp_path / "model.safetensors", toy_config())
    again = read_weights(tmp_path / "model.safetensors")
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[n], t) for n, t in model.state_dict().items())


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    """The library writes the facts of a header in an order that changes from call to call."""
    state, path = full_state(toy_model(toy_config())), tmp_path / "model.safetensors"
    files = set()
    for _ in range(20):
        export_safetensors(state, path, toy_config())
        files.add(path.read_bytes())
    (file,) = files
    start = 8 + int.from_bytes(file[:8], "little")
    assert start % 8 == 0  # where readers that map the file expect the tensors
    assert list(json.loads(file[8:start])["__metadata__"]) == ["config", "file_sha256"]
    assert load_file(path).keys() == state.keys()


def test_a_flipped_bit_of_exported_weights_is_noticed_wherever_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    export_safetensors(full_state(toy_model(toy_config())), path, toy_config())
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    draw = random.Random(0)
    facts = [data.index(name) + 3 for name in (b"config", b"file_sha256", b"decoder_norm", b"F32")]
    places = [0, start - 1, start, len(data) - 1, *facts, *draw.choices(range(len(data)), k=60)]
    for byte in [*places, *draw.choices(range(start), k=200)]:
        changed = bytearray(data)
        changed[byte] ^= 1 << draw.randrange(7)
        path.write_bytes(changed)
        with pytest.raises(FormatError, match=r"model\.safetensors (are damaged|cannot be read)"):
            read_weights(path)
    path.write_bytes(data)
    save_file(load_file(tmp_path / "model.safetensors"), path)  # another program's has no digest
    assert read_weights(path)


def test_the_digest_of_earlier_versions_is_compared(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0)}
    facts = {"config": "", "sha256": hashlib.sha256(state["a"].numpy().tobytes()).hexdigest()}
    save_file(state, tmp_path / "old.safetensors", metadata=facts)
    assert torch.equal(read_weights(tmp_path / "old.safetensors")["a"], state["a"])
    save_file({"a": state["a"] + 1}, tmp_path / "old.safetensors", metadata=facts)
    with pytest.raises(FormatError, match="their digest is wrong"):
        read_weights(tmp_path / "old.safetensors")
    save_file(state, tmp_path / "old.safetensors", metadata={"config": ""})
    assert read_weights(tmp_path / "old.safetensors")


def test_a_name_that_is_no_utf_8_is_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    export_safetensors({"a": torch.ones(3)}, folder / "model.safetensors", toy_config())
    assert torch.equal(read_weights(folder / "model.safetensors")["a"], torch.ones(3))


def test_a_full_disk_under_a_run_says_how_to_resume_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file that a run writes beside its checkpoints."""

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    config = toy_config()
    register = Register(rows=pa.table({}), key_fingerprint="", patient_ids="site")
    writes = (
        lambda: export_safetensors({}, tmp_path / "best.safetensors", config),
        lambda: write_settings(tmp_path, config, {}),
        lambda: write_register(tmp_path, register),
    )
    for write in writes:
        with pytest.raises(EcgfastError, match=r"disk full .* run the same command with --resume"):
            write()


def test_the_reference_wraps_its_state_dict(tmp_path: Path) -> None:
    state = toy_model(toy_config()).state_dict()
    torch.save({"model": state, "epoch": 3}, tmp_path / "reference.pth")
    assert read_weights(tmp_path / "reference.pth").keys() == state.keys()


def test_a_flipped_bit_of_a_pth_is_noticed(tmp_path: Path) -> None:
    path, state = tmp_path / "reference.pth", {"w": torch.arange(5000.0)}
    torch.save(state, path)
    data, draw = path.read_bytes(), random.Random(0)
    for byte in draw.choices(range(len(data)), k=200):
        changed = bytearray(data)
        changed[byte] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            found = read_weights(path)  # a bit of a time stamp, or of padding
        except FormatError:
            continue
        assert torch.equal(found["w"], state["w"])


def test_a_pth_of_before_archives_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "a.pth")["w"], torch.ones(3))


class _Harm:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this file ran its own code",)


def test_a_pickle_never_runs_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": _Harm()}, tmp_path / "harm.pth")
    with pytest.raises(FormatError, match="cannot be read"):
        read_weights(tmp_path / "harm.pth")
    assert "ran its own code" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[1], {"epoch": 3}, {"model": {"epoch": 3}}])
def test_a_file_without_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(FormatError, match=r"a\.pth hold no tensors"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_damaged_weights_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(FormatError, match=name):
        read_weights(tmp_path / name)


SHALLOW_BASE = ("model.encoder_depth=1", "finetune.batch_size=8")


def test_imagenet_weights_keep_our_patches_and_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("vit_base", SHALLOW_BASE)
    model = build_classifier(config)
    public = {n: torch.randn_like(t) for n, t in model.encoder.state_dict().items()}
    public["patch_embed.proj.weight"] = torch.randn(768, 3, 16, 16)
    public["pos_embed"] = torch.randn(1, 197, 768)
    public |= {"mask_token": torch.randn(1, 1, 512), "decoder_pred.bias": torch.randn(768)}
    torch.save({"model": public}, tmp_path / "imagenet.pth")
    monkeypatch.setenv("ECGFAST_IMAGENET_MAE", str(tmp_path / "imagenet.pth"))
    own = {n: t.clone() for n, t in model.encoder.state_dict().items()}

    apply_initial(model, read_initial("imagenet-mae", config), source="imagenet-mae")

    now = model.encoder.state_dict()
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"):
        assert torch.equal(now[name], own[name])
    for name in ("cls_token", "blocks.0.attn.qkv.weight", "norm.bias"):
        assert torch.equal(now[name], public[name])


def test_absent_imagenet_weights_say_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ECGFAST_IMAGENET_MAE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"mae_pretrain_vit_large\.pth, which does not exist"):
        imagenet_file(load_config("vit_large"))
    with pytest.raises(ConfigError, match=r"widths \[768, 1024\], got 192"):
        imagenet_file(load_config("vit_tiny"))
