"""The columns `duplicate_of` and `flags` of a store whose duplicates are found."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.convert.duplicates import Groups, Read, join_same_content, join_same_signal
from ecgfast.labels.columns import set_column
from ecgfast.store.table import recordings_of


def mark_duplicates(
    table: pa.Table,
    segments_of: dict[int, list[str]],
    correlation: NDArray[np.int8],
    beats: NDArray[np.uint16],
    read: Read,
) -> pa.Table:
    """Fill the column `duplicate_of`, and add the flags "duplicate" and "segment".

    A segment belongs to the record that was joined from it, whatever their order; of all others,
    the first record of a group is the one that the later ones name.

    Args:
        table: N rows of units, `duplicate_of` empty.
        segments_of: number of a joined record -> the record ids of its segments.
        correlation: (N, 28) of `unpacked_fingerprints`.
        beats: (N, 32) of the same.
        read: record numbers, ascending -> (n, 12, 5000) int16.
    """
    groups = Groups(table.num_rows)
    recordings = _recordings(table)
    segments = _segments(segments_of, table, recordings)
    codes = table["content"].combine_chunks().dictionary_encode().indices
    join_same_content(groups, pc.fill_null(codes, -1).to_numpy().astype(np.int64))
    join_same_signal(groups, correlation, beats, recordings, read)
    for number in np.flatnonzero(segments).tolist():  # not before: copies of segments are compared
        groups.join(int(recordings[number]), number)
    named = _named(groups.firsts(), segments, recordings)
    return _with_columns(table, named, table["record_id"], segments)


def mark_appended(
    old: pa.Table,
    new: pa.Table,
    segments_of: dict[int, list[str]],
    correlation: NDArray[np.int8],
    beats: NDArray[np.uint16],
    read: Read,
) -> pa.Table:
    """`mark_duplicates` of new rows, which are compared with each other and with those of a store.

    An old record is never marked: where a new one was joined from it, the new one is the duplicate.

    Args:
        old: rows of the store.
        new: rows that it gains; returned with their columns filled.
        segments_of: of the new rows, by their number among these.
        correlation: (N, 28) of all.
        beats: (N, 32) of all.
        read: number of a record among all, ascending -> (n, 12, 5000) int16.
    """
    count = old.num_rows
    names = pa.chunked_array([*old["record_id"].chunks, *new["record_id"].chunks], pa.string())
    groups = Groups(len(names))
    copies = pc.index_in(old["duplicate_of"], old["record_id"].combine_chunks())
    for record in pc.indices_nonzero(old["duplicate_of"].is_valid()).to_pylist():
        groups.join(copies[record].as_py(), record)
    recordings = _recordings(new)
    segments = _segments(segments_of, new, recordings)
    recordings = np.concatenate([np.arange(count), recordings + count])
    fresh = new["content"].combine_chunks().dictionary_encode()
    known = pc.index_in(old["content"], fresh.dictionary, skip_nulls=True)
    codes = [pc.fill_null(each, -1).to_numpy() for each in (known, fresh.indices)]
    join_same_content(groups, np.concatenate(codes).astype(np.int64))
    join_same_signal(groups, correlation, beats, recordings, read, first=count)
    for number in np.flatnonzero(segments).tolist():
        groups.join(int(recordings[count + number]), count + number)
    for number, parts in segments_of.items():
        at = pc.index_in(pa.array(parts), old["record_id"].combine_chunks())
        for record in at.drop_null().to_pylist():
            groups.join(record, count + number)
    all_segments = np.concatenate([np.zeros(count, bool), segments])
    named = _named(groups.firsts(), all_segments, recordings)[count:]
    return _with_columns(new, named, names, segments, count)


def _recordings(table: pa.Table) -> NDArray[np.int64]:
    """(N,) the number of the first window of each recording, which lie one behind another."""
    firsts = np.flatnonzero(np.diff(table["position"].to_numpy(), prepend=-1))
    return np.repeat(firsts, np.diff(firsts, append=table.num_rows))


def _segments(
    segments: dict[int, list[str]], table: pa.Table, recordings: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(N,) which rows are segments; in `recordings` they get the number of the joined record."""
    is_segment = np.zeros(table.num_rows, bool)
    joined = {name: int(recordings[number]) for number, names in segments.items() for name in names}
    for number, base in enumerate(recordings_of(table) if joined else []):
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
    table: pa.Table,
    named: NDArray[np.int64],
    names: pa.ChunkedArray,
    segments: NDArray[np.bool_],
    first: int = 0,
) -> pa.Table:
    """Name the records that rows are duplicates of; the first row is number `first` of `names`."""
    own = named == np.arange(first, first + len(named))
    later = np.flatnonzero(~own)
    if later.size == 0:
        return table
    table = set_column(table, "duplicate_of", names.take(pa.array(named, mask=own)))
    flags = table["flags"].to_pylist()
    for number in later.tolist():
        flag = "segment" if segments[number] else "duplicate"
        flags[number] = ";".join(sorted({*filter(None, flags[number].split(";")), flag}))
    return set_column(table, "flags", pa.array(flags, pa.string()))
