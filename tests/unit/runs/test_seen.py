"""What was seen by whom, on a store whose patients are shared by hospitals, splits and runs."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from two_hospitals import make, rows_of

from ecgfast.errors import ConfigError, ResumeError
from ecgfast.runs.register import (
    FILE,
    Register,
    read_register,
    seen,
    with_encoder,
    with_validation,
    write_register,
)
from ecgfast.store.reader import StoreReader


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return make(tmp_path_factory.mktemp("hospitals"))


def taught_at(store: StoreReader, *sites: str) -> Register:
    """A classifier that learned from the train and valid splits of some hospitals."""
    return Register.of(
        store,
        {
            "train": np.concatenate([rows_of(store, site, "train") for site in sites]),
            "valid": np.concatenate([rows_of(store, site, "valid") for site in sites]),
        },
    )


def where(flags: np.ndarray) -> list[int]:
    return np.flatnonzero(flags).tolist()


def test_a_patient_is_known_at_every_hospital(store: StoreReader) -> None:
    known = seen(taught_at(store, "1"), store)
    # A, B, C and D at hospital 1; A and C at hospital 2 (rows 6 and 7), B at hospital 3 (row 12)
    assert where(known.taught) == [0, 1, 2, 3, 6, 7, 12]
    assert known.by_patient
    assert not known.read.any()
    assert not known.heldout.any()


def test_each_run_knows_its_own_patients(store: StoreReader) -> None:
    known = seen(taught_at(store, "2"), store)
    # A, C, G and H at hospital 2; A and C at hospital 1
    assert where(known.taught) == [0, 2, 6, 7, 9, 10]


def test_what_an_encoder_read_is_not_what_taught(store: StoreReader) -> None:
    pretraining = Register.of(store, {"pretrain": rows_of(store, "3"), "heldout": np.array([4])})
    known = seen(with_encoder(taught_at(store, "1"), pretraining, "run"), store)
    assert where(known.taught) == [0, 1, 2, 3, 6, 7, 12]
    assert where(known.read) == [1, 12, 13, 14, 15]  # B, K, L, M; B was at hospital 1 too
    assert where(known.heldout) == [4, 8]  # E, at hospitals 1 and 2
    assert known.encoder_by_patient


def test_a_store_without_digests_of_signals_knows_patients_alone(tmp_path: Path) -> None:
    """As one of an earlier version."""
    store = make(tmp_path)
    store.__dict__["records"] = store.records.drop_columns(["content"])
    register = taught_at(store, "1")
    assert register.rows["content"].null_count == len(register.rows)
    assert where(seen(register, store).taught) == [0, 1, 2, 3, 6, 7, 12]


def test_another_codec_and_more_files_change_nothing(store: StoreReader, tmp_path: Path) -> None:
    again = make(tmp_path, codec="zstd")
    assert again.identity != store.identity
    assert where(seen(taught_at(store, "1"), again).taught) == [0, 1, 2, 3, 6, 7, 12]


def test_kept_identifiers_are_compared_by_their_pseudonyms(
    store: StoreReader, tmp_path: Path
) -> None:
    readable = make(tmp_path, keep_identifiers=True)
    assert readable.records["patient_id"][0].as_py() == "A"
    register = taught_at(readable, "1")
    assert not {"A", "B", "C", "D"} & set(register.rows["patient"].to_pylist())
    assert where(seen(register, store).taught) == [0, 1, 2, 3, 6, 7, 12]
    assert where(seen(taught_at(store, "1"), readable).taught) == [0, 1, 2, 3, 6, 7, 12]


def test_under_another_key_equal_ecgs_are_recognised(store: StoreReader, tmp_path: Path) -> None:
    (tmp_path / "other.key").write_text("11" * 32)
    other = make(tmp_path, "other")
    assert not set(store.records["patient_id"].to_pylist()) & set(
        other.records["patient_id"].to_pylist()
    )
    known = seen(taught_at(store, "1"), other)
    assert not known.by_patient
    assert not known.same_key
    assert known.encoder_by_patient  # which read nobody
    # rows 0 to 3 are the ECGs; their patients' other records are known by the new store's own ids
    assert where(known.taught) == [0, 1, 2, 3, 6, 7, 12]


def test_ids_of_another_kind_are_not_compared(store: StoreReader, tmp_path: Path) -> None:
    by_site = make(tmp_path, ids="site")
    known = seen(taught_at(store, "1"), by_site)
    assert not known.by_patient
    assert where(known.taught) == [0, 1, 2, 3]  # by their ECGs alone


def test_a_register_comes_back(store: StoreReader, tmp_path: Path) -> None:
    register = with_validation(taught_at(store, "1"), [True, False], np.array([0.7, 0.2]))
    write_register(tmp_path, register)
    read = read_register(tmp_path)
    assert read is not None
    assert read.rows.equals(register.rows)
    assert (read.key_fingerprint, read.patient_ids, read.encoder) == (
        store.manifest["key_fingerprint"],
        "global",
        "none",
    )
    assert read.sites == {"1"}
    of_run = with_encoder(taught_at(store, "1"), None, "imagenet")
    assert with_validation(of_run, [True, False], np.array([0.7, 0.2])).encoder == "imagenet"
    truth, score = read.validation
    assert (truth.tolist(), score.tolist()) == ([True, False], [0.7, 0.2])
    assert read_register(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("version", [0, 2])
def test_a_register_of_another_version_is_refused(
    store: StoreReader, tmp_path: Path, version: int
) -> None:
    write_register(tmp_path, taught_at(store, "1"))
    table = pq.read_table(tmp_path / FILE)
    facts = json.loads(table.schema.metadata[b"ecgfast"])
    assert facts["version"] == 1
    changed = json.dumps({**facts, "version": version})
    pq.write_table(table.replace_schema_metadata({"ecgfast": changed}), tmp_path / FILE)
    with pytest.raises(ResumeError, match=f"has version {version}, this ecgfast reads 1"):
        read_register(tmp_path)


def test_an_encoder_of_another_key_is_known_by_its_ecgs_alone(
    store: StoreReader, tmp_path: Path
) -> None:
    (tmp_path / "other.key").write_text("11" * 32)
    other = make(tmp_path, "other")
    pretraining = Register.of(other, {"pretrain": rows_of(other, "3")})
    both = with_encoder(taught_at(store, "1"), pretraining, "run")
    read = both.select("pretrain")
    assert read["patient"].to_pylist() == [None] * 4
    assert read["content"].to_pylist() == pretraining.rows["content"].to_pylist()
    assert (both.encoder, both.key_fingerprint) == ("run", store.manifest["key_fingerprint"])
    # the ECGs of hospital 3, and patient B's at hospital 1
    known = seen(both, store)
    assert where(known.read) == [1, 12, 13, 14, 15]
    assert known.by_patient
    assert not known.encoder_by_patient
    reversed_roles = with_encoder(pretraining, taught_at(store, "1"), "run")
    assert reversed_roles.select("train")["patient"].null_count == 2


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_damaged_register_is_said(
    store: StoreReader, tmp_path: Path, damage: bytes | None
) -> None:
    write_register(tmp_path, taught_at(store, "1"))
    path = tmp_path / FILE
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage is None else damage)
    with pytest.raises(ResumeError, match="whom the run learned from is not known"):
        read_register(tmp_path)


def test_readable_ids_never_enter_a_register(tmp_path: Path) -> None:
    """A store of an earlier version that kept ids has no pseudonyms beside them."""
    store = make(tmp_path, keep_identifiers=True)
    store.__dict__["records"] = store.records.drop_columns(["patient_pseudonym"])
    with pytest.raises(ConfigError, match="must hold no readable id"):
        taught_at(store, "1")
