"""Duplicates in records.parquet: column `duplicate_of`, flags `duplicate` and `segment`."""

import json
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.convert.content import FINGERPRINT_BYTES, unpacked_fingerprints
from ecgfast.convert.duplicates import Groups, Read, join_same_content, join_same_signal

_NO_FINGERPRINT = b"\xff" * FINGERPRINT_BYTES  # no beats


@dataclass
class Waiting:
    """What waits beside the rows of a store for the search: about 100 bytes a record."""

    correlations: list[NDArray[np.int8]] = field(default_factory=list)
    beats: list[NDArray[np.uint16]] = field(default_factory=list)
    segments: dict[int, list[str]] = field(default_factory=dict)  # by the joined record's number
    num_records: int = 0

    def add(self, table: pa.Table) -> None:
        """Take the next rows of `unpack_rows`."""
        packed = pc.fill_null(table["fingerprint"], _NO_FINGERPRINT).to_pylist()
        correlations, beats = unpacked_fingerprints(packed)
        self.correlations.append(correlations)
        self.beats.append(beats)
        if table["segments"].null_count < table.num_rows:
            for number, names in enumerate(table["segments"].to_pylist(), self.num_records):
                if names is not None:
                    self.segments[number] = json.loads(names)
        self.num_records += table.num_rows


def mark_duplicates(table: pa.Table, waiting: Waiting, read: Read) -> pa.Table:
    """Fill the column `duplicate_of` and add the flags.

    A segment belongs to the record that was joined from it, whatever their order; of all others,
    the first record of a group is the one that the later ones name.

    Args:
        table: of records.parquet, `duplicate_of` empty.
        waiting: has taken every row of it.
        read: record numbers, ascending -> (n, 12, 5000) int16.
    """
    groups = Groups(table.num_rows)
    recordings = _recordings(table)
    segments = _segments(waiting.segments, table, recordings)
    codes = table["content"].combine_chunks().dictionary_encode().indices
    join_same_content(groups, pc.fill_null(codes, -1).to_numpy().astype(np.int64))
    correlation = np.concatenate(waiting.correlations)
    beats = np.concatenate(waiting.beats)
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
