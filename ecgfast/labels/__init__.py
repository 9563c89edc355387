"""Labels and splits of a store, and the expressions that choose records by them."""

from ecgfast.labels.joining import LabelSummary, label_store
from ecgfast.labels.learning import Labelled, labelled
from ecgfast.labels.selection import Selection, Target, parse_selection, parse_target
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
