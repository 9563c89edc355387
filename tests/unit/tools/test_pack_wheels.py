"""tools/pack_wheels.py: pieces below their limit that `cat` and `tar` make whole again."""

import random
import subprocess
from pathlib import Path

from scripts import script


def test_pieces_joined_are_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "site-packages"
    (folder / "inner").mkdir(parents=True)
    content = random.Random(0).randbytes(10_000)  # does not compress
    (folder / "inner" / "library.so").write_bytes(content)
    tool = script("tools/pack_wheels.py")
    tool.pack(folder, tmp_path / "it.tar.xz", limit=4096, dictionary_mib=1)
    pieces = sorted(tmp_path.glob("it.tar.xz.*"))
    assert [piece.name for piece in pieces] == [f"it.tar.xz.{n:03d}" for n in range(3)]
    assert max(piece.stat().st_size for piece in pieces) <= 4096
    there = tmp_path / "there"
    there.mkdir()
    subprocess.run("cat ../it.tar.xz.* | tar xJ", shell=True, check=True, cwd=there)
    assert (there / "site-packages" / "inner" / "library.so").read_bytes() == content
