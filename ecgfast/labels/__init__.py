"""Labels and splits of a store, and the expressions that choose records by them."""

from typing import TYPE_CHECKING

from ecgfast import lazily

if TYPE_CHECKING:
    from ecgfast.labels.commands import LabelSummary, label_store
    from ecgfast.labels.selection import (
        Labelled,
        Selection,
        Target,
        labelled,
        parse_selection,
        parse_target,
    )
    from ecgfast.labels.splits import SPLITS

__all__ = [
    "SPLITS",
    "LabelSummary",
    "Labelled",
    "Selection",
    "Target",
    "label_store",
    "labelled",
    "parse_selection",
    "parse_target",
]

_SELECTION = ("Labelled", "Selection", "Target", "labelled", "parse_selection", "parse_target")
# Imported on first use: who needs one name does not wait for Arrow.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "SPLITS": "ecgfast.labels.splits",
        **dict.fromkeys(("LabelSummary", "label_store"), "ecgfast.labels.commands"),
        **dict.fromkeys(_SELECTION, "ecgfast.labels.selection"),
    },
)
