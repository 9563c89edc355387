"""Builds and loads the DALI operator `ecg_decode`: once per DALI version, CUDA major and GPU.

The compilers and headers for it are looked for in NVIDIA's wheels, on PATH and in /usr/local/cuda.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ecgfast_kernels

from ecgfast import log
from ecgfast.errors import BackendUnavailableError

_LIBRARY = "libecgfast_dali.so"
_SOURCES = ("codec.h", "codec_format.h", "codec_cuda.*", "warp*.h", "dali_plugin/*")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a build of the operator depends on.

    Attributes:
        dali: version of DALI.
        cuda: CUDA major version, or "cpu" for a build without the GPU backend.
        arch: compute capability such as "90", or "".
    """

    dali: str
    cuda: str
    arch: str

    @property
    def folder(self) -> str:
        """Name of the build's folder in the cache, without the sources' digest."""
        parts = [f"dali-{self.dali}", "cpu" if self.cuda == "cpu" else f"cuda-{self.cuda}"]
        return "-".join([*parts, *([f"sm{self.arch}"] if self.arch else [])])


_loaded: list[Target] = []  # at most one: an operator is registered once in a process


def load_plugin(device_index: int | None) -> None:
    """Make `fn.ecg_decode` known to DALI in this process, building it first where need be.

    Args:
        device_index: the GPU that will run it, or None for the CPU.
    Raises:
        BackendUnavailableError: DALI, a compiler or the CUDA headers are missing, or the build
            failed; the message holds the compiler's last lines.
    """
    target = find_target(device_index)
    if _loaded and target not in _loaded:  # DALI aborts the process when an operator comes twice
        raise BackendUnavailableError(
            f"engine=dali runs for {_loaded[0].folder} in this process and cannot change to "
            f"{target.folder}; start another process, or take engine=cpu"
        )
    path = build_plugin(target, cache_folder())
    if not _loaded:
        from nvidia.dali import plugin_manager

        plugin_manager.load_library(str(path))
        _loaded.append(target)


def is_installed() -> bool:
    """Whether DALI is there; importing it takes a second."""
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no package of NVIDIA's at all
        return False


def find_target(device_index: int | None) -> Target:
    """What to build for a GPU (None: the CPU).

    Raises:
        BackendUnavailableError: DALI is not installed.
    """
    try:
        from nvidia import dali
    except ImportError as error:
        raise BackendUnavailableError(
            f"engine=dali needs DALI, which cannot be imported ({error}); "
            "pip install 'ecgfast[cuda]', or take engine=cpu"
        ) from error
    if device_index is None:
        return Target(dali=dali.__version__, cuda="cpu", arch="")
    import torch

    major, minor = torch.cuda.get_device_capability(device_index)
    cuda = str(torch.version.cuda).partition(".")[0]
    return Target(dali=dali.__version__, cuda=cuda, arch=f"{major}{minor}")


def cache_folder() -> Path:
    """Where builds are kept: ``$XDG_CACHE_HOME/ecgfast/dali``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ecgfast" / "dali"


def build_plugin(target: Target, cache: Path) -> Path:
    """Build the operator with CMake, or find it built; concurrent processes wait for one build.

    Args:
        target: what to build for.
        cache: folder of all builds; created when missing.
    Returns:
        The library's path.
    Raises:
        BackendUnavailableError: as `load_plugin`, or what is in the cache is not this user's own.
    """
    source = _source_folder()
    folder = cache / f"{target.folder}-{_digest(source)}"
    library = folder / _LIBRARY
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    _require_own(cache)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel drops it when this process ends, however
        if not library.is_file():
            log.info(f"building the DALI operator for {target.folder} (once, about half a minute)")
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                built = _run_cmake(target, source, Path(scratch))
                folder.mkdir(exist_ok=True, mode=0o700)
                _require_own(folder)
                built.chmod(0o700)
                os.replace(built, library)
    for path in (folder, library):
        _require_own(path)
    return library


def _require_own(path: Path) -> None:
    """Refuse what another user may have put there: a library runs its code when it is loaded.

    Raises:
        BackendUnavailableError: another user owns it or may write to it, or it is a link.
    """
    found = path.lstat()
    if found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}"
    elif stat.S_ISLNK(found.st_mode):
        problem = "is a link"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = f"can be changed by others (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return
    raise BackendUnavailableError(
        f"{path} {problem} and would be run as code; delete it and it is built again, or set "
        "XDG_CACHE_HOME to a folder of your own"
    )


def _run_cmake(target: Target, source: Path, build: Path) -> Path:
    cmake = program("cmake", "pip install cmake ninja")
    compiler = nvcc() if target.cuda != "cpu" else None
    settings: dict[str, Any] = {
        "CMAKE_BUILD_TYPE": "Release",
        "ECGFAST_CODEC_LIBRARY": _codec_library(),
        "CUDA_INCLUDE_DIR": cuda_headers(),
        "ECGFAST_CUDA": "ON" if compiler else "OFF",
        **_dali_settings(),
    }
    if compiler:
        settings |= {"CMAKE_CUDA_COMPILER": compiler, "CMAKE_CUDA_ARCHITECTURES": target.arch}
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=search_path()) else []
    for command in (
        [cmake, "-S", str(source / "dali_plugin"), "-B", str(build), *generator, *defines],
        [cmake, "--build", str(build)],
    ):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PATH": search_path()},
        )
        if done.returncode != 0:
            output = (done.stdout + done.stderr).strip().splitlines()[-8:]
            raise BackendUnavailableError(
                f"the DALI operator for {target.folder} could not be built: "
                f"{' | '.join(output)}; install a C++17 compiler (and nvcc for a GPU), or take "
                "engine=cpu"
            )
    return build / _LIBRARY


def _dali_settings() -> dict[str, str]:
    flags: Any = import_module("nvidia.dali.sysconfig")
    backend: Any = import_module("nvidia.dali.backend")
    return {
        "DALI_INCLUDE_DIR": flags.get_include_dir(),
        "DALI_LIBRARY_DIR": flags.get_lib_dir(),
        "DALI_CXX11_ABI": str(backend.GetCxx11AbiFlag()),
    }


def _source_folder() -> Path:
    """kernels/csrc of a source tree, or the copy that an installed package carries."""
    assert ecgfast_kernels.__file__ is not None
    modules = Path(ecgfast_kernels.__file__).parent
    # `files` also sees what an editable installation keeps apart from the source tree
    installed = Path(str(files("ecgfast_kernels") / "csrc"))
    for folder in (modules.parent / "csrc", installed):
        if (folder / "dali_plugin" / "CMakeLists.txt").is_file():
            return folder
    raise BackendUnavailableError(
        f"the DALI operator's sources are not beside {modules}; reinstall ecgfast, or take "
        "engine=cpu"
    )


def _digest(source: Path) -> str:
    names = sorted(path for pattern in _SOURCES for path in source.glob(pattern))
    content = hashlib.sha256()
    for path in names:
        content.update(path.read_bytes())
    content.update(str(_codec_library()).encode())  # the operator is linked to it by path
    return content.hexdigest()[:12]


def _codec_library() -> Path:
    path = Path(str(files("ecgfast_kernels") / "libecgfast_codec.so"))
    if not path.is_file():
        raise BackendUnavailableError(
            "engine=dali needs the native codec, which was not built; install g++ or clang and "
            "reinstall ecgfast"
        )
    return path


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
    """The toolkit's folder as nvcc itself reports it: what is on PATH may be a link or a script."""
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
