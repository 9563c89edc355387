"""The columns `duplicate_of` and `flags` of a store whose duplicates are found."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.convert.collect import Collected
from ecgfast.convert.duplicates import Groups, Read, join_same_content, join_same_signal
from ecgfast.convert.measures import unpacked_fingerprints
from ecgfast.labels.columns import set_column
from ecgfast.store.quality import joined
from ecgfast.store.table import copies, recordings_of


def mark_duplicates(table: pa.Table, found: Collected, read: Read, folder: Path) -> pa.Table:
    """Fill the column `duplicate_of`, and add the flags "duplicate" and "segment".

    A segment belongs to the record that was joined from it, whatever their order; of all others,
    the first record of a group is the one that the later ones name.

    Args:
        table: N rows of units, `duplicate_of` empty.
        found: what else was collected of them.
        read: record numbers, ascending -> (n, 12, 5000) int16.
        folder: for files without a name.
    """
    groups = Groups(table.num_rows)
    recordings, segments = _segments(found, table)
    join_same_content(groups, codes_of(table["content"]))
    join_same_signal(groups, *unpacked_fingerprints(found.packed), recordings, read, folder)
    for number in np.flatnonzero(segments).tolist():  # not before: copies of segments are compared
        groups.join(int(recordings[number]), number)
    named = _named(groups.firsts(), segments, recordings)
    return _with_columns(table, named, table["record_id"], segments)


def mark_appended(
    old: pa.Table,
    new: pa.Table,
    found: Collected,
    packed: NDArray[np.uint8],
    read: Read,
    folder: Path,
) -> pa.Table:
    """`mark_duplicates` of new rows, which are compared with each other and with those of a store.

    An old record is never marked: where a new one was joined from it, the new one is the duplicate.

    Args:
        old: rows of the store.
        new: rows that it gains; returned with their columns filled.
        found: what else was collected of these.
        packed: (N, bytes) fingerprints of all.
        read: number of a record among all, ascending -> (n, 12, 5000) int16.
        folder: for files without a name.
    """
    count = old.num_rows
    names = pa.chunked_array([*old["record_id"].chunks, *new["record_id"].chunks], pa.string())
    groups = Groups(len(names))
    for record, copied in zip(*copies(old), strict=True):
        groups.join(int(copied), int(record))
    recordings, segments = _segments(found, new)
    recordings = np.concatenate([np.arange(count), recordings + count])
    fresh = new["content"].combine_chunks().dictionary_encode()
    known = pc.index_in(old["content"], fresh.dictionary, skip_nulls=True)
    codes = [pc.fill_null(each, -1).to_numpy() for each in (known, fresh.indices)]
    join_same_content(groups, np.concatenate(codes).astype(np.int64))
    fingerprints = unpacked_fingerprints(packed)
    join_same_signal(groups, *fingerprints, recordings, read, folder, first=count)
    for number in np.flatnonzero(segments).tolist():
        groups.join(int(recordings[count + number]), count + number)
    for number, parts in found.segments.items():
        at = pc.index_in(pa.array(parts), old["record_id"].combine_chunks())
        for record in at.drop_null().to_pylist():
            groups.join(record, count + number)
    all_segments = np.concatenate([np.zeros(count, bool), segments])
    named = _named(groups.firsts(), all_segments, recordings)[count:]
    return _with_columns(new, named, names, segments, count)


def codes_of(texts: pa.ChunkedArray) -> NDArray[np.int64]:
    """(N,) a number for each text, from 0 on, -1 for none.

    By sorting: `dictionary_encode` takes 106 bytes of memory for each text of 32 letters.
    """
    ranks = pc.rank(texts, tiebreaker="dense").to_numpy()
    codes: NDArray[np.int64] = ranks.astype(np.int64) - 1
    codes[texts.is_null().to_numpy()] = -1
    return codes


def _segments(found: Collected, table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(N,) the recordings, of segments the number of the joined record; and (N,) which rows are."""
    recordings, is_segment = found.recordings, np.zeros(table.num_rows, bool)
    if not found.segments:
        return recordings, is_segment
    recordings = recordings.copy()
    parts = found.segments.items()
    whole_of = {name: int(recordings[number]) for number, names in parts for name in names}
    for number, base in enumerate(recordings_of(table)):
        whole = whole_of.get(base, number)
        if whole != number:
            is_segment[number] = True
            recordings[number] = whole
    return recordings, is_segment


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
    is_later = named != np.arange(first, first + len(named))
    if not is_later.any():
        return table
    wanted, places = np.unique(named[is_later], return_inverse=True)
    is_named = np.zeros(len(names), bool)
    is_named[wanted] = True
    # By a filter: of many chunks, `take` makes one first.
    cells = names.filter(pa.array(is_named)).combine_chunks().take(pa.array(places))
    before = table["flags"].filter(pa.array(is_later)).to_pylist()
    words = ["segment" if each else "duplicate" for each in segments[is_later].tolist()]
    flags = [joined(text, word, present=True) for text, word in zip(before, words, strict=True)]
    for name, values in (("duplicate_of", cells), ("flags", pa.array(flags))):
        column = pc.replace_with_mask(table[name], pa.array(is_later), values)
        table = set_column(table, name, column)
    return table
