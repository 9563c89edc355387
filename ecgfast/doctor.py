"""What is installed here, and which backend each part of ecgfast would take, and why."""

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from ecgfast_kernels import codec
from ecgfast_kernels.ops.library import resolve

from ecgfast.config import load_config
from ecgfast.data.dali import build as dali_build
from ecgfast.model.attention import explain_unavailable
from ecgfast.model.attention_choice import choose_attention, shapes_of
from ecgfast.model.mae import num_kept
from ecgfast.store.reader import available_cores

_PACKAGES = ("ecgfast", "torch", "triton", "xformers", "nvidia-dali-cuda130", "zarr", "numpy")
_ABSENT = "not installed"


def examine() -> str:
    """Return one line per finding, for ``ecgfast doctor``."""
    return "\n".join(f"{name:<22}{finding}" for name, finding in _findings())


def _findings() -> Iterator[tuple[str, str]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "cores", f"{available_cores()}"
    for name in _PACKAGES:
        yield name, _version(name)
    yield "gpu", _gpu()
    yield "codec", _codec()
    yield "data engine", _engine()
    yield "kernels", _kernels(device)
    yield from _attention(device)
    yield "precision", "bf16" if device.type == "cuda" else "fp32: no GPU"
    yield "cuda compiler", shutil.which("nvcc") or f"{_ABSENT}; pip install 'ecgfast[cuda]'"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _ABSENT


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that PyTorch can use: everything runs on the CPU"
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gib = properties.total_memory / 2**30
        names.append(f"{properties.name}, {gib:.0f} GiB, sm_{properties.major}{properties.minor}")
    return "; ".join(names)


def _codec() -> str:
    missing = ": the native library is missing; with a C++ compiler, reinstall ecgfast"
    name = codec.backend()
    return name + missing if name == "numpy" else name


def _engine() -> str:
    if not torch.cuda.is_available():
        return "cpu: no GPU"
    other = "dali" if dali_build.is_installed() else "cpu: DALI is not installed"
    return f"resident where the records fit into GPU memory, else {other}"


def _kernels(device: torch.device) -> str:
    chosen = resolve("auto", device)
    if chosen == "triton":
        return chosen
    absent = find_spec("triton") is None
    return f"{chosen} (PyTorch): " + ("Triton is not installed" if absent else "no GPU for Triton")


def _attention(device: torch.device) -> Iterator[tuple[str, str]]:
    """The kernels that ViT-Large would take, the study's size."""
    config = load_config("vit_large")
    num_keep = num_kept(config.model.num_patches, config.mask.ratio)
    for part, shape in shapes_of(config.model, num_keep=num_keep).items():
        choice = choose_attention("auto", device, shape)
        yield f"attention, {part}", f"{choice.backend}: {choice.reason}"
    problem = explain_unavailable(device)
    yield "xformers attention", problem or "can run here"
