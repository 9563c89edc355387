"""What a file format is: how its files are recognised, what reads them, and what is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ecgfast.ingest.files import open_regular
from ecgfast.ingest.vendor.xml_tree import root_of
from ecgfast.records import EcgRecord

HEAD_BYTES = 1 << 16

# Names of regular files of a folder by suffix, without dot and in lower case.
NamesBySuffix = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Head:
    """The first bytes of a file: all that recognition sees of it.

    Attributes:
        content: at most `HEAD_BYTES`.
        name: of the file, without its folder.
    """

    content: bytes
    name: str

    @cached_property
    def xml_root(self) -> str | None:
        """Name of the first XML element without its prefix, None where the file is no XML."""
        return root_of(self.content)


def read_head(path: Path) -> Head:
    """Read what recognition needs of a file.

    Raises:
        FormatError: it is no regular file.
        OSError: it cannot be opened, or the share fails.
    """
    with open_regular(path, buffering=0) as file:
        return Head(file.read(HEAD_BYTES), path.name)


def _one_record(path: Path) -> None:
    """A file of one record has no rows."""


def _no_companions(folder: str, names: NamesBySuffix) -> dict[str, list[str]]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format.

    Attributes:
        name: for people, such as "GE MUSE XML".
        tried: whether its reader was tried on files of real devices, not only on files that our
            own tests write.
        keeps: what of a file is kept, for `convert --list-formats`.
        recognises: whether a file that begins so is of this format. Names decide nothing: suffixes
            are shared by many formats.
        read: path, record_id and row (None in files of one record) -> the record with every
            timestep of the source. Raises FormatError for what is no 12-lead ECG: its `reason`
            enters quarantine.csv, and its text repeats nothing of the file but numbers.
        num_rows: the number of records in a file, None for a file of one record without a row.
        suffixes: in lower case with dot, of formats without a signature whose files no other
            format has: such a file is of this format without a look, so that a damaged one is
            refused when it is read, with a reason.
        has_sidecar: whether `read` opens the file that `sidecar` describes.
        companions: path of a folder and names of its files -> those that belong to records of
            this format, or are parts of them, by kind.
    """

    name: str
    tried: bool
    keeps: str
    recognises: Callable[[Head], bool]
    read: Callable[[Path, str, int | None], EcgRecord]
    num_rows: Callable[[Path], int | None] = _one_record
    suffixes: tuple[str, ...] = ()
    has_sidecar: bool = False
    companions: Callable[[str, NamesBySuffix], dict[str, list[str]]] = _no_companions
