"""XML of a stranger: parsed by expat, without entities, within bounds of size, depth and elements.

A document type declaration is passed over and what it points to is never fetched; a declaration of
an entity refuses the file, so that nothing can be expanded or read from elsewhere.
"""

import codecs
import os
from contextlib import suppress
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ecgfast.errors import FormatError
from ecgfast.ingest.files import open_regular, too_large
from ecgfast.records import parse_number

MAX_XML_BYTES = 32 << 20  # ten seconds of 12 leads in decimal text have half a megabyte
_MAX_ELEMENTS = 100_000  # of one file: the largest that was seen has 9,000
_MAX_DEPTH = 64
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _RootFoundError(Exception):
    """Stops expat at the first element."""


def root_of(head: bytes) -> str | None:
    """Return the name of an XML document's first element without its prefix, None for other files.

    Args:
        head: the first bytes of the file.
    """
    text = head
    for mark in _MARKS:
        text = text.removeprefix(mark)
    if not text.lstrip(b" \t\r\n\0").startswith(b"<"):
        return None
    found: list[str] = []

    def start(name: str, _: dict[str, str]) -> None:
        found.append(_local(name))
        raise _RootFoundError

    parser = expat.ParserCreate()  # a file that declares entities is refused when it is read
    parser.StartElementHandler = start
    with suppress(_RootFoundError, expat.ExpatError, ValueError, LookupError):
        parser.Parse(head, False)
    return found[0] if found else None


def read_xml(path: Path) -> Element:
    """Parse a file into elements whose names have no namespace.

    Comments and processing instructions are left out.

    Raises:
        FormatError: it is no well-formed XML, declares an entity, or is too large.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_XML_BYTES:
            raise too_large(
                f"{path.name}: got {size:,} bytes of XML, allowed {MAX_XML_BYTES:,}; cut the "
                "recording into shorter records"
            )
        content = file.read(MAX_XML_BYTES + 1)
    return parse_xml(content, path.name)


def parse_xml(content: bytes, source: str) -> Element:
    """Parse a document; see `read_xml`.

    Args:
        content: the whole document in its own encoding.
        source: named in errors, which repeat nothing of the document.
    """
    builder = TreeBuilder()
    depth = elements = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth, elements = depth + 1, elements + 1
        if depth > _MAX_DEPTH or elements > _MAX_ELEMENTS:
            raise too_large(
                f"{source}: got XML of over {_MAX_ELEMENTS:,} elements or {_MAX_DEPTH} levels, "
                "allowed fewer"
            )
        builder.start(_local(name), {_local(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_local(name))

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = _refuse_entity
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.buffer_text = True
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, FormatError):
            raise
        place = f" in line {error.lineno}" if isinstance(error, expat.ExpatError) else ""
        why = expat.ErrorString(error.code) if isinstance(error, expat.ExpatError) else "encoding"
        raise _damaged(f"{source}: is no well-formed XML{place}: {why}") from None
    return builder.close()


def _refuse_entity(*_: str | int | None) -> None:
    raise _damaged("the XML declares an entity, allowed none; export the file again without it")


def _damaged(message: str) -> FormatError:
    return FormatError(message, reason="the file is damaged")


def _local(name: str) -> str:
    """A name without its prefix: writers choose prefixes freely."""
    return name.rpartition(":")[2]


def text_of(element: Element | None, path: str = ".") -> str:
    """Return the text of an element below another one, without blanks around; "" where absent."""
    found = None if element is None else element.find(path)
    return "" if found is None else (found.text or "").strip()


def number_of(
    element: Element | None, path: str, source: str, *, default: float | None = None
) -> float:
    """Return the number in an element.

    Args:
        element: somewhere above it.
        path: to it; the last name is shown in errors.
        source: named in errors, which do not repeat the text: it can be anything.
        default: of an element that is absent or empty.
    Raises:
        FormatError: it holds no finite number, or is absent without a default.
    """
    text = text_of(element, path)
    if not text and default is not None:
        return default
    number = parse_number(text)
    if number is None:
        name = path.rpartition("/")[2]
        raise _damaged(f"{source}: {name} is {'no number' if text else 'absent'}, allowed a number")
    return number


def attribute_of(element: Element | None, path: str, name: str) -> str:
    """Return an attribute of an element below another one, without blanks around; "" if absent."""
    found = None if element is None else element.find(path)
    return "" if found is None else found.get(name, "").strip()
