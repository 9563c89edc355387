"""What a seal needs of the rows of all units: in files, so that it takes little memory by record.

The files have no name and are mapped for reading: the kernel may take their pages back at any time.
They are gone as soon as nothing uses the arrays and tables that were made of them.
"""

import json
import mmap
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.convert.measures import FINGERPRINT_BYTES, joined_fingerprints
from ecgfast.convert.plan import Plan, work_folder
from ecgfast.store.durable import explained
from ecgfast.store.table import PENDING, read_rows, row_groups

DRAWN = ("flags", "quality", "duplicate_of", "split", "fold")  # columns that no unit knows alone
_ASKED = pa.schema(
    PENDING.field(name)
    for name in (
        *("record_id", "patient_id", "patient_key", "site", "ejection_fraction", "content"),
        *("start_timestep", "amplitude_uv", *DRAWN),
    )
)
_NO_FINGERPRINT = b"\xff" * FINGERPRINT_BYTES  # no beats


class RowsOnDisk:
    """Rows of an array that are added a few at a time, and mapped when all are there.

    Args:
        folder: where the file is made.
        dtype: of the array.
        width: its shape behind the rows.
    """

    def __init__(self, folder: Path, dtype: type[np.generic], *width: int) -> None:
        self._folder, self._dtype, self._width = folder, dtype, width
        with explained(folder):
            self._file = TemporaryFile(dir=folder)  # noqa: SIM115 (`mapped`)

    def add(self, rows: NDArray[Any]) -> None:
        """Add rows of the array's type."""
        with explained(self._folder):
            self._file.write(np.ascontiguousarray(rows, self._dtype).data)

    def mapped(self) -> NDArray[Any]:
        """All rows, read-only."""
        data = _mapped(self._file, self._folder)
        return np.frombuffer(data, self._dtype).reshape(-1, *self._width)


def table_on_disk(folder: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """A table from its parts, as mapped from a file that holds them one behind another."""
    with explained(folder):
        file = TemporaryFile(dir=folder)  # noqa: SIM115 (`_mapped`)
        stream = pa.ipc.new_stream(file, schema)
    for batch in batches:  # what these raise is not of this file
        with explained(folder):
            stream.write_batch(batch)
    with explained(folder):
        stream.close()
    return pa.ipc.open_stream(pa.py_buffer(_mapped(file, folder))).read_all()


def _mapped(file: IO[bytes], folder: Path) -> mmap.mmap | bytes:
    with file, explained(folder):
        file.flush()
        if not os.fstat(file.fileno()).st_size:
            return b""
        # Private, as some shares (FUSE with direct_io) refuse what is shared.
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)


@dataclass
class Collected:
    """What one pass over the rows of all units collects.

    Attributes:
        num_converted: inputs with records: one can give many windows.
        left_out: what stays out of the store, by kind.
        segments: number of a joined record -> the record ids of its segments.
        table: N rows of what a seal asks for.
        slots: (N,) int64.
        recordings: (N,) int64, the number of the first window of each recording.
        packed: (N, bytes) uint8, fingerprints.
    """

    num_converted: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    segments: dict[int, list[str]] = field(default_factory=dict)
    table: pa.Table = field(init=False)
    slots: NDArray[np.int64] = field(init=False)
    recordings: NDArray[np.int64] = field(init=False)
    packed: NDArray[np.uint8] = field(init=False)


def collect(plan: Plan) -> Collected:
    """Read the rows of all units once."""
    work, found = work_folder(plan.out), Collected()
    slots, recordings = RowsOnDisk(work, np.int64), RowsOnDisk(work, np.int64)
    packed = RowsOnDisk(work, np.uint8, FINGERPRINT_BYTES)

    def asked() -> Iterator[pa.Table]:
        count, first, last = 0, -1, -1  # rows; first row of the last recording, and its position
        for unit in plan.units:
            rows = read_rows(plan.unit_file(unit))
            if rows["segments"].null_count < rows.num_rows:
                names = enumerate(rows["segments"].to_pylist(), count)
                found.segments |= {number: json.loads(each) for number, each in names if each}
            positions = rows["position"].to_numpy()
            begins = np.diff(positions, prepend=last) != 0
            firsts = np.append(first, count + np.flatnonzero(begins))
            recordings.add(firsts[np.cumsum(begins)])
            found.num_converted += len(firsts) - 1
            if rows.num_rows:
                first, last = int(firsts[-1]), int(positions[-1])
            for words in rows["left_out"].to_pylist():
                found.left_out.update(words.split(";") if words else ())
            slots.add(rows["row"].to_numpy())
            given = pc.fill_null(rows["fingerprint"], _NO_FINGERPRINT).to_pylist()
            packed.add(joined_fingerprints(given))
            count += rows.num_rows
            yield rows.select(_ASKED.names)

    groups = (group.combine_chunks() for group in row_groups(asked(), _ASKED))
    batches = (batch for group in groups for batch in group.to_batches())
    found.table = table_on_disk(work, batches, _ASKED)
    found.slots, found.recordings = slots.mapped(), recordings.mapped()
    found.packed = packed.mapped()
    return found
