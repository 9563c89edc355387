"""Records in which order a test's code makes files durable."""

import os
from pathlib import Path
from threading import Lock

import pytest


def recorded_calls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let `os.fsync` and `os.replace` work as always, and note each call below a folder.

    Returns:
        a list that grows: "fsync FILE of N bytes", "fsync FOLDER/" or "rename FILE to FILE", with
        paths relative to `folder`; N is what the system has of the file at that moment.
    """
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    one_at_a_time = Lock()  # threads write files too, and no file is renamed while it is looked for

    def noted_fsync(fd: int) -> None:
        with one_at_a_time:
            fsync(fd)
            held = os.fstat(fd)
            for path in (folder, *folder.rglob("*")):
                if os.path.samestat(path.stat(), held):
                    name = path.relative_to(folder).as_posix()
                    calls.append(
                        f"fsync {name}" + ("/" if path.is_dir() else f" of {held.st_size} bytes")
                    )

    def noted_replace(old: str | Path, new: str | Path) -> None:
        with one_at_a_time:
            replace(old, new)
            names = [Path(path).relative_to(folder).as_posix() for path in (old, new)]
            calls.append(f"rename {names[0]} to {names[1]}")

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return calls
