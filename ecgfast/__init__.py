"""Raw 12-lead ECG files to a GPU-decodable store, and masked autoencoders trained on it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecgfast.data.loader import build_loader
    from ecgfast.model import build_model
    from ecgfast.store import open_store

__all__ = ["build_loader", "build_model", "open_store"]

# Imported on first use (PEP 562): opening a store must not wait for torch.
_HOMES = {
    "build_loader": "ecgfast.data.loader",
    "build_model": "ecgfast.model",
    "open_store": "ecgfast.store",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (whatever the home has under that name)
    if name not in _HOMES:
        raise AttributeError(f"module 'ecgfast' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
