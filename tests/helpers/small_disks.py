"""Scripts that mount small and read-only disks, which end with them."""

import shutil
import subprocess

import pytest


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount file systems of its own; skip where that is forbidden."""
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
