"""XML of a stranger: parsed without declarations of its own, within bounds of size and elements.

A document type declaration is passed over and what it points to is never fetched. One with
declarations in the document itself refuses it, so that no entity can be expanded or read elsewhere.
"""

import codecs
import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ecgfast.errors import FormatError
from ecgfast.ingest.files import open_regular, too_large
from ecgfast.records import parse_number

MAX_XML_BYTES = 32 << 20  # ten seconds of 12 leads in decimal text have half a megabyte
# Characters of markup in a document: expat takes half a minute over five million attributes. The
# real files that this was tried on have up to 2,516 and 1,976. In every encoding that expat takes,
# these characters have a byte of ASCII.
_MOST = {b"<": 200_000, b"=": 200_000}
_BUFFER_BYTES = 1 << 17  # of text: longer ones come in parts
# Encodings of East Asia, which expat does not take: these documents are turned into UTF-8 first.
_EAST_ASIAN = re.compile(
    rb"""(?i)<\?xml[^>]{1,80}encoding\s*=\s*["']"""
    rb"""(shift_jis|cp932|windows-31j|euc-jp|gb2312|gbk|gb18030|big5|euc-kr|cp949)["']"""
)
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
        found.append(name.rpartition(":")[2])
        raise _RootFoundError

    head, encoding = _utf8(head)
    parser = expat.ParserCreate(encoding)  # what declares entities is refused when it is read
    parser.StartElementHandler = start
    with suppress(_RootFoundError, expat.ExpatError, ValueError, LookupError):
        parser.Parse(head, False)
    return found[0] if found else None


def read_xml(path: Path) -> Element:
    """Parse a file into elements whose names have no prefix; those of attributes keep theirs.

    Comments and processing instructions are left out.

    Raises:
        FormatError: it is no well-formed XML, has declarations of its own, or is too large.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_XML_BYTES:
            raise too_large(
                f"{path.name}: got {size:,} bytes of XML, allowed {MAX_XML_BYTES:,}; cut the "
                "recording into shorter records"
            )
        content = file.read(size)
    return parse_xml(content, path.name)


def parse_xml(content: bytes, source: str) -> Element:
    """Parse a document; see `read_xml`.

    Args:
        content: the whole document in its own encoding.
        source: named in errors, which repeat nothing of the document.
    """
    content, encoding = _utf8(content)
    for mark, most in _MOST.items():
        if (count := content.count(mark)) > most:
            raise too_large(
                f"{source}: got XML with {count:,} times {mark.decode()}, allowed {most:,}"
            )
    builder = TreeBuilder()
    parser = expat.ParserCreate(encoding)  # half the time of ElementTree's, without namespaces
    parser.buffer_text, parser.buffer_size = True, _BUFFER_BYTES
    parser.StartDoctypeDeclHandler = partial(_refuse_declarations, source)
    parser.SkippedEntityHandler = partial(_refuse_entity, source)
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, FormatError):
            raise
        raise _malformed(error, source) from None
    root: Element = builder.close()
    for element in root.iter():
        if ":" in element.tag:
            element.tag = element.tag.rpartition(":")[2]
    return root


def _refuse_declarations(
    source: str, _: str, __: str | None, ___: str | None, has_declarations: bool
) -> None:
    """Refuse them before the first is read: no declaration can come behind the prolog."""
    if has_declarations:
        raise _damaged(
            f"{source}: the XML has declarations of its own, such as entities, allowed none; "
            "export the file again"
        )


def _refuse_entity(source: str, *_: object) -> None:
    raise _damaged(f"{source}: is no well-formed XML: it has an entity that is not declared")


def _utf8(content: bytes) -> tuple[bytes, str | None]:
    """A document in UTF-8, and this word, where expat does not take its own encoding."""
    match = _EAST_ASIAN.match(content)
    if match is None:
        return content, None
    encoding = match[1].decode().lower()
    known = {"gb2312": "gb18030", "gbk": "gb18030"}.get(encoding, encoding)  # as writers mean it
    return content.decode(known, errors="replace").encode(), "utf-8"


def _malformed(error: Exception, source: str) -> FormatError:
    """The refusal of a document; messages of expat are fixed texts and hold nothing of it."""
    where, why = "", "its encoding is not known"
    if isinstance(error, expat.ExpatError):
        where, why = f" in line {error.lineno:,}", expat.ErrorString(error.code) or "damaged"
    return _damaged(f"{source}: is no well-formed XML{where}: {why}")


def _damaged(message: str) -> FormatError:
    return FormatError(message, reason="the file is damaged")


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
