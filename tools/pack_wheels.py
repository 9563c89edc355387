"""Packages for a machine without a network, as an archive in pieces that fit an upload limit.

    python tools/pack_wheels.py --out bring --name quack quack-kernels==0.6.5 --python 3.12

Installs wheels (of another Python too) into a folder `site-packages`, whose name some of them ask
for, strips debug symbols from their libraries and writes NAME.tar.xz.000, .001 ... On the machine:

    cat bring/quack.tar.xz.* | tar xJ && export PYTHONPATH=$PWD/site-packages

Dependencies are not followed: name every package. Those of nvidia-cutlass-dsl lie one deeper, in
site-packages/nvidia_cutlass_dsl/dsl_packages.
"""

import argparse
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

PIECE_BYTES = 60 << 20  # below 64 MiB
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")


def install(requirements: Sequence[str], target: Path, python: str) -> None:
    """Put wheels into a folder, without dependencies."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--only-binary", ":all:", "--target", str(target), "--python-version", python]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, *requirements], check=True)


def strip(folder: Path) -> None:
    """Drop debug symbols of shared libraries; a machine without `strip` keeps them."""
    if shutil.which("strip") is None:
        print("strip is missing: libraries stay as large as they are")
        return
    for library in folder.rglob("*.so*"):
        subprocess.run(["strip", "--strip-unneeded", str(library)], check=False)


def pack(
    folder: Path, first: Path, *, limit: int = PIECE_BYTES, dictionary_mib: int = 64
) -> list[Path]:
    """Write a folder as a compressed archive in pieces.

    Args:
        folder: its name is that of the archive's only folder.
        first: path of the archive without the pieces' numbers.
        limit: bytes of a piece.
        dictionary_mib: of the compressor, which needs some eleven times as much memory.
    Returns:
        the pieces, in order.
    """
    filters = [
        {"id": lzma.FILTER_X86},
        {
            "id": lzma.FILTER_LZMA2,
            "preset": 9 | lzma.PRESET_EXTREME,
            "dict_size": dictionary_mib << 20,
        },
    ]
    pieces = []
    with tempfile.TemporaryFile(dir=first.parent) as whole:
        with (
            lzma.open(whole, "wb", filters=filters) as packed,
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            archive.add(folder, arcname=folder.name)
        whole.seek(0)
        while piece := whole.read(limit):
            path = first.with_name(f"{first.name}.{len(pieces):03d}")
            path.write_bytes(piece)
            pieces.append(path)
    return pieces


def main() -> int:
    """Install, strip, pack; print the pieces."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("requirements", nargs="+", help="such as timm==1.0.20")
    parser.add_argument("--out", type=Path, default=Path("bring"), help="folder of the pieces")
    parser.add_argument("--name", default="wheels", help="of the archive")
    parser.add_argument("--python", default="3.12", help="version of the machine's Python")
    parser.add_argument("--dictionary-mib", type=int, default=64, help="192 packs quack into one")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out) as temporary:
        packages = Path(temporary) / "site-packages"
        install(arguments.requirements, packages, arguments.python)
        strip(packages)
        first = arguments.out / f"{arguments.name}.tar.xz"
        for path in pack(packages, first, dictionary_mib=arguments.dictionary_mib):
            print(f"{path.stat().st_size / 2**20:6.1f} MiB  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
