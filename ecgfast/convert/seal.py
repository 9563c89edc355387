"""The last step of a convert: tables, metadata, and the manifest that makes the folder a store."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.convert.marks import Waiting, mark_duplicates
from ecgfast.convert.preprocess import MAX_INVALID_SHARE
from ecgfast.convert.work import Settings
from ecgfast.errors import FormatError
from ecgfast.labels.assign import assign_splits, known_target
from ecgfast.records import NUM_TIMESTEPS, SAMPLING_RATE_HZ
from ecgfast.store.csv_files import write_quarantine, write_sources
from ecgfast.store.format import QUARANTINE, RECORDS, decode_chunks, sources_beside
from ecgfast.store.manifest import Manifest
from ecgfast.store.patients import retained, with_pseudonyms
from ecgfast.store.shards import Shards
from ecgfast.store.table import records_table, write_table
from ecgfast.store.writer import StoreWriter
from ecgfast.vocabulary import Codec


@dataclass
class _Lines:
    """What one pass over the writer's lines leaves behind, beside the rows."""

    converted: set[int] = field(default_factory=set)  # positions: an input can give many windows
    quarantine: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    patient_keys: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    waiting: Waiting = field(default_factory=Waiting)

    def rows(self, writer: StoreWriter) -> Iterator[pa.Table]:
        for table, text in writer.lines():
            self.converted.update(table["position"].to_pylist())
            self.quarantine.append(text["quarantine"])
            self.sources.append(text["sources"])
            self.patient_keys += table["patient_key"].to_pylist()
            for words in table["left_out"].to_pylist():
                self.left_out.update(words.split(";") if words else ())
            self.waiting.add(table)
            yield table


def seal_converted(
    out: Path,
    writer: StoreWriter,
    settings: Settings,
    request: str,
    num_inputs: int,
    found: dict[str, Any],
) -> Manifest:
    """Seal a store that was made from files; `found` holds the manifest's counts of other files.

    Raises:
        FormatError: not one input could be converted.
    """
    lines = _Lines()
    table = records_table(lines.rows(writer), writer.columns)
    quarantine = write_quarantine(out, lines.quarantine)
    write_sources(sources_beside(out), lines.sources)
    if writer.num_records == 0:
        raise FormatError(
            f"none of {num_inputs} inputs could be converted; {sources_beside(out)} says why for "
            "each"
        )
    read = partial(_read, Shards(out, writer.num_records), settings.codec)
    table = mark_duplicates(table, lines.waiting, read)
    table, splits = assign_splits(
        table,
        lines.patient_keys,
        seed=settings.split_seed,
        target=known_target(table, None),
        one_ecg_per_patient=settings.one_ecg_per_patient,
        drawn_by="convert",
    )
    table = with_pseudonyms(table, lines.patient_keys, settings.pseudonyms)
    records = write_table(out, table)
    counts = {
        "inputs": num_inputs,
        "converted": len(lines.converted),
        "quarantined": num_inputs - len(lines.converted),
        "records": writer.num_records,
        "duplicates": table.num_rows - table["duplicate_of"].null_count,
    }
    preprocessing = {
        "sampling_rate_hz": SAMPLING_RATE_HZ,
        "num_timesteps": NUM_TIMESTEPS,
        "window": settings.window,
        "short": settings.short,
        "max_invalid_share": MAX_INVALID_SHARE,
        "resampling": "scipy.signal.resample_poly, padtype line",
    }
    content = {
        "preprocessing": preprocessing,
        "quality": settings.quality,
        "counts": counts,
        "synthetic": _any_synthetic(table["flags"]),
        "identifiers": "kept" if settings.pseudonyms.keep else "pseudonyms",
        "key_fingerprint": settings.pseudonyms.fingerprint,
        "patients": {
            "ids": settings.pseudonyms.patient_ids,
            "one_ecg_each": settings.one_ecg_per_patient,
        },
        "splits": splits,
        "labels": None,
        "retained": retained(
            table, identifiers=settings.pseudonyms.keep, ages_over_89=settings.ages_over_89
        ),
        "left_out": dict(lines.left_out),
        "request": request,
        **found,
    }
    _say_left_out(lines.left_out)
    tables = {QUARANTINE: quarantine, RECORDS: records}
    return writer.seal(settings.codec, tables, content)


def _say_left_out(left_out: Mapping[str, int]) -> None:
    """Count what stays out; the names of fields are not said, they can name patients."""
    if left_out:
        kinds = ", ".join(f"{kind} of {left_out[kind]:,} records" for kind in sorted(left_out))
        log.info(
            f"left out of the store: {kinds}; --columns NAME takes a field that you know to be "
            "safe, such as diagnosis"
        )


def _read(shards: Shards, codec: Codec, records: NDArray[np.int64]) -> NDArray[np.int16]:
    """Records of a store that has no manifest yet, (n, 12, 5000)."""
    return decode_chunks(codec, *shards.read(records))


def _any_synthetic(flags: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.match_substring_regex(flags, r"(^|;)synthetic(;|$)")).as_py())
