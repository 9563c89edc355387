"""Several stores read as one, in the order in which they were given: for pretraining."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.store.manifest import Manifest
from ecgfast.store.reader import Chunks, StoreReader, open_store

STORE_COLUMN = "store"
_ALIGNMENT = 16  # of each part in a buffer, for vector loads


class JoinedStores(StoreReader):
    """The records of several stores, numbered through; nothing is copied.

    Attributes:
        stores: in order.
        identity: those of the stores, joined by +.

    Args:
        stores: two or more.
        distinct_patients: stores of different keys have no patient in common, on the user's word.

    Raises:
        ConfigError: their signals, codecs or ids do not fit, two have one record or one name, or
            their keys differ and `distinct_patients` is off.
    """

    def __init__(self, stores: Sequence[StoreReader], *, distinct_patients: bool = False) -> None:
        self.stores = tuple(stores)
        self._distinct = distinct_patients
        first = self.stores[0]
        keys = [each.manifest["key_fingerprint"] for each in self.stores]
        self._check(keys)
        self.path, self.codec = first.path, first.codec
        key = keys[0]
        if len(set(keys)) > 1:  # no key knows all patients
            key = hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()[:16]
        synthetic = any(each.manifest["synthetic"] for each in self.stores)
        self.manifest: Manifest = first.manifest | {"key_fingerprint": key, "synthetic": synthetic}
        self.identity = "+".join(each.identity for each in self.stores)
        self.generation, self.history, self.is_newest = first.generation, [], False
        self.num_slots = sum(each.num_slots for each in self.stores)
        self._firsts = np.cumsum([0, *map(len, self.stores)])
        self._num_records = int(self._firsts[-1])
        self._check_ids()

    def __reduce__(self) -> tuple[Any, ...]:
        return _joined, (self.stores, self._distinct)

    def __repr__(self) -> str:
        return f"JoinedStores({', '.join(map(repr, self.stores))})"

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards on disk."""
        return sum(each.num_bytes for each in self.stores)

    @cached_property
    def slots(self) -> NDArray[np.int64]:
        """int64 (N,): the row of each record in the arrays of its own store."""
        return np.concatenate([each.slots for each in self.stores])

    @cached_property
    def records(self) -> pa.Table:
        """One row per record, with the column `store`: the name of its store's folder.

        A record with the same samples as one of another store is its duplicate.
        """
        parts = []
        for each in self.stores:
            names = pa.array([each.path.resolve().name] * len(each), pa.string())
            parts.append(each.records.append_column(STORE_COLUMN, names))
        try:
            table = pa.concat_tables(parts, promote_options="default")
        except pa.ArrowTypeError as error:
            raise ConfigError(
                f"{self._names} have a column of one name and different kinds: {error!s:.120}; "
                "join their labels again in one way"
            ) from error
        return _with_copies(table)

    def at(self, identity: str) -> StoreReader:
        """Each store as it was when `identity` was theirs; these where there were others."""
        before = identity.split("+")
        if len(before) != len(self.stores):
            return self
        then = [each.at(own) for each, own in zip(self.stores, before, strict=True)]
        return JoinedStores(then, distinct_patients=self._distinct)

    def read_chunks(self, indices: Any) -> Chunks:  # noqa: ANN401 (as its parent)
        """Read the encoded bytes of records; as `StoreReader.read_chunks`."""
        index = self._checked_indices(indices)
        offsets, lengths = np.empty(len(index), np.int64), np.empty(len(index), np.int64)
        buffers: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        place = 0

        def take(store: StoreReader, here: NDArray[np.int64], own: NDArray[np.int64]) -> None:
            nonlocal place
            buffer, starts, sizes = store.read_chunks(own)
            offsets[here], lengths[here] = starts + place, sizes
            buffers.append(np.pad(buffer, (0, -len(buffer) % _ALIGNMENT)))
            place += len(buffers[-1])

        self._each(index, take)
        return np.concatenate(buffers), offsets, lengths

    def check_digests(self, indices: Any = None) -> None:  # noqa: ANN401 (as its parent)
        """Compare the shards of some records with their digests; as `StoreReader`."""
        index = np.arange(len(self)) if indices is None else self._checked_indices(indices)
        self._each(index, lambda store, here, own: store.check_digests(own))

    def _decode(
        self, index: NDArray[np.int64], out: NDArray[np.int16], *, check: bool, num_threads: int
    ) -> None:
        def decode(store: StoreReader, here: NDArray[np.int64], own: NDArray[np.int64]) -> None:
            out[here] = store.read(own, check=check, num_threads=num_threads)

        self._each(index, decode)

    def _each(
        self,
        index: NDArray[np.int64],
        do: Callable[[StoreReader, NDArray[np.int64], NDArray[np.int64]], None],
    ) -> None:
        """Call with each store that has some of the records, their places, and numbers there."""
        of = np.searchsorted(self._firsts, index, side="right") - 1
        for number in np.unique(of).tolist():
            here = np.flatnonzero(of == number)
            do(self.stores[number], here, index[here] - self._firsts[number])

    def _lead_array(self, name: str) -> NDArray[np.float32]:
        return np.concatenate([getattr(each, name) for each in self.stores])

    @property
    def _names(self) -> str:
        return ", ".join(str(each.path) for each in self.stores)

    def _check(self, keys: Sequence[str]) -> None:
        for what, values in (
            ("preprocessing", [each.manifest["preprocessing"] for each in self.stores]),
            ("codec", [each.codec for each in self.stores]),
            ("identifiers", [each.manifest["identifiers"] for each in self.stores]),
        ):
            other = next((each for each in values if each != values[0]), None)
            if other is not None:
                raise ConfigError(
                    f"stores {self._names} differ in {what}, got {values[0]} and {other}, allowed "
                    "one; convert them with the same options"
                )
        names = [each.path.resolve().name for each in self.stores]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"stores must differ in the names of their folders, got {self._names}; rename one"
            )
        if len(set(keys)) > 1 and not self._distinct:
            raise ConfigError(
                f"stores {self._names} have different pseudonym keys, so a patient of two is not "
                "recognised and may be held out in one and learned in the other; convert them with "
                "one --key-file, or say --assume-distinct-patients where no patient is in two"
            )

    def _check_ids(self) -> None:
        ids = pa.chunked_array([each.records["record_id"].combine_chunks() for each in self.stores])
        twice = len(ids) - pc.count_distinct(ids).as_py()
        if twice:
            raise ConfigError(
                f"{twice:,} records are in two of the stores {self._names}, allowed in one; leave "
                "one store out"
            )


def _joined(stores: Sequence[StoreReader], distinct: bool) -> JoinedStores:
    return JoinedStores(stores, distinct_patients=distinct)


def _with_copies(table: pa.Table) -> pa.Table:
    """Name, as `duplicate_of`, the first record with the same samples in an earlier store."""
    first: dict[str, str] = {}
    columns = (table[name].to_pylist() for name in ("content", "duplicate_of", "record_id"))
    named = []
    for content, known, own in zip(*columns, strict=True):
        original = own if content is None else first.setdefault(content, own)
        named.append(known if known is not None or original == own else original)
    place = table.column_names.index("duplicate_of")
    return table.set_column(place, "duplicate_of", pa.array(named, pa.string()))


def open_stores(paths: Sequence[str | Path], *, distinct_patients: bool = False) -> StoreReader:
    """Open one store, or several as one; each may be STORE@3.

    Raises:
        ConfigError: as `JoinedStores`.
    """
    stores = [open_store(path) for path in paths]
    if len(stores) == 1:
        return stores[0]
    return JoinedStores(stores, distinct_patients=distinct_patients)
