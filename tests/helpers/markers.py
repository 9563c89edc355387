"""Markers in place of names: written into inputs, and looked for in all that comes out of them."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import zarr
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Five letters: among a million of base64, three and three digits came by chance now and then.
MARKER = re.compile(rb"QZXVK\d{3}|73[0-9]{3,4}00731", re.IGNORECASE)


class Markers:
    """Gives each place a marker of its own."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def __call__(self, place: str) -> str:
        self.places.append(place)
        return f"QZXVK{len(self.places):03d}"

    def number(self, place: str) -> int:
        """A marker that is a number."""
        self.places.append(place)
        return int(f"73{len(self.places):03d}00731")


def texts(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and everything in it that compression or coding hides."""
    content = path.read_bytes()
    yield content
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield repr(table.schema).encode() + repr(table.schema.metadata).encode()
        yield repr(pq.read_metadata(path).metadata).encode()
        yield "\n".join(map(str, table.to_pylist())).encode(errors="surrogateescape")
    elif path.suffix == ".arrow":
        stream = pa.ipc.open_stream(content)
        yield repr(stream.schema.metadata).encode() + str(stream.read_all().to_pylist()).encode()
    elif path.suffix == ".html":
        for data in re.findall(rb"data:[^;]+;base64,([A-Za-z0-9+/=]+)", content):
            yield from _picture(base64.b64decode(data))
    elif path.suffix == ".png":
        yield from _picture(content)
    elif path.name == "zarr.json" and path.parent.suffix == ".zarr":
        group = zarr.open_group(path.parent, mode="r")
        yield repr(dict(group.attrs)).encode()
        yield repr([(name, dict(array.attrs)) for name, array in group.arrays()]).encode()
    elif "tfevents" in path.name:
        events = EventAccumulator(str(path)).Reload()
        yield repr(events.Tags()).encode()


def _picture(content: bytes) -> Iterator[bytes]:
    yield content
    if content.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(content)) as picture:
            yield repr(picture.info).encode()


def search(folder: Path, allowed: set[Path]) -> tuple[list[str], int]:
    """Hits below a folder, names of files included, and how many bytes were searched.

    Each text is also searched without its zeros, as UTF-16 has them between letters.
    """
    hits: list[str] = []
    searched = 0
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix().encode()
        found = set(MARKER.findall(relative))
        if path.is_file() and path not in allowed:
            for text in texts(path):
                searched += len(text)
                found |= set(MARKER.findall(text)) | set(MARKER.findall(text.replace(b"\0", b"")))
        if found and path not in allowed:
            hits.append(f"{relative.decode()}: {sorted(found)}")
    return hits, searched
