"""Reports on full and read-only disks: one line, at once where that is possible."""

import sys
from pathlib import Path

import pytest
from small_disks import in_namespace


@pytest.mark.slow
def test_a_disk_that_takes_no_report(tuned: Path, store: Path, tmp_path: Path) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    report = f"{sys.executable} -m ecgfast evaluate {tuned} {store} --device cpu --out {disk}/r"
    result = in_namespace(
        f"mount -t tmpfs -o size=40k tmpfs {disk} && mkdir {disk}/r && "
        f"mount -o remount,ro {disk} && ! {report} && echo now full >&2 && "
        f"mount -o remount,rw {disk} && ! {report} && find {disk} -name '*.tmp' && "
        f"mount -o remount,size=400m {disk} && {report} && cp -r {disk}/r {copy}"
    )
    assert result.returncode == 0, result.stderr
    read_only, _, full = result.stderr.partition("now full")
    (line,) = read_only.splitlines()  # nothing was scored or drawn
    assert line.startswith(f"error: cannot write {disk}/r: ")
    assert full.count("error: disk full while writing") == full.count("error: ") == 1
    assert result.stdout.splitlines() == [f"{disk}/r/report.html"]  # and no .tmp
    assert (copy / "report.html").exists()
