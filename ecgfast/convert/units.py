"""A unit of work: 1024 slots, one shard; done by any process in any order, twice if need be.

A unit depends on the plan alone and leaves nothing behind but its files, each written under a name
of its own and renamed, the one that says that it is finished last. So it takes no lock, and two
processes that do the same unit write the same bytes.
"""

import errno
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast.convert.plan import Plan, read_plan
from ecgfast.convert.processes import Processes
from ecgfast.convert.remote import put_shard
from ecgfast.convert.work import EncodedRecord, Refusal, encode_inputs
from ecgfast.errors import EcgfastError
from ecgfast.ingest.staging import staged
from ecgfast.records import NUM_LEADS
from ecgfast.store.csv_files import csv_lines
from ecgfast.store.durable import DurableFile, explained, write_durably
from ecgfast.store.format import (
    LEAD_ARRAYS,
    SHARD_RECORDS,
    SIGNALS,
    encode_chunks,
    shard_files,
    with_crc32c,
)
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.store.shards import pack_shard_index
from ecgfast.store.table import PendingRows, read_text

_BATCH_RECORDS = 64  # decoded and encoded at a time
_MOST_WAITING = 4096  # units that an executor was given and has not done: 2 KB each
_NO_PROCESSES = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


class UnitFacts(NamedTuple):
    """What the file of a finished unit says beside its rows.

    Attributes:
        num_inputs: inputs whose first slot lies in it.
        num_records: records in its shard.
        files: path below the store -> {"bytes", "sha256"} of its five files; none without records.
        kinds: label columns of its rows, name -> "number", "bool" or "text".
    """

    num_inputs: int
    num_records: int
    files: dict[str, dict[str, Any]]
    kinds: dict[str, str]


def convert_unit(out: str | Path, unit: int) -> int:
    """Convert the inputs of one unit, or transcode its records; nothing if it is finished already.

    Args:
        out: folder of the store, whose plan was written.
        unit: its number, from 0.
    Returns:
        inputs whose first slot lies in it: all that a worker sends.
    Raises:
        ResumeError: there is no plan, or one of other versions; a file of it is damaged.
        EcgfastError: the disk is full or not writable, or a source has gone.
        OSError: the share fails.
    """
    plan = read_plan(Path(out))
    return _finished(plan, unit, _encoded(plan, unit))


def _encoded(plan: Plan, unit: int) -> Callable[[], None] | None:
    """Encode the records of a unit; returns what finishes it, None where it is finished already."""
    if plan.unit_file(unit).exists():
        return None
    shard = _Shard(plan, unit)
    try:
        return (_transcode if "store" in plan.spec else _convert)(plan, unit, shard)
    except BaseException:  # Ctrl-C too
        shard.discard()
        raise


def _finished(plan: Plan, unit: int, finish: Callable[[], None] | None) -> int:
    if finish is not None:
        finish()
    return read_unit(plan, unit).num_inputs


def read_unit(plan: Plan, unit: int) -> UnitFacts:
    """Read what a finished unit says of itself.

    Raises:
        FileNotFoundError: it is not finished.
    """
    return UnitFacts(*json.loads(read_text(plan.unit_file(unit))["facts"]))


def _convert(plan: Plan, unit: int, shard: "_Shard") -> Callable[[], None]:
    slots, inputs = plan.slots(unit), list(plan.inputs(unit))
    rows, quarantine, sources = PendingRows(), "", ""
    items = staged(each.item for each in inputs)
    here = (each._replace(item=item) for item, each in zip(items, inputs, strict=True))
    for block in encode_inputs(here, slots, plan.options, plan.pseudonyms()):
        records = [each for each in block if isinstance(each, EncodedRecord)]
        shard.add(
            [each.row["row"] for each in records],
            [each.chunk for each in records],
            [each.leads for each in records],
        )
        rows.add([each.row for each in records])
        quarantine += csv_lines(each.row for each in block if isinstance(each, Refusal))
        sources += csv_lines(each.source for each in block)
    num_inputs = sum(1 for each in inputs if each.slots.start in slots)
    text = {"quarantine": quarantine, "sources": sources}
    return partial(_finish, plan, unit, num_inputs, shard, rows, text)


def _transcode(plan: Plan, unit: int, shard: "_Shard") -> Callable[[], None]:
    """Encode records of another store again, bit for bit, without the holes between them."""
    reader, records = _opened(Path(plan.spec["store"])), plan.slots(unit)
    for start in range(0, len(records), _BATCH_RECORDS):
        some = records[start : start + _BATCH_RECORDS]
        leads = [getattr(reader, name)[some.start : some.stop] for name in LEAD_ARRAYS]
        chunks = encode_chunks(plan.spec["codec"], reader.read(some))
        shard.add(some, chunks, np.stack(leads, axis=1))
    return partial(_finish, plan, unit, len(records), shard, PendingRows(), {})


@lru_cache(maxsize=1)
def _opened(path: Path) -> StoreReader:
    return open_store(path)


def _finish(
    plan: Plan, unit: int, num_inputs: int, shard: "_Shard", rows: PendingRows, text: dict[str, str]
) -> None:
    """Write the unit's own file, after all that it names."""
    try:
        files = put_shard(plan, unit, shard.finish())
    finally:
        shard.discard()
    facts = UnitFacts(num_inputs, shard.num_records, files, rows.kinds)
    packed = rows.pack(text | {"facts": json.dumps(facts)})
    write_durably(plan.unit_file(unit), [packed], mode=0o600, shared=True)


class _Shard:
    """The files of a shard: chunks go straight to a temporary file."""

    def __init__(self, plan: Plan, unit: int) -> None:
        self._out, self._first = plan.out, plan.slots(unit).start
        self._names = shard_files(unit)
        with explained(plan.out):
            for name in self._names.values():
                (plan.out / name).parent.mkdir(parents=True, exist_ok=True)
        self._file = DurableFile(plan.out / self._names["signal"], shared=True)
        self._rows: list[int] = []
        self._lengths: list[int] = []
        self._leads = np.zeros((SHARD_RECORDS, len(LEAD_ARRAYS), NUM_LEADS), "<f4")

    @property
    def num_records(self) -> int:
        """Records taken so far."""
        return len(self._rows)

    def add(
        self,
        slots: Sequence[int],
        chunks: list[bytes],
        leads: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    ) -> None:
        """Take the next n records: slots, ascending, encoded signals, and leads (n, 4, 12)."""
        if slots:
            rows = [slot - self._first for slot in slots]
            self._file.write(chunks)
            self._leads[rows] = leads
            self._rows += rows
            self._lengths += map(len, chunks)

    def finish(self) -> dict[str, dict[str, int | str]]:
        """Make the files durable; returns path -> entry, nothing for a shard without records."""
        if not self._rows:
            for name in self._names.values():  # of an attempt when an input could still be read
                (self._out / name).unlink(missing_ok=True)
            return {}
        self._file.write([pack_shard_index(self._rows, self._lengths)])
        # At once: the disk then commits them together, and most of a unit's waiting is for that.
        with ThreadPoolExecutor(1 + len(LEAD_ARRAYS)) as pool:
            entries = {self._names["signal"]: pool.submit(self._file.finish)}
            for number, array in enumerate(LEAD_ARRAYS):
                data = [with_crc32c(self._leads[:, number].tobytes())]
                name = self._names[array]
                entries[name] = pool.submit(write_durably, self._out / name, data, shared=True)
        return {name: entry.result() for name, entry in entries.items()}

    def discard(self) -> None:
        """Leave no temporary file behind."""
        self._file.discard()


def remove_temporaries(out: Path) -> None:
    """Remove what killed processes left of shards in an unfinished store."""
    for path in (out / SIGNALS).glob("*/.c.*.tmp"):
        path.unlink(missing_ok=True)


def run_units(plan: Plan, units: range, workers: int, executor: Executor | None) -> None:
    """Do units of a plan, here or in other processes.

    Args:
        plan: of the store.
        units: their numbers.
        workers: the most processes to start; with 1, all is done here.
        executor: does it instead.
    Raises:
        EcgfastError: a worker was killed, or cannot be started; and as `convert_unit`.
    """
    from ecgfast import log  # with it comes rich, which no worker needs

    with log.progress("convert", total=plan.num_inputs) as advance:
        if executor is not None:
            done = _done_by(executor, plan.out, units)
        elif min(workers, len(units)) <= 1:
            done = _done_here(plan, units)
        else:
            done = _done_by_processes(min(workers, len(units)), plan.out, units)
        for num_inputs in done:
            advance(num_inputs)


def _done_here(plan: Plan, units: Iterable[int]) -> Iterator[int]:
    """Yield what units return; while the disk commits one, the next is encoded."""
    with ThreadPoolExecutor(1) as disk:
        before: Future[int] | None = None
        for unit in units:
            finish = _encoded(plan, unit)
            if before is not None:
                yield before.result()
            before = disk.submit(_finished, plan, unit, finish)
        if before is not None:
            yield before.result()


def _done_by(executor: Executor, out: Path, units: Iterable[int]) -> Iterator[int]:
    """Yield what units return as they are done; an error cancels what has not begun."""
    waiting: set[Future[int]] = set()
    rest = iter(units)
    try:
        while True:
            for unit in islice(rest, _MOST_WAITING - len(waiting)):
                waiting.add(executor.submit(convert_unit, str(out), unit))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
    finally:
        for each in waiting:
            each.cancel()


def _done_by_processes(workers: int, out: Path, units: range) -> Iterator[int]:
    try:
        with Processes(workers) as pool:
            yield from _done_by(pool, out, units)
    except BrokenProcessPool as error:
        raise EcgfastError(
            "a worker process was killed, most often for want of memory; run the same command "
            "again with fewer --workers, it resumes where it stopped. If its own error stands "
            'above: a script that converts with several workers needs `if __name__ == "__main__":`'
        ) from error
    except OSError as error:
        if error.errno not in _NO_PROCESSES:
            raise
        raise EcgfastError(
            f"{workers} worker processes cannot be started: {error.strerror}; give fewer "
            "--workers, or raise the limits of `ulimit -n` and `ulimit -u`"
        ) from error
