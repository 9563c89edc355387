"""Raw 12-lead ECG files to a GPU-decodable store, and masked autoencoders trained on it."""

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecgfast.convert import convert
    from ecgfast.data.loader import build_loader
    from ecgfast.data.torch_view import EcgDataset, EcgStream
    from ecgfast.embedding import embed
    from ecgfast.evaluate.reconstructions import reconstruct
    from ecgfast.evaluate.report import evaluate
    from ecgfast.ingest.synthetic import write_cohort as synth
    from ecgfast.ingest.synthetic_population import Design
    from ecgfast.labels.commands import label_store as label
    from ecgfast.labels.naming import Naming
    from ecgfast.model import build_model
    from ecgfast.predict import predict
    from ecgfast.predictor import load_model
    from ecgfast.runs.ecg_paper import plot_ecg
    from ecgfast.store import open_store
    from ecgfast.train.finetune import finetune
    from ecgfast.train.pretrain import pretrain
    from ecgfast.train.probe import probe

__all__ = [
    "Design",
    "EcgDataset",
    "EcgStream",
    "Naming",
    "build_loader",
    "build_model",
    "convert",
    "embed",
    "evaluate",
    "finetune",
    "label",
    "load_model",
    "open_store",
    "plot_ecg",
    "predict",
    "pretrain",
    "probe",
    "reconstruct",
    "synth",
]


def lazily(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose names are imported on first use (PEP 562).

    Args:
        package: its `__name__`.
        homes: name -> module that defines it, with :NAME where it has another name there.
    """

    def getattr_(name: str) -> Any:  # noqa: ANN401 (whatever the home has under that name)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, there = homes[name].partition(":")
        return getattr(importlib.import_module(module), there or name)

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return getattr_, dir_


class _Package(ModuleType):
    """A package whose submodules do not take the place of functions of the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


# Opening a store must not wait for torch.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "Design": "ecgfast.ingest.synthetic_population",
        "EcgDataset": "ecgfast.data.torch_view",
        "EcgStream": "ecgfast.data.torch_view",
        "Naming": "ecgfast.labels.naming",
        "build_loader": "ecgfast.data.loader",
        "build_model": "ecgfast.model",
        "convert": "ecgfast.convert",
        "embed": "ecgfast.embedding",
        "evaluate": "ecgfast.evaluate.report",
        "finetune": "ecgfast.train.finetune",
        "label": "ecgfast.labels.commands:label_store",
        "load_model": "ecgfast.predictor",
        "open_store": "ecgfast.store",
        "plot_ecg": "ecgfast.runs.ecg_paper",
        "predict": "ecgfast.predict",
        "pretrain": "ecgfast.train.pretrain",
        "probe": "ecgfast.train.probe",
        "reconstruct": "ecgfast.evaluate.reconstructions",
        "synth": "ecgfast.ingest.synthetic:write_cohort",
    },
)
sys.modules[__name__].__class__ = _Package  # else `import ecgfast.predict` would hide `predict`
