"""The register of a run: whose ECGs it learned from and read, and which of a store these are.

`RUN/register.parquet` has one row per record, with pseudonyms and digests of signals, never a
readable id. It is compared with any store: converted again, under another codec, grown, or from
another hospital.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ecgfast.convert.measures import content_digests
from ecgfast.errors import ConfigError, ResumeError
from ecgfast.records import EcgRecord
from ecgfast.runs.digests import opened
from ecgfast.store.durable import RESUME, write_durably
from ecgfast.store.patients import Pseudonyms, patient_groups, pseudonymous_patients, read_key
from ecgfast.store.reader import StoreReader
from ecgfast.vocabulary import PatientIds

FILE = "register.parquet"
VERSION = 1
Flags = NDArray[np.bool_]
Role = Literal["train", "valid", "pretrain", "heldout"]
Origin = Literal["none", "run", "imagenet", "unknown"]  # of an encoder's first weights
# Words of predict's column note on ECGs that are no test of the run.
LEARNED_FROM, READ_BEFORE = "learned_from", "read_in_pretraining"
_FACTS = b"ecgfast"
_DAMAGED = (
    *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
    pa.ArrowException,
)
_SCHEMA = pa.schema(
    {
        "patient": pa.string(),
        "content": pa.string(),
        "site": pa.string(),
        "role": pa.string(),
        "is_case": pa.bool_(),
        "probability": pa.float64(),
    }
)
# Of a run that is more than yes or no of one target, instead of the last two.
OUTPUTS = (
    pa.field("truth", pa.list_(pa.float64())),
    pa.field("predicted", pa.list_(pa.float64())),
)


@dataclass(frozen=True, kw_only=True)
class Register:
    """Who taught a run.

    Attributes:
        rows: one per record and role: patient (pseudonym), content (digest of the signal, null
            where it has none), site, role ("train" and "valid" taught a classifier, "pretrain"
            and "heldout" were read without labels, the latter only to watch), and for "valid"
            is_case and probability, or of other tasks truth and predicted, a number for each
            output.
        key_fingerprint: of the pseudonym key of the store that it was trained on.
        patient_ids: whose the patient ids of that store are, "site" or "global".
        encoder: where a classifier's first weights come from; "unknown" when nobody can say what
            they were trained on.
    """

    rows: pa.Table
    key_fingerprint: str
    patient_ids: str
    encoder: Origin = "none"

    @classmethod
    def of(cls, store: StoreReader, parts: dict[Role, NDArray[np.int64]]) -> Self:
        """The register of records of a store.

        Args:
            store: an open store.
            parts: role -> rows of the store.
        Raises:
            ConfigError: a store with readable ids has no pseudonyms beside them.
        """
        patients = pa.chunked_array([pseudonymous_patients(store)], pa.string())
        tables = []
        for role, rows in parts.items():
            taken = store.records.take(rows)
            nothing = pa.nulls(len(rows))
            content = taken["content"] if "content" in taken.column_names else nothing
            columns = {
                "patient": patients.take(pa.array(rows)),
                "content": content,
                "site": taken["site"],
                "role": pa.array([role] * len(rows), pa.string()),
                "is_case": nothing,
                "probability": nothing,
            }
            tables.append(pa.table(columns).cast(_SCHEMA))
        return cls(
            rows=pa.concat_tables([_SCHEMA.empty_table(), *tables]),
            key_fingerprint=store.manifest["key_fingerprint"],
            patient_ids=store.manifest.get("patients", {}).get("ids", "global"),
        )

    def select(self, *roles: Role) -> pa.Table:
        """The rows of some roles."""
        return self.rows.filter(pa.compute.is_in(self.rows["role"], pa.array(roles, pa.string())))

    @property
    def sites(self) -> frozenset[str | None]:
        """Sites whose labels taught the run."""
        return frozenset(self.select("train", "valid")["site"].to_pylist())

    @property
    def validation(self) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Labels and probabilities of the validation records that have a label."""
        rows = self.select("valid")
        rows = rows.filter(pc.is_valid(rows["is_case"]))
        return (
            rows["is_case"].to_numpy().astype(bool),
            rows["probability"].to_numpy().astype(np.float64),
        )


def with_validation(
    register: Register, is_case: Sequence[bool], probability: NDArray[np.float64]
) -> Register:
    """The register with what the run says of its validation records, in their order."""
    roles = np.array(register.rows["role"].to_pylist(), dtype=np.str_)
    valid = np.flatnonzero(roles == "valid")
    case: list[bool | None] = [None] * len(roles)
    score: list[float | None] = [None] * len(roles)
    for row, truth, value in zip(valid, is_case, probability.tolist(), strict=True):
        case[row], score[row] = bool(truth), value
    rows = register.rows.set_column(4, "is_case", pa.array(case, pa.bool_()))
    rows = rows.set_column(5, "probability", pa.array(score, pa.float64()))
    return replace(register, rows=rows)


def with_encoder(register: Register, encoder: "Register | None", origin: Origin) -> Register:
    """The register of a classifier with what its encoder had read before.

    Args:
        register: of the classifier.
        encoder: of the pretraining run, None where there is none.
        origin: where the first weights come from.
    """
    if encoder is None:
        return replace(register, encoder=origin)
    ours = (register.key_fingerprint, register.patient_ids)
    read = encoder.rows
    if (encoder.key_fingerprint, encoder.patient_ids) != ours:
        # Such pseudonyms say nothing here; the digests of the signals still do.
        read = read.set_column(0, "patient", pa.nulls(len(read), pa.string()))
    return replace(register, rows=pa.concat_tables([register.rows, read]), encoder=origin)


def write_register(run: Path, register: Register) -> None:
    """Write RUN/register.parquet."""
    facts = {
        "version": VERSION,
        "key_fingerprint": register.key_fingerprint,
        "patient_ids": register.patient_ids,
        "encoder": register.encoder,
    }
    sink = pa.BufferOutputStream()
    rows = register.rows.replace_schema_metadata({_FACTS: json.dumps(facts)})
    pq.write_table(rows, sink, compression="zstd")
    write_durably(run / FILE, [sink.getvalue().to_pybytes()], again=RESUME)


def read_register(run: Path) -> Register | None:
    """Read RUN/register.parquet; None where a run of an earlier version has none.

    Raises:
        ResumeError: the file is damaged, or of a later version.
    """
    path = run / FILE
    if not path.exists():
        return None
    with opened(path) as file:
        data = file.read()
    try:
        rows = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        facts: dict[str, Any] = json.loads(rows.schema.metadata[_FACTS])
        version = facts.pop("version")
        if version != VERSION:
            raise ResumeError(
                f"{path} has version {version}, this ecgfast reads {VERSION}; update ecgfast"
            )
        schema = pa.schema([*_SCHEMA, *(f for f in OUTPUTS if f.name in rows.column_names)])
        return Register(rows=rows.replace_schema_metadata().cast(schema), **facts)
    except _DAMAGED as error:
        raise ResumeError(
            f"{path} is damaged: whom the run learned from is not known; restore it from a copy, "
            "or train again"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Records of a store, by what a run knows of their patients.

    Attributes:
        taught: (N,) of patients whose labels taught the run or chose its weights.
        read: (N,) of patients whose ECGs its encoder was trained on, without labels.
        heldout: (N,) of patients who were set aside to watch that training.
        same_key: whether the store has the pseudonym key of the run's store.
        by_patient: whether patients could be compared at all: they have one key, and patient ids of
            one kind. If not, only ECGs that are the same digit by digit are recognised.
        encoder_by_patient: the same of those whose ECGs its encoder read; True where none did.
    """

    taught: Flags
    read: Flags
    heldout: Flags
    same_key: bool
    by_patient: bool
    encoder_by_patient: bool


def seen(register: Register, store: StoreReader) -> Seen:
    """Find the records of a store whose patients a run has seen.

    A patient is known by his pseudonym, where store and run share a key, or by one of his ECGs: all
    his records, and those of every id that shares an ECG with him, then count as seen.

    Args:
        register: of the run.
        store: any store.
    """
    ids = store.manifest.get("patients", {}).get("ids", "global")
    same_key = register.key_fingerprint == store.manifest["key_fingerprint"]
    by_patient = same_key and register.patient_ids == ids
    groups = patient_groups(store.records)
    patients = pseudonymous_patients(store) if by_patient else None
    content = store.records["content"] if "content" in store.records.column_names else None

    def known(*roles: Role) -> Flags:
        rows = register.select(*roles)
        found = np.zeros(len(store), dtype=bool)
        for ours, theirs in ((patients, rows["patient"]), (content, rows["content"])):
            if ours is not None:
                found |= _is_in(ours, theirs)
        return np.isin(groups, groups[found])

    nameless = register.select("pretrain")["patient"].null_count  # of an encoder of another key
    return Seen(
        taught=known("train", "valid"),
        read=known("pretrain"),
        heldout=known("heldout"),
        same_key=same_key,
        by_patient=by_patient,
        encoder_by_patient=not len(register.select("pretrain")) or (by_patient and not nameless),
    )


def _is_in(ours: pa.Array | pa.ChunkedArray, theirs: pa.ChunkedArray) -> Flags:
    """Which values occur there; a null is nobody."""
    values = theirs.drop_null().combine_chunks()
    found = pc.is_in(ours, value_set=values)
    flags: Flags = pc.fill_null(found, False).to_numpy(zero_copy_only=False).astype(bool)
    return flags


class SeenFiles:
    """ECGs of raw files, and their patients, that a run has seen.

    Args:
        register: of the run, None where it has none.
        key_file: pseudonym key of its store, or None: patients are not recognised.
    Raises:
        ConfigError: the key is not that of the run's store.
    """

    def __init__(self, register: Register | None, key_file: Path | None) -> None:
        self._seen: dict[str, set[str]] = {LEARNED_FROM: set(), READ_BEFORE: set()}
        self._pseudonyms: Pseudonyms | None = None
        if register is None:
            return
        roles: dict[str, tuple[Role, ...]] = {
            LEARNED_FROM: ("train", "valid"),
            READ_BEFORE: ("pretrain",),
        }
        for word, parts in roles.items():
            rows = register.select(*parts)
            for name in ("patient", "content"):
                self._seen[word] |= set(rows[name].drop_null().to_pylist())
        if key_file is not None:
            ids: PatientIds = "site" if register.patient_ids == "site" else "global"
            self._pseudonyms = Pseudonyms(read_key(key_file), patient_ids=ids)
            if self._pseudonyms.fingerprint != register.key_fingerprint:
                raise ConfigError(
                    f"pseudonym key {key_file}: it is not the key of the store that the run was "
                    "trained on; give that one with --key-file, or none"
                )

    def words(
        self, record_id: str, record: EcgRecord, windows: Sequence[NDArray[np.int16]]
    ) -> list[tuple[str, ...]]:
        """What the run has seen of each window of a file, or of its patient.

        Args:
            record_id: readable, of the file.
            record: what the file holds.
            windows: (12, T) int16 of each, ADC units.
        """
        if not windows:
            return []
        signal_nCT = np.stack(windows)
        digests = content_digests(signal_nCT, signal_nCT.std(axis=2))
        patient = self._patient(record_id, record)
        return [
            tuple(word for word, names in self._seen.items() if {digest, patient} & names)
            for digest in digests
        ]

    def _patient(self, record_id: str, record: EcgRecord) -> str | None:
        if self._pseudonyms is None:
            return None
        if record.patient_id is None:
            return self._pseudonyms.of("record as patient", record_id)
        return self._pseudonyms.patient(record.patient_id, record.site)
