"""Labels and splits of a store, and the expressions that choose records by them."""

from ecgfast.labels.joining import LabelSummary, label_store
from ecgfast.labels.selection import Selection, Target, parse_selection, parse_target
from ecgfast.labels.splits import SPLITS

__all__ = [
    "SPLITS",
    "LabelSummary",
    "Selection",
    "Target",
    "label_store",
    "parse_selection",
    "parse_target",
]
