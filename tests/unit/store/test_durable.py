"""Durable files and the lock."""

import errno
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from disk_calls import recorded_calls

from ecgfast.errors import EcgfastError
from ecgfast.store.durable import DurableFile, explain, explained, store_lock, write_durably


def test_entry_and_mode(tmp_path: Path) -> None:
    entry = write_durably(tmp_path / "file", [b"ab", b"c"], mode=0o600)
    assert entry == {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert (tmp_path / "file").read_bytes() == b"abc"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_durably(tmp_path / "file", [b"old"])

    def parts():  # noqa: ANN202 (a generator)
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(EcgfastError, match=r"disk full.*run the same command again"):
        write_durably(tmp_path / "file", parts())
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_bytes_are_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded_calls(tmp_path, monkeypatch)
    write_durably(tmp_path / "file", [b"ab", b"c"])
    temporary = calls[0].split()[1]
    assert calls == [f"fsync {temporary} of 3 bytes", f"rename {temporary} to file", "fsync ./"]


def test_parts_may_change_behind_the_writer(tmp_path: Path) -> None:
    file = DurableFile(tmp_path / "file")
    part = bytearray(b"first")
    file.write([part])
    part[:] = b"later"
    file.write([part])
    assert not (tmp_path / "file").exists()
    assert file.finish() == {"bytes": 10, "sha256": hashlib.sha256(b"firstlater").hexdigest()}
    assert (tmp_path / "file").read_bytes() == b"firstlater"


def test_a_file_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    file = DurableFile(tmp_path / "file")
    file.write([b"half"])
    file.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("planted", ["link", "dangling link", "open file", "left by a kill"])
def test_nothing_is_written_into_a_planted_temporary(tmp_path: Path, planted: str) -> None:
    temporary, victim = tmp_path / ".file.tmp", tmp_path / "victim"
    victim.write_bytes(b"precious")
    if "link" in planted:
        temporary.symlink_to(victim if planted == "link" else tmp_path / "new")
    else:
        temporary.write_bytes(b"half")
        temporary.chmod(0o666)
    if planted == "open file":
        with temporary.open("rb") as spy:
            write_durably(tmp_path / "file", [b"secret"], mode=0o600)
            assert spy.read() == b"half"
    else:
        write_durably(tmp_path / "file", [b"secret"], mode=0o600)
    assert victim.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["file", "victim"]
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_store_and_a_link_to_it_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to("store")
    with (
        store_lock(tmp_path / "store"),
        pytest.raises(EcgfastError, match="another process"),
        store_lock(tmp_path / "link"),
    ):
        pass


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "store.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(EcgfastError, match="is a link"), store_lock(tmp_path / "store"):
        pass
    assert not (tmp_path / "victim").exists()


def test_lock_excludes_and_dies_with_its_process(tmp_path: Path) -> None:
    store = tmp_path / "store"
    code = (
        "import sys, time; from pathlib import Path; from ecgfast.store.durable import store_lock\n"
        f"with store_lock(Path({str(store)!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert store.with_name("store.lock").stat().st_mode & 0o7777 == 0o644
        with pytest.raises(EcgfastError, match="another process"), store_lock(store):
            pass
        holder.kill()
        holder.wait()
    with store_lock(store):
        pass
    assert os.listdir(tmp_path) == []


def test_a_disk_without_locks_is_written_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    with store_lock(tmp_path / "store"):
        pass
    assert f"{tmp_path} knows no file locks" in caplog.text


def test_files_are_readable_by_all_and_writable_by_their_user(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_durably(tmp_path / "one", [b"x"])
        DurableFile(tmp_path / "two").finish()
    finally:
        os.umask(before)
    assert [(tmp_path / n).stat().st_mode & 0o7777 for n in ("one", "two")] == [0o644, 0o644]


def test_which_errors_are_explained(tmp_path: Path) -> None:
    texts = {
        name: str(explain(OSError(getattr(errno, name), "why"), tmp_path, again="go on"))
        for name in ("ENOSPC", "EDQUOT", "EACCES", "EROFS", "EIO")
    }
    for full in ("ENOSPC", "EDQUOT"):
        assert texts[full].startswith(f"disk full while writing {tmp_path}: ")
        assert "space and go on" in texts[full]
    for forbidden in ("EACCES", "EROFS"):
        assert texts[forbidden].startswith(f"cannot write {tmp_path}: why; ")
    assert texts["EIO"] == "None"
    with pytest.raises(OSError, match="why") as raised, explained(tmp_path):
        raise OSError(errno.EIO, "why")
    assert raised.value.errno == errno.EIO


def test_a_lock_makes_its_folders_and_may_be_gone_at_the_end(tmp_path: Path) -> None:
    with store_lock(tmp_path / "a/b/store"):
        (tmp_path / "a/b/store.lock").unlink()
    assert os.listdir(tmp_path / "a/b") == []


def test_a_lock_that_its_last_holder_removed_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, lock, calls = fcntl.flock, tmp_path / "store.lock", []

    def removed_first(fd: int, operation: int) -> None:
        if not calls:
            lock.unlink()
        elif len(calls) == 1:  # and another process made it again
            lock.rename(tmp_path / "old")
            lock.touch()
        calls.append(fd)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with store_lock(tmp_path / "store"):
        assert len(calls) == 3
        assert os.path.samestat(os.fstat(calls[-1]), lock.stat())


def test_another_error_of_a_lock_is_no_missing_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), store_lock(tmp_path / "store"):
        pass
