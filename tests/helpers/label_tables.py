"""A store of six records, and label tables to join to it."""

from pathlib import Path

from recordings import convert_quietly, ecg_like, write_wfdb

import ecgfast
from ecgfast.labels.commands import LabelSummary, label_store

NUM_RECORDS = 6


def labelled_later(folder: Path) -> Path:
    """Convert a/r0 .. a/r5 of patients p0 p0 p1 p1 p2 p2, recorded on 10 May 2020."""
    for number, signal in enumerate(ecg_like(NUM_RECORDS, seed=0)):
        comments = [f"patient: p{number // 2}", "Age: 50", "site: north"]
        write_wfdb(
            folder / f"in/a/r{number}", signal, comments=comments, date="08:00:00 10/05/2020"
        )
    convert_quietly([folder / "in"], folder / "store")
    return folder / "store"


def join(store: Path, text: str, **options: object) -> LabelSummary:
    csv = store.with_name("labels.csv")
    csv.write_text(text)
    return label_store(store, csv, **options)  # type: ignore[arg-type]  # any of its options


def column(store: Path, name: str) -> list[object]:
    return ecgfast.open_store(store).records[name].to_pylist()
