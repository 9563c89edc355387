"""Weights as files: safetensors out; safetensors, .pth and runs in."""

import json
import pickle
from collections.abc import Mapping
from hashlib import file_digest, sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ecgfast.config import Config, config_to_toml
from ecgfast.errors import FormatError
from ecgfast.store.durable import RESUME, write_durably
from ecgfast.train.distributed import full, master

DIGEST = "sha256"  # key in the header


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Gather a model's state dict to the CPU, unsharded, fp32; collective."""
    state = model.state_dict(keep_vars=True)  # the parameters themselves know their masters
    return {name: full(master(tensor).detach()).cpu() for name, tensor in state.items()}


def export_safetensors(state: Mapping[str, Tensor], path: Path, config: Config) -> None:
    """Write weights under the reference names; header: settings, and a digest of the tensors."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    plain = memoryview(save(tensors))
    start = _start(plain)
    facts = {"config": config_to_toml(config), DIGEST: sha256(plain[start:]).hexdigest()}
    # safetensors itself writes the facts in another order each time: the same run, other bytes
    header = json.dumps({"__metadata__": facts, **json.loads(bytes(plain[8:start]))}).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    write_durably(path, [len(header).to_bytes(8, "little"), header, plain[start:]], again=RESUME)


def _start(file: bytes | memoryview) -> int:
    """Where the tensors begin in a safetensors file: behind 8 bytes and a header of that length."""
    return 8 + int.from_bytes(file[:8], "little")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as opened, path.open("rb") as file:
        expected = (opened.metadata() or {}).get(DIGEST)  # others' files have none
        if expected is not None:
            file.seek(_start(file.read(8)))
            if file_digest(file, "sha256").hexdigest() != expected:
                raise FormatError(
                    f"weights {path} are damaged: their digest is wrong; restore them from a copy"
                )
    return load_file(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from ``.pth`` without running its code.

    Raises:
        FormatError: neither format, or damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except FormatError:
        raise
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"weights {path} cannot be read: the file is damaged, or holds code besides tensors, "
            "which is never run; give a .safetensors file, or a .pth state dict"
        ) from error
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError, LookupError) as error:
        raise FormatError(
            f"weights {path} cannot be read: {str(error).splitlines()[0]}; give a .safetensors "
            "file, or a .pth state dict"
        ) from error
    # the reference implementation wraps its state dict in {"model": ...}
    state = tree.get("model", tree) if isinstance(tree, dict) else {}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise FormatError(f"weights {path} hold no tensors; give a state dict")
    return tensors
