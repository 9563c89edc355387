"""The store: format, writer, reader, verification."""

import sys
from typing import TYPE_CHECKING

from ecgfast import lazily

if TYPE_CHECKING:
    from ecgfast.store.reader import StoreReader, open_store

if "zarr" in sys.modules:
    # An installed ecgfast announces its codec by entry point; this serves a source checkout. zarr
    # is not imported for it: that takes half a second, and reading a store does not need it.
    import ecgfast.store.zarr_codec  # noqa: F401 (registers the codec)

__all__ = ["StoreReader", "open_store"]

# A worker of convert encodes chunks, and needs no Arrow for it.
__getattr__, __dir__ = lazily(__name__, dict.fromkeys(__all__, "ecgfast.store.reader"))
