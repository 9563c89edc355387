"""Raw 12-lead ECG files to a GPU-decodable store, and masked autoencoders trained on it."""

from typing import TYPE_CHECKING

from ecgfast.lazy import lazily

if TYPE_CHECKING:
    from ecgfast.data.loader import build_loader
    from ecgfast.model import build_model
    from ecgfast.store import open_store

__all__ = ["build_loader", "build_model", "open_store"]

# Opening a store must not wait for torch.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "build_loader": "ecgfast.data.loader",
        "build_model": "ecgfast.model",
        "open_store": "ecgfast.store",
    },
)
