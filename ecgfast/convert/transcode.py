"""A store -> the same records under another codec, bit for bit."""

import hashlib
import shutil
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ecgfast import log
from ecgfast.convert.plan import (
    Plan,
    begun,
    check_free,
    finished,
    freeze,
    thaw,
    work_folder,
)
from ecgfast.convert.pool import Crew
from ecgfast.errors import ConfigError, CorruptStoreError
from ecgfast.store.durable import write_durably
from ecgfast.store.format import (
    LEAD_ARRAYS,
    QUARANTINE,
    RECORDS,
    encode_chunks,
    key_beside,
    passed_over_beside,
    sources_beside,
)
from ecgfast.store.manifest import Manifest, read_manifest
from ecgfast.store.outcomes import Cursor, EncodedRecord, in_columns
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.store.writer import StoreWriter
from ecgfast.vocabulary import Codec

_BATCH_RECORDS = 64
_COPIED = (
    "preprocessing",
    "quality",
    "counts",
    "synthetic",
    "identifiers",
    "key_fingerprint",
    "labels",
    "patients",
    "splits",
    *("retained", "left_out"),
    *("source_files", "passed_over"),  # stores of before have none
)


def transcode(source: Path, out: Path, *, codec: Codec, workers: int) -> Manifest:
    """Encode every record of a store again; the caller holds the lock of `out`.

    Raises:
        CorruptStoreError: the source is damaged.
        ConfigError: `out` is a finished store of something else.
    """
    reader = open_store(source)
    request = hashlib.sha256(f"{reader.identity} {codec}".encode()).hexdigest()
    if finished(out):
        manifest = read_manifest(out)
        if manifest["request"] != request:
            raise ConfigError(f"--out {out} holds another finished store; choose another folder")
        shutil.rmtree(work_folder(out), ignore_errors=True)  # of a crash after the last step
        return manifest
    spec = {"store": str(source.resolve()), "identity": reader.identity, "codec": codec}
    if begun(out):
        plan = thaw(out, spec)
    else:
        check_free(out)
        plan = freeze(out, spec, Plan(work=work_folder(out), num_inputs=len(reader)))
    reader.check_digests()  # the new store's own digests would vouch for what is damaged here
    with StoreWriter(out, plan.work) as writer:
        _encode_all(reader, writer, codec, workers)
    tables = {
        RECORDS: _copy(source / reader.records_name, out / RECORDS),
        QUARANTINE: _copy(source / QUARANTINE, out / QUARANTINE),
    }
    if tables[QUARANTINE] != reader.manifest["files"][QUARANTINE]:
        raise CorruptStoreError(
            f"{source / QUARANTINE} is damaged: its digest is wrong; restore it from a copy"
        )
    for beside in (key_beside, sources_beside, passed_over_beside):
        if beside(source).exists():
            _copy(beside(source), beside(out), mode=0o600)
    content = {name: reader.manifest[name] for name in _COPIED if name in reader.manifest}
    return writer.seal(codec, tables, content | {"request": request})


def _encode_all(reader: StoreReader, writer: StoreWriter, codec: Codec, workers: int) -> None:
    leads = np.stack([getattr(reader, name) for name in LEAD_ARRAYS], axis=1)  # (N, 4, 12)
    position = writer.cursor.position
    work = partial(_encode_batch, path=reader.path, codec=codec)
    with Crew(work, workers) as crew, log.progress("transcode", total=len(reader)) as advance:
        advance(position)
        for chunks in crew.map(_ranges(position, len(reader))):
            records = [
                EncodedRecord(after=Cursor(position=n + 1), chunk=chunk, leads=leads[n], row={})
                for n, chunk in enumerate(chunks, position)
            ]
            writer.add(in_columns(records))
            position += len(chunks)
            advance(len(chunks))
    writer.finish(Cursor(position=len(reader)))


def _ranges(start: int, stop: int) -> Iterator[range]:
    for first in range(start, stop, _BATCH_RECORDS):
        yield range(first, min(first + _BATCH_RECORDS, stop))


def _encode_batch(records: range, path: Path, codec: Codec) -> list[bytes]:
    return encode_chunks(codec, _opened(path).read(records))


@lru_cache(maxsize=1)
def _opened(path: Path) -> StoreReader:
    return open_store(path)


def _copy(source: Path, target: Path, mode: int = 0o644) -> dict[str, int | str]:
    return write_durably(target, [source.read_bytes()], mode=mode)
