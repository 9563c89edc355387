"""The list of inputs of a plan, a line each with its slots: written as they are found."""

import json
import shutil
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import xxhash

from ecgfast.convert.plan import INPUTS, OFFSETS, ConvertOptions, Plan, work_folder
from ecgfast.convert.preprocess import num_windows
from ecgfast.errors import EcgfastError
from ecgfast.ingest import InputFile, read_record
from ecgfast.ingest.inventory import Inventory, collision
from ecgfast.ingest.staging import staged
from ecgfast.ingest.wfdb_header import read_header
from ecgfast.store.durable import DurableFile, explained, write_durably
from ecgfast.store.format import num_shards

_WRITTEN_AT_ONCE = 1024  # lines


def write_inputs(
    out: Path,
    items: Iterable[InputFile],
    inventory: Inventory,
    options: ConvertOptions,
    first_slot: int = 0,
) -> Plan:
    """Write the list of inputs as they are found; an error leaves nothing behind.

    Args:
        out: folder of the store.
        items: in the order of the store.
        inventory: counts of files, complete when the last item was taken.
        options: whose windows each input has.
        first_slot: of the first input.
    Returns:
        the plan that `write_plan` makes durable, without a spec.
    Raises:
        FormatError: two inputs have one id.
    """
    work = work_folder(out)
    was_there = work.exists()
    with explained(work):
        work.mkdir(parents=True, exist_ok=True)
    lines = _Lines(options, first_slot)
    file = DurableFile(work / INPUTS, mode=0o600)
    try:
        found = lines.of(items)
        while some := list(islice(found, _WRITTEN_AT_ONCE)):  # an error of a source is none of this
            file.write(some)
        entry = file.finish()
        _refuse_collisions(work / INPUTS, lines.hashes)
        write_durably(work / OFFSETS, [np.array(lines.offsets, "<u8").tobytes()], mode=0o600)
    except BaseException:  # Ctrl-C too
        file.discard()
        if not was_there:
            shutil.rmtree(work, ignore_errors=True)
        raise
    return Plan(
        out=out,
        spec={},
        num_inputs=len(lines.hashes),
        num_slots=lines.num_slots,
        first_slot=first_slot,
        num_files=inventory.num_files,
        passed_over=dict(inventory.passed_over),
        examples=inventory.examples,
        num_bytes=int(entry["bytes"]),
    )


class _Lines:
    """Inputs on their way to a file: nothing of them stays but 8 bytes each."""

    def __init__(self, options: ConvertOptions, first_slot: int) -> None:
        self._options, self._first_shard = options, num_shards(first_slot)
        self.num_slots = first_slot
        self.hashes = array("Q")  # of the record ids
        self.offsets: list[int] = []  # of the line that fills the first slot of each unit

    def of(self, items: Iterable[InputFile]) -> Iterator[bytes]:
        """Yield the line of each input."""
        num_bytes = 0
        items = items if self._options.window == "first" else staged(items)  # they are read
        for item in items:
            slots = num_slots(item, self._options)
            begun = num_shards(self.num_slots + slots) - self._first_shard - len(self.offsets)
            self.offsets += [num_bytes] * begun
            place = [item.place, str(item.source), item.row, *item.size_and_mtime()]
            line = [item.record_id, *place, len(self.hashes), self.num_slots, slots]
            data = json.dumps(line).encode() + b"\n"
            self.num_slots += slots
            self.hashes.append(_hash(item.record_id))
            num_bytes += len(data)
            yield data


def num_slots(item: InputFile, options: ConvertOptions) -> int:
    """Rows that an input fills."""
    if options.window == "first":
        return 1
    try:
        return num_windows(*_length(item))
    except EcgfastError:  # its unit refuses it
        return 1


def _length(item: InputFile) -> tuple[int, float]:
    """Timesteps and rate of a recording: what a WFDB header promises; other files are read."""
    if item.path.suffix.lower() == ".hea" and item.path.is_file():
        header = read_header(item.path)
        is_plain = all(each.samples_per_frame == 1 and not each.skew for each in header.signals)
        if is_plain and header.num_timesteps > 0 and not header.segments:
            return header.num_timesteps, header.sampling_rate_hz
    record = read_record(item)
    return record.signal.shape[1], record.sampling_rate_hz


def _refuse_collisions(path: Path, hashes: "array[int]") -> None:
    """Refuse two inputs of one record_id: those of one hash are compared as text."""
    ordered = np.sort(np.frombuffer(hashes, np.uint64))
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not twice:
        return
    first_of: dict[str, Path] = {}
    with path.open("rb") as file:
        for line in file:
            record_id, name, *_ = json.loads(line)
            if _hash(record_id) in twice:
                if record_id in first_of:
                    raise collision(record_id, first_of[record_id], Path(name))
                first_of[record_id] = Path(name)


def _hash(record_id: str) -> int:
    return xxhash.xxh3_64_intdigest(record_id.encode())
