"""The CUDA decoder compiled without a GPU: no warning, no spill, registers and store widths."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from emulator import Emulator

ROOT = Path(__file__).parents[2]
SHARED_BYTES_PER_SM = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
WARPS_PER_SM = {80: 24, 90: 32, 100: 32}  # that the shared memory must leave room for
WARPS_PER_BLOCK = 4  # kWarps of codec_cuda.cu
MOST_OF_A_LAUNCH = 48 << 10  # more has to be asked for with cudaFuncSetAttribute
KERNELS = ("Patches", "Signal", "gather_kernel")


def tool(name: str) -> str:
    """A CUDA binary tool: on PATH, or the copy in Triton's package."""
    spec = find_spec("triton")
    bundled = (
        Path(spec.origin).parent / "backends/nvidia/bin" / name if spec and spec.origin else None
    )
    found = shutil.which(name) or (str(bundled) if bundled and bundled.is_file() else None)
    if found is None:
        pytest.skip(f"{name} is neither on PATH nor in Triton's package")
    return found


@pytest.fixture(scope="module", params=sorted(WARPS_PER_SM), ids=lambda arch: f"sm_{arch}")
def arch(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def built(arch: int, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The object file and what the compiler said; any warning is an error."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    target = tmp_path_factory.mktemp(f"sm{arch}") / "codec_cuda.o"
    strict = (
        "-Werror all-warnings -Xptxas -v,-warn-spills,-warn-lmem-usage -Xcompiler -Wall,-Wextra"
    )
    source = ROOT / "kernels" / "csrc" / "codec_cuda.cu"
    done = subprocess.run(
        [
            nvcc,
            "-std=c++17",
            "-O3",
            f"-arch=sm_{arch}",
            *strict.split(),
            "-c",
            source,
            "-o",
            target,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target, done.stderr


@pytest.fixture(scope="module")
def machine_code(built: tuple[Path, str]) -> dict[str, list[str]]:
    """Instructions of each kernel, by a word of its name."""
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    path = f"{Path(cuobjdump).parent}:{Path(nvdisasm).parent}:/usr/bin:/bin"
    text = subprocess.run(
        [cuobjdump, "-sass", built[0]],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": path},
    ).stdout
    parts = re.split(r"Function : (\S+)", text)[1:]
    code: dict[str, list[str]] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        (kernel,) = [word for word in KERNELS if word in name]
        code[kernel] = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ +)?([A-Z0-9_.]+)", body)
    return code


def test_there_are_no_spills_and_registers_leave_the_chip_full(built: tuple[Path, str]) -> None:
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", built[1])
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", built[1])]
    assert len(stacks) == len(registers) == len(KERNELS)
    assert all(set(numbers) == {"0"} for numbers in stacks)
    assert max(registers) <= 64  # 65,536 registers of an SM / 64 / 32 lanes = 32 warps


def test_shared_memory_is_within_its_limits(
    arch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    emulator = Emulator.build(tmp_path_factory.mktemp("emulator"))
    most = WARPS_PER_BLOCK * emulator.stage_bytes(16, to_signal=True)
    assert most <= MOST_OF_A_LAUNCH
    # and 12 leads leave room for enough warps, with 1 KiB that the system keeps per block
    block = WARPS_PER_BLOCK * emulator.stage_bytes(12, to_signal=False) + 1024
    assert SHARED_BYTES_PER_SM[arch] // block * WARPS_PER_BLOCK >= WARPS_PER_SM[arch]


@pytest.mark.parametrize("kernel", ["Patches", "gather_kernel"])
def test_patches_leave_in_stores_of_16_bytes(
    machine_code: dict[str, list[str]], kernel: str
) -> None:
    stores = [op for op in machine_code[kernel] if op.startswith("STG")]
    assert stores
    assert all(op.startswith("STG.E.128") for op in stores), stores


def test_the_column_comes_in_copies_of_16_bytes(machine_code: dict[str, list[str]]) -> None:
    copies = [op for op in machine_code["Patches"] if op.startswith("LDGSTS")]
    assert copies
    assert all("128" in op for op in copies), copies


def test_nothing_is_fused(machine_code: dict[str, list[str]]) -> None:
    for kernel in ("Patches", "gather_kernel"):
        assert "FMUL" in machine_code[kernel]
        assert "FADD" in machine_code[kernel]
        assert not [op for op in machine_code[kernel] if op.startswith("FFMA")]


def test_no_lane_touches_local_memory(machine_code: dict[str, list[str]]) -> None:
    for kernel in KERNELS:
        assert not [op for op in machine_code[kernel] if op.startswith(("LDL", "STL"))]
