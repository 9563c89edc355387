"""Fuzz the native codec: `python tests/fuzz/codec.py --chunks 2000000`.

Builds the codec and tests/fuzz/codec.cpp with the address and undefined-behaviour sanitizers and
decodes mutated chunks on every backend of this CPU. Two million take about ten minutes on a core.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "kernels" / "csrc"
CODEC = ("codec_cpu", "codec_cpu_portable", "crc32c")
FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-pthread"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
AVX2 = ["-mavx2", "-mf16c", "-mbmi2", "-mlzcnt", "-mpopcnt"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vbmi"]


def build(folder: Path, compiler: str = "c++") -> Path:
    """Compile the fuzzer into a folder and return its path."""
    flags = {name: list(FLAGS) for name in CODEC}
    if platform.machine().lower() in ("x86_64", "amd64"):
        flags |= {"codec_cpu_avx2": [*FLAGS, *AVX2], "codec_cpu_avx512": [*FLAGS, *AVX512]}
        for options in flags.values():
            options.append("-DECGFAST_X86")
    jobs = {SOURCES / f"{name}.cpp": options for name, options in flags.items()}
    jobs[Path(__file__).with_suffix(".cpp")] = list(FLAGS)
    objects = []
    for source, options in jobs.items():
        objects.append(folder / f"{source.stem}.o")
        command = [compiler, *options, f"-I{SOURCES}", "-c", str(source), "-o", str(objects[-1])]
        subprocess.run(command, check=True)
    program = folder / "fuzz_codec"
    subprocess.run([compiler, *FLAGS, *map(str, objects), "-o", str(program)], check=True)
    return program


def main() -> int:
    """Build and run; the exit code is the fuzzer's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=2_000_000, help="mutated chunks to decode")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations")
    parser.add_argument("--compiler", default="c++", help="GCC or Clang")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), arguments.compiler)
        command = [str(program), str(arguments.chunks), str(arguments.seed)]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
