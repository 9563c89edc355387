"""Labels and splits of a store, and the expressions that choose records by them."""

from typing import TYPE_CHECKING

from ecgfast import lazily

if TYPE_CHECKING:
    from ecgfast.labels.joining import LabelSummary, label_store
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

# A worker of convert draws splits, and needs no Arrow for it.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "SPLITS": "ecgfast.labels.splits",
        "LabelSummary": "ecgfast.labels.joining",
        "Labelled": "ecgfast.labels.selection",
        "Selection": "ecgfast.labels.selection",
        "Target": "ecgfast.labels.selection",
        "label_store": "ecgfast.labels.joining",
        "labelled": "ecgfast.labels.selection",
        "parse_selection": "ecgfast.labels.selection",
        "parse_target": "ecgfast.labels.selection",
    },
)
