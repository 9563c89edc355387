"""The journal of an unfinished store: one checked line per finished shard."""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgfast.store.durable import explained, sync_folder


@dataclass(frozen=True, kw_only=True, order=True)
class Cursor:
    """Where to go on: the next outcome of the next input.

    Attributes:
        position: index in the frozen input list.
        outcome: outcomes of that input (its windows) that are done already; behind the last one
            is the next input.
    """

    position: int = 0
    outcome: int = 0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished shard.

    Attributes:
        num_records: records in it.
        cursor: where the input goes on after it.
        columns: label columns that its rows hold, name -> "number", "bool" or "text".
        files: relative path -> {"bytes", "sha256"} of what was written.
    """

    num_records: int
    cursor: Cursor
    columns: dict[str, str]
    files: dict[str, dict[str, Any]]


class Journal:
    """Entries of finished shards; a line torn by a crash is cut off when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        if path.exists():
            self._load()

    def append(self, entry: Entry) -> None:
        """Add an entry and make it durable."""
        body = {
            "num_records": entry.num_records,
            "cursor": [entry.cursor.position, entry.cursor.outcome],
            "columns": entry.columns,
            "files": entry.files,
        }
        text = json.dumps(body, sort_keys=True)
        fresh = not self.path.exists()
        with explained(self.path):
            with open(self.path, "ab", opener=_open_no_link) as file:
                file.write(f"{zlib.crc32(text.encode()):08x} {text}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                sync_folder(self.path.parent)
        self.entries.append(entry)

    def _load(self) -> None:
        good = 0
        with self.path.open("rb") as file:
            for line in file:
                entry = _parse(line)
                if entry is None:
                    break
                self.entries.append(entry)
                good += len(line)
        with explained(self.path):
            os.truncate(self.path, good)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _parse(line: bytes) -> Entry | None:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    body = json.loads(text)
    position, outcome = body.pop("cursor")
    return Entry(cursor=Cursor(position=position, outcome=outcome), **body)
