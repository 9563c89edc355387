"""Which records of a store are the same ECG: equal samples, or one signal at another rate or cut.

Records with one content digest are one ECG. Of each digest, one record is compared further, in four
steps that leave fewer and fewer pairs, so that the time grows as N log N:

1. the 8 nearest records by lead correlations, in the 8 directions in which they differ most,
2. a distance of at most 0.1 in all 28 correlations,
3. beats: of the fewer beats of the two, at least half and 4 are as far apart as in the other one,
4. the stored signals themselves (`same_signal`).

Found pairs make groups, groups of groups too: the search is repeated with one record of each group
until it finds nothing new, because of a thousand copies only 8 are neighbours of one.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ecgfast_kernels.codec.signals import NO_BEAT, NUM_CORRELATIONS
from numpy.typing import NDArray

from ecgfast.convert.collect import RowsOnDisk
from ecgfast.convert.measures import CORRELATION_STEPS
from ecgfast.convert.same_signal import Smooth, likeness, smooth

Read = Callable[[NDArray[np.int64]], NDArray[np.int16]]

LEAST_BEATS = 4

_NEIGHBOURS = 8
_DIRECTIONS = 8
_QUERY_SLACK = 0.5  # a neighbour up to 1.5 times as far may be given instead: four times faster
_FARTHEST = 0.1  # root mean square over the correlations; half of a record stays within 0.05
_BEAT_TOLERANCE_MS = 4
_NO_LAG = np.iinfo(np.int16).max
_QUERY_RECORDS, _BEAT_PAIRS, _SIGNAL_PAIRS = 16384, 512, 64  # at a time


class Groups:
    """Groups of records that grow together; each is named by its first record."""

    def __init__(self, num_records: int) -> None:
        self._parent = np.arange(num_records)

    def first(self, record: int) -> int:
        """The first record of this one's group."""
        while (parent := int(self._parent[record])) != record:
            self._parent[record] = record = int(self._parent[parent])
        return record

    def join(self, one: int, other: int) -> None:
        """Make one group of two."""
        low, high = sorted((self.first(one), self.first(other)))
        self._parent[high] = low

    def firsts(self) -> NDArray[np.int64]:
        """(N,) the first record of each record's group, until others are joined."""
        while not np.array_equal(self._parent, grand := self._parent[self._parent]):
            self._parent = grand
        return self._parent


def join_same_content(groups: Groups, codes: NDArray[np.int64]) -> None:
    """Join records of one content digest.

    Args:
        groups: of N records.
        codes: (N,) a number for each digest, -1 for none.
    """
    order = np.argsort(codes, kind="stable")
    codes = codes[order]
    same = (codes[1:] == codes[:-1]) & (codes[1:] >= 0)
    for one, other in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
        groups.join(one, other)


def join_same_signal(
    groups: Groups,
    correlation: NDArray[np.int8],
    beats: NDArray[np.uint16],
    recordings: NDArray[np.int64],
    read: Read,
    folder: Path,
    first: int = 0,
) -> None:
    """Join records whose signals are one ECG.

    Args:
        groups: of N records; of each group, one record is compared.
        correlation: (N, 28) of `unpacked_fingerprints`.
        beats: (N, 32) of the same.
        recordings: (N,) windows of one recording have one number, and are not compared.
        read: record numbers, ascending -> (n, 12, 5000) int16.
        folder: for files without a name.
        first: records before this one are not compared with each other.
    """
    num_records = len(correlation)
    enough = np.concatenate(
        [(beats[some] != NO_BEAT).sum(axis=1) >= LEAST_BEATS for some in _blocks(num_records)]
    )
    compared = np.empty(0, np.int64)
    while True:
        alone = RowsOnDisk(folder, np.int64)
        alone.add(np.flatnonzero(enough & (groups.firsts() == np.arange(num_records))))
        records = alone.mapped()
        if len(records) < 2 or records[-1] < first:
            return
        found = [compared]
        for near in _near(correlation, records, folder, first):
            near = near[recordings[near[:, 0]] != recordings[near[:, 1]]]
            near = near[_beats_agree(beats[near[:, 0]], beats[near[:, 1]])]
            found.append(near[:, 0] * num_records + near[:, 1])
        pairs = np.unique(np.concatenate(found))
        new = np.setdiff1d(pairs, compared, assume_unique=True)
        compared = pairs
        if not _join_confirmed(groups, np.stack(np.divmod(new, num_records), axis=1), beats, read):
            return


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + _QUERY_RECORDS) for start in range(0, count, _QUERY_RECORDS))


def _near(
    correlation: NDArray[np.int8], records: NDArray[np.int64], folder: Path, first: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Yield pairs (P, 2) of records that lie near each other, one of them not before `first`.

    The lower number comes first. A pair can come twice, but not in one array.

    Args:
        correlation: (N, 28).
        records: (n,) those that are compared, ascending.
        folder: for files without a name.
        first: as in `join_same_signal`.
    """
    from scipy.spatial import cKDTree  # a quarter of a second, and workers import this module

    farthest = _FARTHEST * CORRELATION_STEPS * np.sqrt(NUM_CORRELATIONS)
    points = _directions(correlation, records, folder)
    tree = cKDTree(points)
    for block in _blocks(len(records)):
        some = tree.indices[block]  # neighbours one behind another share the cache
        some = some[records[some] >= first]
        if not some.size:
            continue
        _, near = tree.query(
            points[some], k=_NEIGHBOURS + 1, eps=_QUERY_SLACK, distance_upper_bound=farthest
        )
        one, other = np.repeat(some, near.shape[1]), near.ravel()
        keep = (other < len(points)) & (one != other)
        low, high = np.sort([one[keep], other[keep]], axis=0)
        pairs = np.unique(low * len(points) + high)
        one, other = records[pairs // len(points)], records[pairs % len(points)]
        apart = correlation[one].astype(np.float32) - correlation[other]
        keep = np.einsum("pf,pf->p", apart, apart) <= farthest**2
        yield np.stack([one[keep], other[keep]], axis=1)


def _directions(
    correlation: NDArray[np.int8], records: NDArray[np.int64], folder: Path
) -> NDArray[np.float64]:
    """(n, 8): the principal components of the rows (n, 28) of some records."""
    total, square = np.zeros(NUM_CORRELATIONS), np.zeros((NUM_CORRELATIONS, NUM_CORRELATIONS))
    for block in _blocks(len(records)):
        some = correlation[records[block]].astype(np.float64)
        total += some.sum(axis=0)
        square += some.T @ some
    mean = total / len(records)
    directions = np.linalg.eigh(square / len(records) - np.outer(mean, mean))[1]
    largest = directions[:, ::-1][:, :_DIRECTIONS]
    points = RowsOnDisk(folder, np.float64, _DIRECTIONS)
    for block in _blocks(len(records)):
        points.add(correlation[records[block]] @ largest)
    return points.mapped()


def _beats_agree(one: NDArray[np.uint16], other: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """(P,) whether enough beats of two records, (P, 32) each, lie at one lag."""
    counts = np.stack([(each != NO_BEAT).sum(axis=1) for each in (one, other)])
    needed = np.maximum(LEAST_BEATS, (counts.min(axis=0) + 1) // 2)
    agree = np.zeros(len(one), bool)
    order = np.lexsort((counts[1], counts[0], needed))
    for start in range(0, len(order), _BEAT_PAIRS):
        some = order[start : start + _BEAT_PAIRS]
        a, b = (each[some, : counts[n, some].max()] for n, each in enumerate((one, other)))
        lags = a[:, :, None].astype(np.int16) - b[:, None, :].astype(np.int16)
        missing = (a == NO_BEAT)[:, :, None] | (b == NO_BEAT)[:, None, :]
        lags[missing] = _NO_LAG
        lags = np.sort(lags.reshape(len(some), -1), axis=1)
        for number in np.unique(needed[some]):
            rows = np.flatnonzero(needed[some] == number)
            low, high = lags[rows, : 1 - number], lags[rows, number - 1 :]
            near = (high.astype(np.int32) - low <= 2 * _BEAT_TOLERANCE_MS) & (high < _NO_LAG)
            agree[some[rows]] = near.any(axis=1)
    return agree


class _Signals(NamedTuple):
    """The signals of a few records, smoothed when they are first compared."""

    numbers: dict[int, int]
    signals: NDArray[np.int16]  # (N, 12, 5000)
    beats: NDArray[np.uint16]
    ready: dict[int, Smooth | None]

    def __call__(self, record: int) -> Smooth | None:
        if record not in self.ready:
            n = self.numbers[record]
            beats = self.beats[n][self.beats[n] != NO_BEAT]
            self.ready[record] = smooth(self.signals[n], beats)
        return self.ready[record]


def _join_confirmed(
    groups: Groups, pairs: NDArray[np.int64], beats: NDArray[np.uint16], read: Read
) -> bool:
    """Join those of the pairs (P, 2) that are one ECG; returns whether any joined."""
    joined = False
    for start in range(0, len(pairs), _SIGNAL_PAIRS):
        due = pairs[start : start + _SIGNAL_PAIRS].tolist()
        some = [pair for pair in due if _apart(groups, pair)]
        if not some:
            continue
        records = np.unique(np.array(some))
        numbers = {int(record): n for n, record in enumerate(records)}
        signals = _Signals(numbers, read(records), beats[records], {})
        for pair in some:
            if _apart(groups, pair):
                one, other = signals(pair[0]), signals(pair[1])
                if one is not None and other is not None and likeness(one, other).same:
                    groups.join(pair[0], pair[1])
                    joined = True
    return joined


def _apart(groups: Groups, pair: Sequence[int]) -> bool:
    return groups.first(pair[0]) != groups.first(pair[1])
