"""What a store holds: inputs, refusals, flags, the codec's ratio."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from ecgfast.errors import CorruptStoreError
from ecgfast.store.csv_files import passed_over_examples
from ecgfast.store.format import QUARANTINE, RECORD_BYTES
from ecgfast.store.reader import StoreReader, as_store

_ECG_FORMATS = {"XML", "DICOM", "SCP-ECG", "other signal formats"}  # whose files can be ECGs


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
        num_duplicates: records that are another record's ECG once more; None in a store that was
            made before they were counted.
        num_patients: patients.
        raw_bytes: the signals as int16.
        stored_bytes: the signals in the store, all headers and indexes counted.
        columns: of records.parquet.
        flags: records with each flag.
        quality: records that fail each signal check; None in a store that was made before they had
            a column.
        reasons: refused inputs by reason, digits replaced by #.
        num_files: files below the sources; None where an earlier version converted.
        passed_over: of them, those that nothing read, by kind.
        examples: kind -> readable paths, from the table beside the store; empty without it.
    """

    path: Path
    identity: str
    codec: str
    synthetic: bool
    num_inputs: int
    num_converted: int
    num_quarantined: int
    num_records: int
    num_duplicates: int | None
    num_patients: int
    raw_bytes: int
    stored_bytes: int
    columns: tuple[str, ...]
    flags: dict[str, int]
    quality: dict[str, int] | None
    reasons: dict[str, int]
    num_files: int | None
    passed_over: dict[str, int]
    examples: dict[str, list[str]]

    @property
    def ratio(self) -> float:
        """Raw bytes per stored byte."""
        return self.raw_bytes / self.stored_bytes


def describe(store: StoreReader | str | Path) -> StoreInfo:
    """Count what a store holds; `ecgfast.evaluate.cohort` counts labels by site and split."""
    reader = as_store(store)
    table, counts = reader.records, reader.manifest["counts"]
    return StoreInfo(
        path=reader.path,
        identity=reader.identity,
        codec=reader.codec,
        synthetic=reader.manifest["synthetic"],
        num_inputs=counts["inputs"],
        num_converted=counts["converted"],
        num_quarantined=counts["quarantined"],
        num_records=len(reader),
        num_duplicates=counts.get("duplicates"),
        num_patients=pc.count_distinct(table["patient_id"]).as_py(),
        raw_bytes=len(reader) * RECORD_BYTES,
        stored_bytes=reader.num_bytes,
        columns=tuple(table.column_names),
        flags=_counted(table["flags"]),
        quality=_counted(table["quality"]) if "quality" in table.column_names else None,
        reasons=_reasons(reader),
        num_files=reader.manifest.get("source_files"),
        passed_over=reader.manifest.get("passed_over", {}),
        examples=passed_over_examples(reader.path),
    )


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    """Records with each flag of a column, the most frequent first."""
    found = Counter(flag for text in column.to_pylist() for flag in text.split(";") if flag)
    return dict(found.most_common())


def kinds_in_words(counts: Mapping[str, int]) -> str:
    """Return counts by kind as text, the most frequent first: "8 XML (of no ...); 1 archive"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    words = {kind: f"{count:,} {kind if count > 1 else _one(kind)}" for kind, count in ordered}
    foreign = [text for kind, text in words.items() if kind in _ECG_FORMATS]
    others = [text for kind, text in words.items() if kind not in _ECG_FORMATS]
    parts = [f"{', '.join(foreign)} (of no format that is read)"] if foreign else []
    return "; ".join([*parts, *([", ".join(others)] if others else [])])


def _one(kind: str) -> str:
    """The word for one file of a kind, such as "link to folders" of "links to folders"."""
    several, *rest = re.split(r" (?=\(|(?:without|to|named|whose|that) )", kind, maxsplit=1)
    one = re.sub(r"s\b", "", several).replace(" and ", " or ")
    return " ".join((one, *rest))


def _reasons(reader: StoreReader) -> dict[str, int]:
    here = pacsv.ReadOptions(use_threads=False)
    text = pacsv.ConvertOptions(column_types={"reason": pa.string()})
    try:
        lines = pacsv.read_csv(pa.BufferReader(reader.quarantine), here, convert_options=text)
        reasons = lines["reason"].to_pylist()
    except (CorruptStoreError, KeyError, pa.ArrowInvalid) as error:
        raise CorruptStoreError(
            f"{reader.path / QUARANTINE} is missing or damaged; restore it from a copy or convert "
            "again"
        ) from error
    return dict(
        Counter(re.sub(r"\d+(?:[.,]\d+)*", "#", reason) for reason in reasons).most_common()
    )
