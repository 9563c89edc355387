"""Raw 12-lead ECG files to a GPU-decodable store, and masked autoencoders trained on it."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecgfast.data.loader import build_loader
    from ecgfast.embedding import embed
    from ecgfast.model import build_model
    from ecgfast.store import open_store

__all__ = ["build_loader", "build_model", "embed", "open_store"]


def lazily(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose names are imported on first use (PEP 562).

    Args:
        package: its `__name__`.
        homes: name -> module that defines it.
    """

    def getattr_(name: str) -> Any:  # noqa: ANN401 (whatever the home has under that name)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return getattr_, dir_


# Opening a store must not wait for torch.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "build_loader": "ecgfast.data.loader",
        "build_model": "ecgfast.model",
        "embed": "ecgfast.embedding",
        "open_store": "ecgfast.store",
    },
)
