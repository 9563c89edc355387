"""Patients and keyed pseudonyms: stable under one key, without it they name nobody.

Two ids are one patient where a record of one is a duplicate of a record of the other.
"""

import datetime
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.records import NO_PATIENT
from ecgfast.store.durable import explained, write_durably
from ecgfast.store.format import PSEUDONYM, ROW_TYPES, SHIFTED_DATE
from ecgfast.vocabulary import PatientIds

if TYPE_CHECKING:
    import pyarrow as pa

    from ecgfast.store.reader import StoreReader

KEY_BYTES = 32
_LARGEST = 1 << 10  # bytes of a file of 64 digits, with what editors put around them
LONGEST_SHIFT = 364  # days: a shifted date is never in the future
UNNAMED = "\0"  # begins the key of a patient who is known only by a record


@dataclass(frozen=True)
class Pseudonyms:
    """HMAC-SHA256 of ids under one key, cut to 128 bits.

    Attributes:
        key: 32 random bytes.
        keep: give readable ids back unchanged (`--keep-identifiers`).
        patient_ids: "site" where each hospital numbers its own patients, "global" where one
            number is one person everywhere.
    """

    key: bytes
    keep: bool = False
    patient_ids: PatientIds = "site"

    def patient(self, readable: str, site: str | None) -> str:
        """The stored id of a patient: of his hospital's number, unless numbers are global.

        Args:
            readable: the id as the source has it.
            site: of the record, None where it is unknown.
        """
        return self.of("patient", self.patient_key(readable, site))

    def patient_key(self, readable: str, site: str | None) -> str:
        """A readable key that only this patient has: SITE/ID where ids belong to a site.

        A % and a / of the site are written as %25 and %2F: the first / ends it.
        """
        return f"{self._before(site)}{readable}"

    def readable(self, key: str, site: str | None) -> str:
        """The id of a patient from his key and site, as `patient_key` was given them."""
        return key.removeprefix(self._before(site))

    def _before(self, site: str | None) -> str:
        if self.patient_ids == "global" or site is None:
            return ""
        return before_id(site)

    def of(self, kind: str, readable: str) -> str:
        """The pseudonym of an id.

        Args:
            kind: "record" or "patient"; the same text gives unrelated pseudonyms in two kinds.
            readable: the id as the source has it.
        """
        return readable if self.keep else self.digest(kind, readable).hex()[:32]

    def digest(self, kind: str, text: str) -> bytes:
        """The whole HMAC-SHA256 of a text in one domain, whether ids are kept or not."""
        return hmac.digest(self.key, f"{kind}\0{text}".encode(), hashlib.sha256)

    def erased(self, record_id: str) -> str:
        """By which a recording is known that was erased: of the id that the store had."""
        return self.digest("erased", record_id).hex()[:32]

    @property
    def fingerprint(self) -> str:
        """Differs from key to key and does not reveal them."""
        return self.digest("fingerprint", "").hex()[:16]


def before_id(site: str) -> str:
    """The prefix of the key of a patient whose id belongs to a site."""
    return site.replace("%", "%25").replace("/", "%2F") + "/"


def key_of_unnamed(record_id: str) -> str:
    """The key of the patient of a record that names none, from the record's readable id."""
    return f"{UNNAMED}{record_id}"


def read_key(path: Path, *, warn: bool = True) -> bytes:
    """Read a pseudonym key, and warn where other users may read it too.

    Raises:
        ConfigError: the file is missing, cannot be read, or holds no key.
    """
    try:
        content = _read_regular(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"pseudonym key {path}: no such file; give the key of this store with --key-file"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"pseudonym key {path}: cannot be read: {error.strerror}; give a file that can be, "
            "with --key-file"
        ) from error
    try:
        key = bytes.fromhex(content.decode().strip())
    except ValueError as error:
        raise ConfigError(f"pseudonym key {path}: expected {2 * KEY_BYTES} hex digits") from error
    if len(key) != KEY_BYTES:
        raise ConfigError(f"pseudonym key {path}: got {len(key)} bytes, expected {KEY_BYTES}")
    if not any(key):
        raise ConfigError(
            f"pseudonym key {path}: got only zeros, which anybody can guess; name a file that does "
            "not exist, and a key is made there"
        )
    if warn and path.stat().st_mode & 0o077:
        from ecgfast import log  # with it comes rich, which no worker needs

        log.warning(f"pseudonym key {path}: other users may read or write it; run chmod 600 {path}")
    return key


def _read_regular(path: Path) -> bytes:
    """The first bytes of a file; a pipe would wait for its writer, a device might never end."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
            raise ConfigError(f"pseudonym key {path}: got {kind}, allowed a file; name one")
        return os.read(fd, _LARGEST)
    finally:
        os.close(fd)


def read_or_create_key(path: Path) -> bytes:
    """Read the key, or make one that only this user may read (mode 0600)."""
    if not path.exists():
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, [secrets.token_hex(KEY_BYTES).encode() + b"\n"], mode=0o600)
        os.chmod(path, 0o600)
    return read_key(path)


def patient_groups(records: "pa.Table") -> NDArray[np.intp]:
    """Number the patients of a store: records of one number never stand in two splits.

    Two patient ids are one patient where a record of one is a duplicate of a record of the other.
    A record without a patient is its own.

    Args:
        records: `StoreReader.records`.
    Returns:
        (N,) number of each record's patient, from 0 on, in arbitrary order.
    """
    ids = records["patient_id"].combine_chunks()
    codes = ids if ids.type == "int64" else ids.dictionary_encode().indices  # of a seal: numbers
    number: NDArray[np.intp] = codes.fill_null(-1).to_numpy().astype(np.intp)
    alone = np.flatnonzero(number < 0)
    number[alone] = number.max(initial=-1) + 1 + np.arange(len(alone))
    if "duplicate_of" not in records.column_names:
        return number
    from ecgfast.store.table import copies  # with it comes what no worker needs

    later, firsts = copies(records)
    if not len(later):
        return number
    from scipy.sparse import coo_array  # most stores hold no duplicate
    from scipy.sparse.csgraph import connected_components

    ends = (number[later], number[firsts])
    edges = coo_array((np.ones(len(later), bool), ends), shape=(len(number),) * 2)
    joined: NDArray[np.intp] = connected_components(edges, directed=False)[1]
    return joined[number]


def patient_names(
    records: "pa.Table", rows: NDArray[np.int64], groups: NDArray[np.intp]
) -> dict[int, str]:
    """One id of each patient, the same whatever the order of his records.

    Args:
        records: `StoreReader.records`.
        rows: (n,) rows of them.
        groups: (n,) number of each row's patient, from `patient_groups`.
    Returns:
        number -> the first of his ids in these rows.
    """
    first: dict[int, str] = {}
    for group, name in zip(
        groups.tolist(), records["patient_id"].take(rows).to_pylist(), strict=True
    ):
        first[group] = min(first.get(group, name), name)
    return first


def is_unnamed(records: "pa.Table") -> NDArray[np.bool_]:
    """(N,) whether a record names no patient, so that it is unknown which records share one."""
    import pyarrow.compute as pc  # no worker needs it

    return np.asarray(pc.match_substring_regex(records["flags"], f"(^|;){NO_PATIENT}(;|$)"))


def pseudonymous_patients(store: "StoreReader") -> "pa.Array":
    """(N,) text: pseudonyms of a store's patients, also where it keeps readable ids.

    Raises:
        ConfigError: it keeps readable ids, of a version that put no pseudonyms beside them.
    """
    records = store.records
    if store.manifest["identifiers"] != "kept":
        return records["patient_id"].combine_chunks()
    if PSEUDONYM not in records.column_names:
        raise ConfigError(
            f"{store.path} keeps readable patient ids without pseudonyms beside them, and a run "
            "must hold no readable id; join its labels again with ecgfast label"
        )
    return records[PSEUDONYM].combine_chunks()


def with_pseudonyms(records: "pa.Table", keys: Sequence[str], pseudonyms: Pseudonyms) -> "pa.Table":
    """Put pseudonyms beside readable ids.

    Args:
        records: rows of a store that keeps readable ids; of another they are given back as is.
        keys: (N,) readable keys of the patients.
        pseudonyms: of the store.
    """
    if not pseudonyms.keep:
        return records
    names = [
        pseudonyms.digest(
            "record as patient" if key.startswith(UNNAMED) else "patient", key.removeprefix(UNNAMED)
        ).hex()[:32]
        for key in keys
    ]
    import pyarrow as pa  # no worker needs it

    column = pa.array(names, pa.string())
    if PSEUDONYM in records.column_names:
        return records.set_column(records.column_names.index(PSEUDONYM), PSEUDONYM, column)
    return records.append_column(PSEUDONYM, column)


def with_shifted_dates(
    records: "pa.Table",
    dates: Sequence[datetime.date | None],
    keys: Sequence[str],
    pseudonyms: Pseudonyms,
) -> "pa.Table":
    """Put a day of recording into the rows, moved so that only intervals of a patient are true.

    All days of a patient move back by one number of days from 1 to 364, which the key decides.

    Args:
        records: rows of a store.
        dates: (N,) true days, None where unknown.
        keys: (N,) readable keys of the patients.
        pseudonyms: of the store.
    Raises:
        ConfigError: no record has a date.
    """
    if not any(dates):
        raise ConfigError("--shift-dates: no recording of this store has a date; leave it out")
    import pyarrow as pa  # no worker needs it

    shifts = {
        key: 1 + int.from_bytes(pseudonyms.digest("date shift", key)[:8], "big") % LONGEST_SHIFT
        for key in set(keys)
    }
    moved = [
        day and str(day - datetime.timedelta(days=shifts[key]))
        for day, key in zip(dates, keys, strict=True)
    ]
    column = pa.array(moved, pa.string())
    if SHIFTED_DATE in records.column_names:
        return records.set_column(records.column_names.index(SHIFTED_DATE), SHIFTED_DATE, column)
    return records.append_column(SHIFTED_DATE, column)


def retained(
    columns: Iterable[str], *, sites: bool, identifiers: bool, ages_over_89: bool
) -> dict[str, Any]:
    """What a store keeps of its sources beside signals, sex and whole years of age.

    As in DICOM PS3.15, annex E, each option to retain something is written down.

    Args:
        columns: of records.parquet; with that of shifted dates, "dates" says so.
        sites: the names of sites.
        identifiers: readable ids of records and patients.
        ages_over_89: apart, not as 90.
    """
    names = {*columns}
    return {
        "identifiers": identifiers,
        "ages_over_89": ages_over_89,
        "dates": "shifted" if SHIFTED_DATE in names else False,
        "sites": sites,
        "columns": sorted(names - {*ROW_TYPES, PSEUDONYM, SHIFTED_DATE}),
    }
