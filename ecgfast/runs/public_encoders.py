"""Weights of public ECG encoders, under our names: what fits, what is adapted, what is left out.

Two kinds of files are known. Their names and shapes are facts of their sources, read there:

ST-MEM (Na et al. 2024; github.com/bakqui/ST-MEM, models/encoder/st_mem_vit.py, vit.py): a patch is
75 timesteps of a lead at 250 Hz, between two norms that our embedding does not have; a lead has an
embedding of its own, and there is no class token.

Masked autoencoders with the reference's names and another 1 x K patch, such as those of
github.com/oetu/mae (models_mae.py), with or without decoder, projector and predictor.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ecgfast_kernels.codec import COLUMN_TIMESTEPS
from torch import Tensor
from torch.nn.functional import interpolate

from ecgfast import log
from ecgfast.errors import FormatError
from ecgfast.settings import ModelConfig

# What becomes of a tensor.
LOADED, ADAPTED, NEW, LEFT_OUT = "loaded", "adapted", "begun anew", "of the file left out"
_PATCH, _PATCH_BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"
_QKV = re.compile(r"blocks\.(\d+)\.attn\.qkv\.weight")
_ST_MEM_QKV = re.compile(r"(encoder\.)?block0\.attn\.fn\.to_qkv\.weight")
_ST_MEM = {
    r"block(\d+)\.attn\.norm\.": r"blocks.\1.norm1.",
    r"block(\d+)\.attn\.fn\.to_qkv\.": r"blocks.\1.attn.qkv.",
    r"block(\d+)\.attn\.fn\.to_out\.0\.": r"blocks.\1.attn.proj.",
    r"block(\d+)\.ff\.norm\.": r"blocks.\1.norm2.",
    r"block(\d+)\.ff\.fn\.net\.0\.": r"blocks.\1.mlp.fc1.",
    r"block(\d+)\.ff\.fn\.net\.3\.": r"blocks.\1.mlp.fc2.",
    r"to_patch_embedding\.2\.": "patch_embed.proj.",
}
_ST_MEM_HEAD = 64  # channels of each of its attention heads
_CONTRASTIVE = ("projector.", "predictor.")  # heads that our autoencoder does not have

Row = tuple[str, str, Tensor | None, Tensor | None]  # name, what becomes of it, in file, in model


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What a public encoder gives ours.

    Attributes:
        encoder: tensors under our names.
        new: names of ours that it does not give.
        counts: what became of a tensor -> how many.
    """

    encoder: dict[str, Tensor]
    new: frozenset[str]
    counts: dict[str, int]


def is_public(state: Mapping[str, Tensor]) -> bool:
    """Whether a file is of another model than ours, not of ours in another size."""
    patch = state.get(_PATCH)
    is_ours = patch is not None and patch.shape[1:] == (1, 1, COLUMN_TIMESTEPS)
    return not is_ours or any(name.startswith(_CONTRASTIVE) for name in state)


def adopt(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], config: ModelConfig, file: Path
) -> Adopted:
    """Take what fits of a public encoder, and log what becomes of each tensor.

    Args:
        state: of the file, for which `is_public` holds.
        own: of our encoder; shapes are enough.
        config: of it.
        file: that the tensors are of.
    Raises:
        FormatError: the file is of no known kind, or of another width, depth or number of heads.
    """
    is_st_mem = any(_ST_MEM_QKV.fullmatch(name) for name in state)
    their_name = {_our_name(name) if is_st_mem else name: name for name in state}
    given = {ours: state[theirs] for ours, theirs in their_name.items()}
    _require_size(given, config, file, has_heads=is_st_mem)
    taken = {name: given[name] for name in own if name in given and name != "pos_embed"}
    patch = taken.get(_PATCH)
    if patch is None or patch.ndim < 2 or patch[0].numel() != patch.shape[-1]:
        # none, or one that spans leads or channels: without it, its bias says nothing
        taken = {name: taken[name] for name in taken if name not in (_PATCH, _PATCH_BIAS)}
    elif patch.shape != own[_PATCH].shape:
        taken[_PATCH] = stretched(patch.reshape(len(patch), 1, 1, -1))
    wrong = [f"no {name}" for name in own if name.startswith("blocks.") and name not in taken]
    wrong += [
        f"{their_name[name]} is {tuple(given[name].shape)}, the model has {tuple(own[name].shape)}"
        for name, tensor in taken.items()
        if tensor.shape != own[name].shape
    ]
    if wrong:
        raise FormatError(f"weights {file} do not fit the model: {'; '.join(wrong[:3])}")
    rows: list[Row] = []
    for name, tensor in own.items():
        is_same = name in taken and taken[name] is given[name]
        word = LOADED if is_same else ADAPTED if name in taken else NEW
        theirs = their_name.get(name, name)
        called = name if theirs == name else f"{name} of {theirs}"
        rows.append((called, word, given.get(name), tensor))
    rows += [(their_name[n], LEFT_OUT, given[n], None) for n in given if n not in own]
    counts = report(f"weights of {file.name}", rows)
    return Adopted(encoder=taken, new=frozenset(own) - taken.keys(), counts=counts)


def stretched(kernel_D11K: Tensor) -> Tensor:
    """A kernel of K timesteps as one of 250: the same shape over a patch, whatever its seconds.

    Values lie between their neighbours', and are scaled so that a constant gives what it gave.

    Args:
        kernel_D11K: (D, 1, 1, K).
    Returns:
        (D, 1, 1, 250).
    """
    length = kernel_D11K.shape[-1]
    size = (1, COLUMN_TIMESTEPS)
    wide = interpolate(kernel_D11K.float(), size=size, mode="bilinear", antialias=True)
    return wide * (length / COLUMN_TIMESTEPS)


def report(title: str, rows: Iterable[Row]) -> dict[str, int]:
    """Log what becomes of each tensor, a line for each; return what -> how many."""
    rows = list(rows)
    words = [word for _, word, _, _ in rows]
    counts = {word: words.count(word) for word in (LOADED, ADAPTED, NEW, LEFT_OUT)}
    if not counts[ADAPTED]:
        del counts[ADAPTED]
    log.info(f"{title}: " + ", ".join(f"{n} tensors {word}" for word, n in counts.items()))
    for name, word, *both in rows:
        shapes = ("none" if tensor is None else tuple(tensor.shape) for tensor in both)
        log.info("  {}: {}; in the file {}, in the model {}".format(name, word, *shapes))
    return counts


def _our_name(name: str) -> str:
    """The name of a tensor of ST-MEM's encoder here; others keep theirs."""
    name = name.removeprefix("encoder.")
    for theirs, ours in _ST_MEM.items():
        name = re.sub(f"^{theirs}", ours, name)
    return name


def _require_size(
    given: Mapping[str, Tensor], config: ModelConfig, file: Path, *, has_heads: bool
) -> None:
    blocks = [tensor for name, tensor in given.items() if _QKV.fullmatch(name)]
    if not blocks or blocks[0].ndim != 2:
        names = ", ".join(sorted(given)[:3])
        raise FormatError(
            f"weights {file} are of no encoder that is known, got tensors such as {names:.90}; "
            "allowed: the names of the reference masked autoencoder, or of ST-MEM"
        )
    theirs = {"encoder_width": blocks[0].shape[1], "encoder_depth": len(blocks)}
    if has_heads:
        theirs["encoder_heads"] = blocks[0].shape[0] // 3 // _ST_MEM_HEAD
    unlike = {key: value for key, value in theirs.items() if getattr(config, key) != value}
    if unlike:
        ours = ", ".join(f"model.{key} {getattr(config, key)}" for key in unlike)
        cure = " ".join(f"--set model.{key}={value}" for key, value in unlike.items())
        raise FormatError(f"weights {file} are of another size than the model, got {ours}; {cure}")
