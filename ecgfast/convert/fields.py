"""Which fields of a recording enter a store: those that are known to be safe, and named ones."""

from collections.abc import Collection
from functools import lru_cache

from ecgfast.ingest.patient import codes_of
from ecgfast.records import is_percent
from ecgfast.store.format import ROW_TYPES

Label = str | float | None

# What stays out, in words that hold no name of a field: a sidecar's key can name a patient.
FREE_TEXT, OTHERS = "diagnoses in free text", "other fields"

_codes_of = lru_cache(maxsize=4096)(codes_of)


def taken(labels: dict[str, Label], named: Collection[str]) -> tuple[dict[str, Label], list[str]]:
    """Divide the labels of a recording.

    Args:
        labels: as a reader found them.
        named: fields that the user wants in the store as they are.
    Returns:
        the labels of the store: the ejection fraction, codes of diagnoses, and named fields; which
        of `FREE_TEXT` and `OTHERS` stay out.
    """
    kept: dict[str, Label] = {}
    left: set[str] = set()
    for name, value in labels.items():
        is_fraction = name == "ejection_fraction" and is_percent(value)
        if is_fraction or (name in named and name not in ROW_TYPES):
            kept[name] = value
        elif name == "diagnosis" and isinstance(value, str):
            codes, has_text = _codes_of(value)
            if codes:
                kept[name] = codes
            if has_text:
                left.add(FREE_TEXT)
        elif value is not None:
            left.add(OTHERS)
    return kept, sorted(left)
