"""Raw ECG files, folders or a store -> store: `ecgfast convert`."""

from typing import TYPE_CHECKING

from ecgfast import lazily

if TYPE_CHECKING:
    from ecgfast.convert.plan import ConvertOptions
    from ecgfast.convert.run import convert, convert_units, plan_convert, seal_convert

__all__ = ["ConvertOptions", "convert", "convert_units", "plan_convert", "seal_convert"]

# Every worker imports this package, but only for `units`.
_HOMES = dict.fromkeys(__all__, "ecgfast.convert.run")
__getattr__, __dir__ = lazily(__name__, _HOMES | {"ConvertOptions": "ecgfast.convert.plan"})
