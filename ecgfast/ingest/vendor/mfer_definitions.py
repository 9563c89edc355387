"""The definitions of an MFER file: which are in force for which frame of samples.

A file is a row of definitions, each a tag, a length and a value, in force for what follows; a frame
of samples takes those before it. Channels can override them. Names, comments, events and UIDs are
passed over, whatever their text encoding.
Source: ISO 22077-1 (MFER part 1).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from ecgfast.errors import FormatError
from ecgfast.ingest import files
from ecgfast.ingest.files import cut_short, too_large

_MAX_CHANNELS = 1024
_MAX_DEFINITIONS = 100_000
_MAX_FRAMES = 1000
_LONGEST_OPEN = 1 << 16  # bytes: definitions of one channel
_LONGEST_TEXT = 256  # bytes: some encodings take long for long texts


class Tag(IntEnum):
    """What a definition is about."""

    ORDER = 0x01
    CODING = 0x03
    BLOCK = 0x04
    CHANNELS = 0x05
    SEQUENCES = 0x06
    POINTER = 0x07
    KIND = 0x08
    LEAD = 0x09
    TYPE = 0x0A
    INTERVAL = 0x0B
    RESOLUTION = 0x0C
    OFFSET = 0x0D
    COMPRESSION = 0x0E
    FILTER = 0x11
    NULL = 0x12
    DEVICE = 0x17
    SAMPLES = 0x1E
    CHANNEL = 0x3F
    END = 0x80
    ID = 0x82
    AGE = 0x83
    SEX = 0x84
    TIME = 0x85


_OF_CHANNELS = {
    *(Tag.BLOCK, Tag.SEQUENCES, Tag.KIND, Tag.LEAD, Tag.TYPE, Tag.INTERVAL),
    *(Tag.RESOLUTION, Tag.OFFSET, Tag.NULL),
}
_OF_FILE = {Tag.DEVICE, Tag.ID, Tag.AGE, Tag.SEX, Tag.TIME}


@dataclass(frozen=True)
class Value:
    """The bytes of a definition, with the byte order and text encoding in force where it stands."""

    content: bytes
    big_endian: bool
    encoding: str = "ascii"

    def number(self, start: int = 0, end: int | None = None, *, signed: bool = False) -> int:
        """Return some of the bytes as an integer."""
        order: Literal["big", "little"] = "big" if self.big_endian else "little"
        return int.from_bytes(self.content[start:end], order, signed=signed)

    @property
    def text(self) -> str:
        """The value as text: for the codes that are kept of it, never for whole texts."""
        content = self.content[:_LONGEST_TEXT]
        try:
            return content.decode(self.encoding, errors="backslashreplace")
        except (LookupError, UnicodeError):  # the file names an encoding that is none
            return content.decode("latin-1")

    @property
    def quantity(self) -> tuple[int, float]:
        """Code of a unit, and the number: an exponent of 10 and a mantissa."""
        exponent = int.from_bytes(self.content[1:2], "big", signed=True)
        return self.content[0], self.number(2, signed=True) * 10.0**exponent


Definitions = dict[int, Value]


@dataclass
class Frame:
    """Samples, with the definitions of each channel and the timestep at which they begin."""

    channels: list[Definitions]
    samples: bytes
    big_endian: bool
    pointer: int | None


@dataclass
class Parser:
    """The definitions in force while a file is read from begin to end."""

    source: str
    big_endian: bool = True
    encoding: str = "ascii"
    num_channels: int = 1
    num_definitions: int = 0
    pointer: int | None = None
    common: Definitions = field(default_factory=dict)
    own: dict[int, Definitions] = field(default_factory=dict)  # of one channel
    of_file: Definitions = field(default_factory=dict)
    filters: list[str] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)

    def take(self, content: bytes, channel: int | None = None) -> None:
        """Take the definitions of a file, or of one channel."""
        for tag, number, part in _definitions(content, self.source):
            self.num_definitions += 1
            if self.num_definitions > _MAX_DEFINITIONS or len(self.frames) > _MAX_FRAMES:
                raise too_large(
                    f"{self.source}: got over {_MAX_DEFINITIONS:,} definitions or {_MAX_FRAMES:,} "
                    "frames, allowed fewer"
                )
            value = Value(part, self.big_endian, self.encoding)
            if tag == Tag.CHANNEL and channel is None:
                self.take(part, number)
            elif tag in _OF_CHANNELS:
                definitions = self.common if channel is None else self.own.setdefault(channel, {})
                definitions.pop(tag, None)  # a definition without a value takes back the last one
                if part:
                    definitions[tag] = value
            elif channel is None:
                self._take_of_file(tag, value)

    def _take_of_file(self, tag: int, value: Value) -> None:
        if tag == Tag.ORDER:
            self.big_endian = value.number() == 0
        elif tag == Tag.CODING:
            self.encoding = value.content.decode("ascii", errors="ignore").strip("\0 ") or "ascii"
        elif tag == Tag.CHANNELS:
            self.num_channels, self.own = value.number() or 1, {}
            if self.num_channels > _MAX_CHANNELS:
                raise too_large(
                    f"{self.source}: got {self.num_channels:,} channels, allowed {_MAX_CHANNELS:,}"
                )
        elif tag == Tag.POINTER:
            self.pointer = value.number() if value.content else None
        elif tag == Tag.COMPRESSION and value.number(0, 2):
            raise not_read(self.source, "is compressed (tag 0Eh)")
        elif tag == Tag.SAMPLES:
            channels = [self.common | self.own.get(each, {}) for each in range(self.num_channels)]
            self.frames.append(Frame(channels, value.content, self.big_endian, self.pointer))
            self.pointer = None
        elif tag == Tag.FILTER:  # one definition for each filter
            self.filters.append(value.text)
        elif tag in _OF_FILE:
            self.of_file[tag] = value


def _definitions(content: bytes, source: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield tag, channel and value of each definition up to the end mark."""
    at = 0
    while at < len(content) and content[at] != Tag.END:
        if content[at] == 0:  # fills up space
            at += 1
            continue
        tag, number, start, end, at = _definition(content, at, source)
        yield tag, number, content[start:end]


def _definition(content: bytes, at: int, source: str) -> tuple[int, int, int, int, int]:
    """Return tag, channel, begin and end of the value of a definition, and begin of the next."""
    tag, number = content[at], 0
    at += 1
    if tag == Tag.CHANNEL:
        more = True
        while more:
            more, number = content[at] > 0x7F, number << 7 | content[at] & 0x7F
            at += 1
    length = content[at]
    at += 1
    if length == 0x80:  # open: definitions up to two zeros
        end = at
        while content[end : end + 2] != b"\0\0":
            end = end + 1 if content[end] == 0 else _definition(content, end, source)[-1]
            if end - at > _LONGEST_OPEN:
                raise too_large(f"{source}: got an open definition of over {_LONGEST_OPEN} bytes")
        return tag, number, at, end, end + 2
    if length > 0x80:
        size = length & 0x7F
        length = int.from_bytes(content[at : at + size], "big")
        at += size
    if at + length > len(content):
        raise cut_short(
            f"{source}: tag {tag:02X}h promises {length} bytes, {max(len(content) - at, 0)} are "
            "left; the copy is cut short, copy it again"
        )
    return tag, number, at, at + length, at + length


def not_read(source: str, what: str) -> FormatError:
    """The refusal of a coding that no reader here knows."""
    return files.not_read(f"{source}: {what}, which is not read; export the ECG in another format")
