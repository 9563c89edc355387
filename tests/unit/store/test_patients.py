"""Pseudonyms: stable, keyed, apart by kind; keys checked; patients in a table of records."""

import datetime
import hashlib
import hmac
import os
import socket
from pathlib import Path

import pyarrow as pa
import pytest

from ecgfast.errors import ConfigError, CorruptStoreError
from ecgfast.store.format import PSEUDONYM
from ecgfast.store.patients import (
    UNNAMED,
    Pseudonyms,
    is_unnamed,
    patient_groups,
    read_key,
    read_or_create_key,
    retained,
    with_pseudonyms,
    with_shifted_dates,
)

KEY = bytes(range(32))


def test_is_hmac_sha256() -> None:
    expected = hmac.new(KEY, b"patient\0Jane", hashlib.sha256).hexdigest()[:32]
    assert Pseudonyms(KEY).of("patient", "Jane") == expected


def test_key_and_kind_matter() -> None:
    ours = Pseudonyms(KEY)
    assert len({ours.of("patient", "1"), ours.of("record", "1")}) == 2
    assert ours.of("patient", "1") != Pseudonyms(KEY[::-1]).of("patient", "1")
    assert ours.fingerprint != Pseudonyms(KEY[::-1]).fingerprint


def test_a_slash_in_a_site_is_no_slash_before_an_id() -> None:
    ours = Pseudonyms(KEY)
    expected = hmac.new(KEY, b"patient\0north/c", hashlib.sha256).hexdigest()[:32]
    assert ours.patient("c", "north") == expected  # as ever
    assert ours.patient_key("b/c", "a") == "a/b/c"
    assert ours.patient_key("c", "a/b") == "a%2Fb/c"
    assert ours.patient_key("c", "a%2Fb") == "a%252Fb/c"
    assert ours.patient_key("50%", None) == "50%"
    assert Pseudonyms(KEY, patient_ids="global").patient_key("b/c", "a/b") == "b/c"


@pytest.mark.parametrize("site", [None, "north", "a/b", "50%"])
def test_the_id_of_a_patient_comes_back_from_his_key(site: str | None) -> None:
    for ids in ("site", "global"):
        ours = Pseudonyms(KEY, patient_ids=ids)  # type: ignore[arg-type]  # one of the two
        assert ours.readable(ours.patient_key("b/7", site), site) == "b/7"


def test_kept_ids() -> None:
    assert Pseudonyms(KEY, keep=True).of("patient", "Jane") == "Jane"


def test_new_key_is_private_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "store.key"
    key = read_or_create_key(path)
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_or_create_key(path) == key


@pytest.mark.parametrize("umask", [0, 0o377])
def test_a_new_keys_mode_is_0600_under_any_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        read_or_create_key(tmp_path / "store.key")
    finally:
        os.umask(before)
    assert (tmp_path / "store.key").stat().st_mode & 0o777 == 0o600


def test_a_key_that_others_may_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    path = tmp_path / "store.key"
    read_or_create_key(path)
    assert caplog.text == ""
    path.chmod(0o640)
    read_key(path)
    assert f"run chmod 600 {path}" in caplog.text


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a device"])
def test_a_key_is_read_from_a_regular_file_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    what = "a folder" if kind == "folder" else "a pipe, a socket or a device"
    for read in (read_key, read_or_create_key):
        with pytest.raises(ConfigError, match=f"pseudonym key {path}: got {what}, allowed a file"):
            read(path)


def test_a_key_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 107 letters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("key")
    with pytest.raises(ConfigError, match="pseudonym key key: cannot be read: No such device"):
        read_key(Path("key"))
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        read_key(Path("key/key"))


def test_a_large_file_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    os.truncate(tmp_path / "key", 20 << 30)  # takes no space on the disk
    with pytest.raises(ConfigError, match="expected 64 hex digits"):
        read_key(tmp_path / "key")


@pytest.mark.parametrize("text", ["", "zz", "ab" * 31, "00" * 32])
def test_bad_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(ConfigError, match="pseudonym key"):
        read_key(tmp_path / "key")
    with pytest.raises(ConfigError, match="no such file"):
        read_key(tmp_path / "absent")


def _records(**columns: list[object]) -> pa.Table:
    count = len(columns["patient_id"])
    names = [f"r{number}" for number in range(count)]
    return pa.table({"record_id": names, **columns})


def test_a_shared_ecg_makes_two_ids_one_patient_and_nobody_is_his_own() -> None:
    records = _records(
        patient_id=["A", "B", "C", "A", None, None],
        duplicate_of=[None, None, "r1", None, None, None],
    )
    groups = patient_groups(records)
    assert groups[0] == groups[3]
    assert groups[1] == groups[2]
    assert len(set(groups.tolist())) == 4


def test_a_duplicate_of_a_record_that_is_not_there_is_damage() -> None:
    records = _records(patient_id=["A", "B"], duplicate_of=[None, "r7"])
    with pytest.raises(CorruptStoreError, match="names 1 records that the store does not have"):
        patient_groups(records)


def test_pseudonyms_stand_beside_readable_ids_alone() -> None:
    records = _records(patient_id=["north/A", "north/B"])
    keys = ["north/A", f"{UNNAMED}r1"]
    assert with_pseudonyms(records, keys, Pseudonyms(KEY)) is records
    keeping = Pseudonyms(KEY, keep=True)
    beside = with_pseudonyms(records, keys, keeping)
    assert beside.column_names == [*records.column_names, PSEUDONYM]
    hidden = Pseudonyms(KEY)
    assert beside[PSEUDONYM].to_pylist() == [
        hidden.of("patient", "north/A"),
        hidden.of("record as patient", "r1"),
    ]
    moved = with_pseudonyms(beside, ["south/A", "south/B"], keeping)
    assert moved.column_names == beside.column_names
    assert moved[PSEUDONYM].to_pylist() == [
        hidden.of("patient", "south/A"),
        hidden.of("patient", "south/B"),
    ]


def test_what_is_retained_is_listed() -> None:
    records = _records(patient_id=["A", "B"], site=["north", None], snomed=["1", "2"])
    kept = retained(records.column_names, sites=True, identifiers=True, ages_over_89=False)
    assert kept == {
        "identifiers": True,
        "ages_over_89": False,
        "dates": False,
        "sites": True,
        "columns": ["snomed"],
    }


def test_unnamed_records_are_those_that_are_flagged() -> None:
    flags = ["", "no_patient_id", "flat_lead;no_patient_id", "no_patient_id_of_old"]
    records = pa.table({"flags": flags})
    assert is_unnamed(records).tolist() == [False, True, True, False]


def test_shifted_dates_keep_the_intervals_of_a_patient() -> None:
    first = datetime.date(2020, 2, 28)
    days = [first, first + datetime.timedelta(days=3), first, None, first]
    keys = ["north/7", "north/7", "north/8", "north/8", f"{UNNAMED}a/r1"]
    ours = Pseudonyms(KEY)
    moved = with_shifted_dates(pa.table({"age": [1, 2, 3, 4, 5]}), days, keys, ours)
    texts = moved["shifted_date"].to_pylist()
    assert texts[3] is None
    dates = [datetime.date.fromisoformat(text) for text in texts if text]
    assert dates[1] - dates[0] == datetime.timedelta(days=3)
    digests = [hmac.digest(KEY, b"date shift\0" + key.encode(), "sha256") for key in keys]
    expected = [1 + int.from_bytes(digest[:8], "big") % 364 for digest in digests]
    assert [(first - date).days for date in (dates[0], dates[2], dates[3])] == [
        expected[0], expected[2], expected[4],
    ]  # fmt: skip
    assert len({*expected}) == 3
    assert all(1 <= shift <= 364 for shift in expected)
    again = with_shifted_dates(moved, days, keys, Pseudonyms(KEY[::-1]))
    assert again["shifted_date"].to_pylist() != texts
    assert again.column_names == ["age", "shifted_date"]
    with pytest.raises(ConfigError, match="--shift-dates: no recording of this store has a date"):
        with_shifted_dates(moved, [None] * 5, keys, ours)


def test_shifts_are_spread_over_a_year() -> None:
    keys = [f"north/{number}" for number in range(5000)]
    day = datetime.date(2020, 12, 30)
    moved = with_shifted_dates(pa.table({"age": [1] * 5000}), [day] * 5000, keys, Pseudonyms(KEY))
    shifts = [
        (day - datetime.date.fromisoformat(t)).days for t in moved["shifted_date"].to_pylist()
    ]
    assert (min(shifts), max(shifts)) == (1, 364)
    assert abs(sum(shifts) / 5000 - 182.5) < 6  # four standard errors
