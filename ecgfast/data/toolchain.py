"""Where the compilers and headers are that building the DALI operator takes."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from ecgfast.errors import BackendUnavailableError


def cuda_headers() -> Path:
    """Folder of cuda_runtime.h, which DALI's headers include for the CPU backend too.

    Raises:
        BackendUnavailableError: there is none.
    """
    compiler = shutil.which("nvcc")
    roots = [*([_real_root(Path(compiler))] if compiler else []), *_wheel_roots()]
    roots += [Path("/usr/local/cuda")]
    for root in roots:
        if (root / "include" / "cuda_runtime.h").is_file():
            return root / "include"
    raise BackendUnavailableError(
        "engine=dali needs CUDA's headers to build its operator, found none beside nvcc, in "
        "site-packages/nvidia or in /usr/local/cuda; pip install 'ecgfast[cuda]' brings them"
    )


def nvcc() -> str:
    """Path of CUDA's compiler: the wheel's where it is installed, else the one on PATH.

    Raises:
        BackendUnavailableError: there is none.
    """
    for root in _wheel_roots():
        if (root / "bin" / "nvcc").is_file():
            return str(root / "bin" / "nvcc")
    return program("nvcc", "pip install 'ecgfast[cuda]'")


def _real_root(compiler: Path) -> Path:
    """The toolkit's folder as nvcc itself says it: what lies on PATH may be a link or a script."""
    done = subprocess.run(
        [str(compiler), "--dryrun", "-x", "cu", "/dev/null", "-c", "-o", "/dev/null"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in done.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=")).resolve()
    return compiler.resolve().parent.parent


def _wheel_roots() -> list[Path]:
    """Folders in which NVIDIA's wheels put a toolkit: nvidia/cu13, nvidia/cuda_nvcc ..."""
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    return sorted(path for path in packages.glob("cu*") if path.is_dir())


def program(name: str, cure: str) -> str:
    """Path of a program that the build cannot do without.

    Raises:
        BackendUnavailableError: it is not there; the message ends with `cure`.
    """
    found = shutil.which(name, path=search_path())
    if found is None:
        raise BackendUnavailableError(
            f"engine=dali has to build its operator and needs {name}, which is not on PATH; "
            f"{cure}, or take engine=cpu"
        )
    return found


def search_path() -> str:
    """PATH with this interpreter's own programs first (cmake and ninja come as wheels)."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
