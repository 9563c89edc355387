"""The last step of a convert: mark duplicates, draw splits, write tables, then the manifest."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.convert.duplicates import Groups, Read, join_same_content, join_same_signal
from ecgfast.convert.measures import FINGERPRINT_BYTES, unpacked_fingerprints
from ecgfast.convert.preprocess import MAX_INVALID_SHARE
from ecgfast.convert.work import ConvertOptions
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

_NO_FINGERPRINT = b"\xff" * FINGERPRINT_BYTES  # no beats


@dataclass
class _Collected:
    """What one pass over the writer's lines collects beside the rows: about 100 bytes a record."""

    converted: set[int] = field(default_factory=set)  # positions: an input can give many windows
    quarantine: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    patient_keys: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    correlations: list[NDArray[np.int8]] = field(default_factory=list)
    beats: list[NDArray[np.uint16]] = field(default_factory=list)
    segments: dict[int, list[str]] = field(default_factory=dict)  # by the joined record's number

    def rows(self, writer: StoreWriter) -> Iterator[pa.Table]:
        for table, text in writer.lines():
            if table["segments"].null_count < table.num_rows:
                names = enumerate(table["segments"].to_pylist(), len(self.patient_keys))
                self.segments |= {number: json.loads(each) for number, each in names if each}
            self.converted.update(table["position"].to_pylist())
            self.quarantine.append(text["quarantine"])
            self.sources.append(text["sources"])
            self.patient_keys += table["patient_key"].to_pylist()
            for words in table["left_out"].to_pylist():
                self.left_out.update(words.split(";") if words else ())
            packed = pc.fill_null(table["fingerprint"], _NO_FINGERPRINT).to_pylist()
            correlations, beats = unpacked_fingerprints(packed)
            self.correlations.append(correlations)
            self.beats.append(beats)
            yield table


def seal_from_files(
    out: Path,
    writer: StoreWriter,
    settings: ConvertOptions,
    request: str,
    num_inputs: int,
    found: dict[str, Any],
) -> Manifest:
    """Seal a store that was made from files; `found` holds the manifest's counts of other files.

    Raises:
        FormatError: not one input could be converted.
    """
    lines = _Collected()
    table = records_table(lines.rows(writer), writer.columns)
    quarantine = write_quarantine(out, lines.quarantine)
    write_sources(sources_beside(out), lines.sources)
    if writer.num_records == 0:
        raise FormatError(
            f"none of {num_inputs} inputs could be converted; {sources_beside(out)} says why for "
            "each"
        )
    shards = Shards(out, writer.num_records)  # the store has no manifest yet
    table = _mark_duplicates(
        table, lines, lambda records: decode_chunks(settings.codec, *shards.read(records))
    )
    table, splits = assign_splits(
        table,
        lines.patient_keys,
        seed=settings.split_seed,
        target=known_target(table, None),
        one_ecg_per_patient=settings.one_ecg_per_patient,
        drawn_by="convert",
    )
    table = with_pseudonyms(table, lines.patient_keys, settings.pseudonyms)
    tables = {QUARANTINE: quarantine, RECORDS: write_table(out, table)}
    content = {
        "preprocessing": {
            "sampling_rate_hz": SAMPLING_RATE_HZ,
            "num_timesteps": NUM_TIMESTEPS,
            "window": settings.window,
            "short": settings.short,
            "max_invalid_share": MAX_INVALID_SHARE,
            "resampling": "scipy.signal.resample_poly, padtype line",
        },
        "quality": settings.quality,
        "counts": {
            "inputs": num_inputs,
            "converted": len(lines.converted),
            "quarantined": num_inputs - len(lines.converted),
            "records": writer.num_records,
            "duplicates": table.num_rows - table["duplicate_of"].null_count,
        },
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
    _log_left_out(lines.left_out)
    return writer.seal(settings.codec, tables, content)


def _log_left_out(left_out: Mapping[str, int]) -> None:
    """Count what stays out; the names of fields are not logged, they can name patients."""
    if left_out:
        kinds = ", ".join(f"{kind} of {left_out[kind]:,} records" for kind in sorted(left_out))
        log.info(
            f"left out of the store: {kinds}; --columns NAME takes a field that you know to be "
            "safe, such as diagnosis"
        )


def _any_synthetic(flags: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.match_substring_regex(flags, r"(^|;)synthetic(;|$)")).as_py())


def _mark_duplicates(table: pa.Table, lines: _Collected, read: Read) -> pa.Table:
    """Fill the column `duplicate_of`, and add the flags "duplicate" and "segment".

    A segment belongs to the record that was joined from it, whatever their order; of all others,
    the first record of a group is the one that the later ones name.

    Args:
        table: of records.parquet, `duplicate_of` empty.
        lines: of every row of it.
        read: record numbers, ascending -> (n, 12, 5000) int16.
    """
    groups = Groups(table.num_rows)
    recordings = _recordings(table)
    segments = _segments(lines.segments, table, recordings)
    codes = table["content"].combine_chunks().dictionary_encode().indices
    join_same_content(groups, pc.fill_null(codes, -1).to_numpy().astype(np.int64))
    correlation = np.concatenate(lines.correlations)
    beats = np.concatenate(lines.beats)
    join_same_signal(groups, correlation, beats, recordings, read)
    for number in np.flatnonzero(segments).tolist():  # not before: copies of segments are compared
        groups.join(int(recordings[number]), number)
    named = _named(groups.firsts(), segments, recordings)
    return _with_columns(table, named, segments)


def _bases(table: pa.Table) -> list[str]:
    """The pseudonym of each record's recording: windows are called ID@START."""
    record_ids = table["record_id"].to_pylist()
    starts = table["start_timestep"].to_pylist()
    return [
        record_id.removesuffix(f"@{start}") if start else record_id
        for record_id, start in zip(record_ids, starts, strict=True)
    ]


def _recordings(table: pa.Table) -> NDArray[np.int64]:
    """(N,) the number of the first window of each record's recording."""
    recordings = np.arange(table.num_rows)
    if pc.any(pc.greater(table["start_timestep"], 0)).as_py():
        bases = _bases(table)  # windows lie one behind another
        for number in range(1, len(bases)):
            if bases[number] == bases[number - 1]:
                recordings[number] = recordings[number - 1]
    return recordings


def _segments(
    segments: dict[int, list[str]], table: pa.Table, recordings: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(N,) which rows are segments; in `recordings` they get the number of the joined record."""
    is_segment = np.zeros(table.num_rows, bool)
    joined = {name: int(recordings[number]) for number, names in segments.items() for name in names}
    for number, base in enumerate(_bases(table) if joined else []):
        whole = joined.get(base, number)
        if whole != number:
            is_segment[number] = True
            recordings[number] = whole
    return is_segment


def _named(
    firsts: NDArray[np.int64], segments: NDArray[np.bool_], recordings: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(N,) the record that each one is a duplicate of; itself where it is none."""
    numbers = np.arange(len(firsts))
    # The first record of each group that is no segment.
    named = np.full(len(firsts), len(firsts))
    np.minimum.at(named, firsts[~segments], numbers[~segments])
    named = named[firsts]
    # Another window of the same recording is no duplicate, though a copy may join the two.
    own = ~segments & (recordings[named] == recordings)
    return np.where(own, numbers, named)


def _with_columns(
    table: pa.Table, named: NDArray[np.int64], segments: NDArray[np.bool_]
) -> pa.Table:
    later = np.flatnonzero(named != np.arange(len(named)))
    if later.size == 0:
        return table
    take = pa.array(named, mask=named == np.arange(len(named)))
    table = _replaced(table, "duplicate_of", table["record_id"].take(take))
    flags = table["flags"].to_pylist()
    for number in later.tolist():
        flag = "segment" if segments[number] else "duplicate"
        flags[number] = ";".join(sorted({*filter(None, flags[number].split(";")), flag}))
    return _replaced(table, "flags", pa.array(flags, pa.string()))


def _replaced(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)
