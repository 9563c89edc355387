"""Raw ECG files, folders or a store -> store: `ecgfast convert`."""

from typing import TYPE_CHECKING

from ecgfast import lazily

if TYPE_CHECKING:
    from ecgfast.convert.run import ConvertSummary, convert

__all__ = ["ConvertSummary", "convert"]

# Every worker imports this package, but only for `work`.
__getattr__, __dir__ = lazily(__name__, dict.fromkeys(__all__, "ecgfast.convert.run"))
