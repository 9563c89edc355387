"""Compile every kernel for one architecture without a GPU and print what the compiler made of it.

    python compile_kernels.py 90

A process of its own, because the tests run the interpreter and Triton decides between the two when
a kernel is defined.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from kernel_jobs import Job, jobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Scalars that multiples of 16 are passed for; Triton specialises on that at launch.
MULTIPLES_OF_16 = {
    "num_patches",
    "width",
    "rows_per_split",
    "num_elements",
    "num_heads",
    "num_columns",
    "depth",
}
FLOATS = {"scale", "log2_e", "eps", "beta1", "beta2"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the compiler made of a job."""

    name: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    copy_bytes: list[int]  # sizes of the asynchronous copies to shared memory
    in_flight: int  # how many of them may be under way while the kernel's loop runs
    wide_loads: int  # how many of 16 bytes
    wide_stores: int
    exponentials: int  # in the code of one thread
    loop_barriers: int  # in the first loop
    tensor_core: str


def compile_job(job: Job, arch: int) -> Report:
    """Compile one job for ``sm_<arch>`` and read PTX and resource usage."""
    config = dict(job.config)
    settings = ("num_warps", "num_stages", "maxnreg")
    options = {key: config.pop(key) for key in settings if key in config}
    constants = job.constants | config
    signature = {}
    aligned = {}
    for index, name in enumerate(job.kernel.arg_names):
        scalar = "fp32" if name in FLOATS else "i64" if name in job.wide else "i32"
        signature[name] = "constexpr" if name in constants else job.pointers.get(name, scalar)
        if name in job.pointers or name in MULTIPLES_OF_16:
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=job.kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    registers, stack, local = _resources(compiled.asm["cubin"])
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global [^;]*?, 0x(\w+)", ptx)
    waits = [int(count) for count in re.findall(r"cp\.async\.wait_group\s+(\d+)", ptx)]
    loop = re.search(r"(\$L__BB\w+):.*?bra(?:\.uni)?\s+\1;", ptx, re.DOTALL)
    tensor_core = re.search(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", ptx)
    return Report(
        name=job.name,
        registers=registers,
        spill_bytes=stack + local,
        shared_bytes=compiled.metadata.shared,
        copy_bytes=sorted({int(size, 16) for size in copies}),
        in_flight=waits[-2] if len(waits) > 1 else 0,  # the last one is behind the loop, for all
        wide_loads=len(re.findall(r"ld\.global[\w.:]*\.(?:v4\.b32|v2\.b64)", ptx)),
        wide_stores=len(re.findall(r"st\.global[\w.:]*\.(?:v4\.b32|v2\.b64)", ptx)),
        exponentials=len(re.findall(r"ex2\.approx", ptx)),
        loop_barriers=loop.group().count("bar.sync") if loop else 0,
        tensor_core=tensor_core.group() if tensor_core else "",
    )


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers, stack bytes and local bytes of a cubin, from the tool in Triton's package."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert usage, text
    return int(usage[1]), int(usage[2]), int(usage[3])


if __name__ == "__main__":
    target = int(sys.argv[1])
    print(json.dumps([asdict(compile_job(job, target)) for job in jobs(target)]))
