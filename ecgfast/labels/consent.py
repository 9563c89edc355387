"""Patients who withdraw their consent: which records of a store are theirs, and their erasure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.matching import store_pseudonyms
from ecgfast.store.csv_files import refused_ids
from ecgfast.store.durable import store_lock
from ecgfast.store.erase import Erased, add_erased, erase_records, finish_erasure, refuse_to_erase
from ecgfast.store.format import ERASING, passed_over_beside, sources_beside
from ecgfast.store.generations import whole_store
from ecgfast.store.patients import Pseudonyms
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.store.table import recordings_of

_LARGEST = 1 << 28  # bytes of a list of ids


@dataclass(frozen=True, kw_only=True)
class ErasureSummary:
    """What an erasure did.

    Attributes:
        store: its folder.
        num_patients: patients of the store that the list names.
        num_copies: records of other patient ids that are copies of their ECGs; erased too.
        num_unknown: lines that name nobody of this store.
        erased: records and refused inputs.
    """

    store: Path
    num_patients: int
    num_copies: int
    num_unknown: int
    erased: Erased

    def __str__(self) -> str:
        """What was done, and what cannot be done here."""
        done, unknown = self.erased, ""
        if self.num_unknown:
            unknown = f"; {self.num_unknown:,} ids name nobody of this store"
        if not done.num_records and not done.num_refused:
            return f"nothing to erase in {self.store}{unknown}"
        return (
            f"{done.num_records:,} records of {self.num_patients:,} patients ({self.num_copies:,} "
            f"of them copies under other ids) and {done.num_refused:,} refused inputs are erased "
            f"from {self.store}, generation {done.generation}{unknown}\n"
            "not reached: the source files, backups and copies of the store, exported tables, the "
            "free space of the disk, and what was trained: weights, checkpoints and registers of "
            "runs. Runs of before cannot be resumed with this store. Refused files name no patient "
            f"in {sources_beside(self.store).name}, nor do those in "
            f"{passed_over_beside(self.store).name}: look through both"
        )


def erase(
    store: str | Path,
    *,
    patients: Path | None = None,
    records: Path | None = None,
    key_file: Path | None = None,
) -> ErasureSummary:
    """Erase all records of some patients, and the copies of their ECGs; finish what was begun.

    Args:
        store: a finished store.
        patients: file with one id a line: as the sources have them, SITE/ID where several sites
            number their own patients, or pseudonyms of the store.
        records: likewise of recordings, refused ones too.
        key_file: the store's pseudonym key, where it is not STORE.key.
    Raises:
        ConfigError: no list, an empty one, an id that several patients have, nothing would be
            left of the store, or its path is a link or names one generation.
        ResumeError: an append of the store is not finished.
        CorruptStoreError: the store is damaged.
    """
    path = whole_store(store)
    _refuse_link(path)
    given = _given(patients, records, begun=(path / ERASING).exists())
    named = {name: _lines(f"--{name}", each) for name, each in given.items()}
    with store_lock(path):
        if finish_erasure(path):
            log.info(f"{path}: the erasure that was interrupted is finished")
        reader = open_store(path)
        pseudonyms = store_pseudonyms(reader, key_file)
        ours, of_patients = _patients(reader, named.get("patients", []), pseudonyms)
        recordings, of_records = _records(named.get("records", []), pseudonyms, reader)
        names = recordings_of(reader.records)
        theirs = np.array(
            [
                patient in ours or name in recordings
                for patient, name in zip(
                    reader.records["patient_id"].to_pylist(), names, strict=True
                )
            ],
            bool,
        )
        whole = _with_copies(reader.records, names, theirs)
        chosen = {name for name, each in zip(names, whole.tolist(), strict=True) if each}
        if chosen or recordings:
            refuse_to_erase(reader, chosen)
            add_erased(path, pseudonyms, chosen | recordings)
        erased = erase_records(reader, chosen | recordings)
    return ErasureSummary(
        store=path,
        num_patients=len(ours),
        num_copies=int((whole & ~theirs).sum()),
        num_unknown=of_patients + of_records,
        erased=erased,
    )


def _refuse_link(path: Path) -> None:
    """Refuse a link to a store: tables with ids can lie beside the link and beside the store."""
    if path.is_symlink():
        real = path.resolve()
        raise ConfigError(
            f"{path} is a link to the store {real}, allowed the store itself: files with ids can "
            f"lie beside both; move {path.name}.* there, where there are any, as {real.name}.*, "
            f"and give {real}"
        )


def _given(patients: Path | None, records: Path | None, *, begun: bool) -> dict[str, Path]:
    given = {"patients": patients, "records": records}
    found = {name: path for name, path in given.items() if path is not None}
    if not found and not begun:
        raise ConfigError("erase needs --patients FILE or --records FILE, got neither")
    return found


def _lines(option: str, path: Path) -> list[tuple[int, str]]:
    """The ids of a list with the numbers of their lines."""

    def refusal(got: str, cure: str) -> ConfigError:
        return ConfigError(
            f"{option} {path}: got {got}, allowed a text file (UTF-8) with one id a line; {cure}"
        )

    if not path.is_file():
        got = "a folder or a device" if path.exists() else "no such file"
        raise refusal(got, "check the path; ids are given in a file, as words are kept by shells")
    if path.stat().st_size > _LARGEST:
        raise refusal(f"{path.stat().st_size:,} bytes", f"divide it: at most {_LARGEST:,} bytes")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refusal("a file that is no UTF-8 text", "save it as such") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise refusal("an empty file", "write the ids into it")
    return lines


def _patients(
    reader: StoreReader, lines: Sequence[tuple[int, str]], pseudonyms: Pseudonyms
) -> tuple[set[str], int]:
    """Stored ids of the patients, and how many lines name nobody."""
    known = set(reader.records["patient_id"].to_pylist())
    sites = {*reader.records["site"].to_pylist(), None}
    found: set[str] = set()
    unknown = 0
    for number, name in lines:
        ids = {name, *(pseudonyms.patient(name, site) for site in sites)} & known
        if len(ids) > 1:
            raise ConfigError(
                f"--patients, line {number}: {len(ids)} sites have a patient of this id, allowed "
                "one; write SITE/ID, or the pseudonym of records.parquet. Nothing was erased"
            )
        found |= ids
        unknown += not ids
    return found, unknown


def _records(
    lines: Sequence[tuple[int, str]], pseudonyms: Pseudonyms, reader: StoreReader
) -> tuple[set[str], int]:
    """Stored ids of the recordings, refused ones too, and how many lines name nothing."""
    if not lines:
        return set(), 0
    known = set(recordings_of(reader.records)) | refused_ids(reader.quarantine)
    names = {number: {name, pseudonyms.of("record", name)} & known for number, name in lines}
    return set().union(*names.values()), sum(not each for each in names.values())


def _with_copies(
    records: pa.Table, names: Sequence[str], chosen: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Records that are the same ECG as a chosen one, too, and all windows of these recordings."""
    first_of = records["duplicate_of"].to_pylist()
    ids = records["record_id"].to_pylist()
    one_ecg = [first or own for first, own in zip(first_of, ids, strict=True)]
    while True:
        ecgs = {ecg for ecg, each in zip(one_ecg, chosen.tolist(), strict=True) if each}
        whole = {name for name, ecg in zip(names, one_ecg, strict=True) if ecg in ecgs}
        grown = np.array([name in whole for name in names], bool)
        if (grown == chosen).all():
            return grown
        chosen = grown
