"""What a store holds: counts, prevalence by site and split, the codec's ratio."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from ecgfast.store.chunks import RECORD_BYTES
from ecgfast.store.format import QUARANTINE, num_shards, shard_name
from ecgfast.store.reader import StoreReader, as_store

_LVSD_BELOW = 40.0  # ejection fraction in percent


class Labels(Protocol):
    """Something that labels records: `ecgfast.labels.Target`."""

    def labels(self, table: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Positive, and known."""
        ...


@dataclass(frozen=True, kw_only=True)
class Group:
    """Records of one site and split.

    Attributes:
        site: None where unknown.
        split: None where unassigned.
        num_records: records.
        num_patients: patients.
        num_labelled: records whose label is known.
        num_positive: of them, positive ones.
    """

    site: str | None
    split: str | None
    num_records: int
    num_patients: int
    num_labelled: int
    num_positive: int

    @property
    def prevalence(self) -> float | None:
        """Share of positives among the labelled; None without labels."""
        return self.num_positive / self.num_labelled if self.num_labelled else None


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """Counts of a store.

    Attributes:
        path: of the store.
        identity: digest of the signals.
        codec: of the chunks.
        synthetic: whether any record is synthetic.
        num_inputs: files read; inputs = converted + quarantined.
        num_converted: of them, in the store.
        num_quarantined: of them, refused.
        num_records: records.
        num_patients: patients.
        raw_bytes: the signals as int16.
        stored_bytes: the signals in the store, all headers and indexes counted.
        columns: of records.parquet.
        flags: records with each flag.
        reasons: refused inputs by reason, digits replaced by #.
        groups: by site and split.
    """

    path: Path
    identity: str
    codec: str
    synthetic: bool
    num_inputs: int
    num_converted: int
    num_quarantined: int
    num_records: int
    num_patients: int
    raw_bytes: int
    stored_bytes: int
    columns: tuple[str, ...]
    flags: dict[str, int]
    reasons: dict[str, int]
    groups: tuple[Group, ...]

    @property
    def ratio(self) -> float:
        """Raw bytes per stored byte."""
        return self.raw_bytes / self.stored_bytes


def describe(store: StoreReader | str | Path, target: Labels | None = None) -> StoreInfo:
    """Count what a store holds.

    Args:
        store: an open store or its path.
        target: what is positive; None counts an ejection fraction below 40 %.
    """
    reader = as_store(store)
    table, counts = reader.records, reader.manifest["counts"]
    files = reader.manifest["files"]
    flags = Counter(flag for text in table["flags"].to_pylist() for flag in text.split(";") if flag)
    return StoreInfo(
        path=reader.path,
        identity=reader.identity,
        codec=reader.codec,
        synthetic=reader.manifest["synthetic"],
        num_inputs=counts["inputs"],
        num_converted=counts["converted"],
        num_quarantined=counts["quarantined"],
        num_records=len(reader),
        num_patients=pc.count_distinct(table["patient_id"]).as_py(),
        raw_bytes=len(reader) * RECORD_BYTES,
        stored_bytes=sum(files[shard_name(n)]["bytes"] for n in range(num_shards(len(reader)))),
        columns=tuple(table.column_names),
        flags=dict(flags.most_common()),
        reasons=_reasons(reader.path / QUARANTINE),
        groups=_groups(table, target),
    )


def _groups(table: pa.Table, target: Labels | None) -> tuple[Group, ...]:
    if target is None:
        fraction = table["ejection_fraction"]
        known, positive = pc.is_valid(fraction), pc.fill_null(pc.less(fraction, _LVSD_BELOW), False)
    else:
        y, is_known = target.labels(table)
        known, positive = pa.array(is_known), pa.array(y & is_known)
    counted = pa.table(
        {
            "site": table["site"],
            "split": table["split"],
            "patient_id": table["patient_id"],
            "known": pc.cast(known, pa.int64()),
            "positive": pc.cast(positive, pa.int64()),
        }
    )
    grouped = counted.group_by(["site", "split"]).aggregate(
        [
            ("patient_id", "count"),
            ("patient_id", "count_distinct"),
            ("known", "sum"),
            ("positive", "sum"),
        ]
    )
    groups = [
        Group(
            site=row["site"],
            split=row["split"],
            num_records=row["patient_id_count"],
            num_patients=row["patient_id_count_distinct"],
            num_labelled=row["known_sum"],
            num_positive=row["positive_sum"],
        )
        for row in grouped.to_pylist()
    ]
    return tuple(sorted(groups, key=lambda group: (group.site or "", group.split or "")))


def _reasons(path: Path) -> dict[str, int]:
    text = pacsv.ConvertOptions(column_types={"reason": pa.string()})
    reasons = pacsv.read_csv(path, convert_options=text)["reason"].to_pylist()
    return dict(Counter(re.sub(r"\d[\d.,]*", "#", reason) for reason in reasons).most_common())
