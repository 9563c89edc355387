"""A store written by hand: patients who were at two hospitals, in every split."""

from pathlib import Path

import numpy as np
from recordings import convert_quietly, ecg_like, write_wfdb

from ecgfast.labels.commands import label_store
from ecgfast.store.reader import StoreReader, open_store

TARGET = "ejection_fraction<40"
# row: site, patient (one number is one person everywhere), split, ejection fraction
ROWS = (
    ("1", "A", "train", 30),
    ("1", "B", "train", 60),
    ("1", "C", "valid", 30),
    ("1", "D", "valid", 60),
    ("1", "E", "test", 30),
    ("1", "F", "test", 60),
    ("2", "A", "train", 30),  # learned from at hospital 1
    ("2", "C", "valid", 30),  # chose the weights there
    ("2", "E", "test", 60),  # tested there
    ("2", "G", "train", 30),
    ("2", "H", "valid", 60),
    ("2", "I", "test", 60),
    ("3", "B", "train", 60),
    ("3", "K", "train", 30),
    ("3", "L", "test", 60),
    ("3", "M", "test", None),
)


def write_sources(folder: Path) -> None:
    for number, (site, patient, _, _) in enumerate(ROWS):
        signal = ecg_like(1, seed=100 + number)[0]
        comments = [f"patient: {patient}", f"site: {site}"]
        write_wfdb(folder / f"r{number:02d}", signal, comments=comments)


def write_labels(path: Path) -> Path:
    lines = [
        f"r{number:02d},{split},{'' if fraction is None else fraction}"
        for number, (_, _, split, fraction) in enumerate(ROWS)
    ]
    path.write_text("\n".join(["record_id,split,ejection_fraction", *lines]) + "\n")
    return path


def make(
    tmp_path: Path, name: str = "store", *, ids: str = "global", **options: object
) -> StoreReader:
    """Convert and label; further options are those of `convert`."""
    if not (tmp_path / "in").exists():
        write_sources(tmp_path / "in")
    convert_quietly([tmp_path / "in"], tmp_path / name, patient_ids=ids, **options)
    label_store(tmp_path / name, write_labels(tmp_path / "labels.csv"), split="column")
    return open_store(tmp_path / name)


def rows_of(store: StoreReader, site: str, *splits: str) -> np.ndarray:
    """Rows of a site, of some splits or of all."""
    where, split = store.records["site"].to_pylist(), store.records["split"].to_pylist()
    chosen = [w == site and (not splits or s in splits) for w, s in zip(where, split, strict=True)]
    return np.flatnonzero(chosen)
