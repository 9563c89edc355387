"""Packages for a machine without a network, as an archive in pieces that fit an upload limit.

    python tools/pack_wheels.py --out bring --name quack quack-kernels==0.6.5 --python 3.12

Installs wheels (of another Python too) into a folder `site-packages`, whose name some of them ask
for, strips debug symbols from their libraries and writes NAME.tar.xz.000, .001 ... On the machine:

    cat bring/quack.tar.xz.* | tar xJ && export PYTHONPATH=$PWD/site-packages

Dependencies are not followed: name every package. Those of nvidia-cutlass-dsl lie one deeper, in
site-packages/nvidia_cutlass_dsl/dsl_packages.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

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


def main() -> None:
    """Install, strip, pack; print the pieces."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("requirements", nargs="+", help="such as timm==1.0.20")
    parser.add_argument("--out", type=Path, default=Path("bring"), help="folder of the pieces")
    parser.add_argument("--name", default="wheels", help="of the archive")
    parser.add_argument("--python", default="3.12", help="version of the machine's Python")
    parser.add_argument("--dictionary-mib", type=int, default=64, help="192 packs quack into one")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out) as temporary:
        packages = Path(temporary) / "site-packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        command += ["--only-binary", ":all:", "--python-version", args.python]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        subprocess.run([*command, "--target", packages, *args.requirements], check=True)
        for library in packages.rglob("*.so*"):
            subprocess.run(["strip", "--strip-unneeded", str(library)], check=False)
        first = args.out / f"{args.name}.tar.xz"
        pack(packages, first, dictionary_mib=args.dictionary_mib)
    for path in sorted(args.out.glob(f"{first.name}.*")):
        print(f"{path.stat().st_size / 2**20:6.1f} MiB  {path}")


if __name__ == "__main__":
    main()
