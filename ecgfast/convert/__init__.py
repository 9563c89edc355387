"""Raw ECG files, folders or a store -> store: `ecgfast convert`."""

from ecgfast.convert.run import ConvertSummary, convert

__all__ = ["ConvertSummary", "convert"]
