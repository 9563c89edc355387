"""Packages for a machine without a network, as an archive in pieces that fit an upload limit.

    python tools/pack_wheels.py --out bring --name quack quack-kernels==0.6.5 --python 3.12

Installs wheels (of another Python too) into a folder `site-packages`, whose name some of them ask
for, strips debug symbols from their libraries and writes NAME.tar.xz.000, .001 ... On the machine:

    cat bring/quack.tar.xz.* | tar xJ && export PYTHONPATH=$PWD/site-packages

Dependencies are not followed: name every package. Those of nvidia-cutlass-dsl lie one deeper, in
site-packages/nvidia_cutlass_dsl/dsl_packages.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

PIECE_BYTES = 60 << 20  # below 64 MiB
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")


def pack(folder: Path, first: Path, *, limit: int = PIECE_BYTES, dictionary_mib: int = 64) -> None:
    """Write a folder as a compressed archive in pieces: `first` with .000, .001 ... behind it.

    Args:
        folder: its name is that of the archive's only folder.
        first: path of the archive without the pieces' numbers.
        limit: bytes of a piece.
        dictionary_mib: of the compressor, which needs some eleven times as much memory.
    """
    xz = f"xz --x86 --lzma2=preset=9e,dict={dictionary_mib}MiB"
    line = f'set -o pipefail; tar c -C "$1" "$2" | {xz} | split -b {limit} -d -a 3 - "$3."'
    folder, first = folder.resolve(), first.resolve()
    subprocess.run(["bash", "-c", line, "", folder.parent, folder.name, first], check=True)


def main(
    requirements: list[str], out: Path = Path("bring"), name: str = "wheels", python: str = "3.12",
    dictionary_mib: Annotated[int, typer.Option(help="192 packs quack into one.")] = 64,
) -> None:  # fmt: skip
    """Install, strip, pack; print the pieces. Requirements are such as timm==1.0.20."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as temporary:
        packages = Path(temporary) / "site-packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        command += ["--only-binary", ":all:", "--python-version", python]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        subprocess.run([*command, "--target", packages, *requirements], check=True)
        for library in packages.rglob("*.so*"):
            subprocess.run(["strip", "--strip-unneeded", str(library)], check=False)
        pack(packages, out / f"{name}.tar.xz", dictionary_mib=dictionary_mib)
    for path in sorted(out.glob(f"{name}.tar.xz.*")):
        print(f"{path.stat().st_size / 2**20:6.1f} MiB  {path}")


if __name__ == "__main__":
    typer.run(main)
