"""The DALI operator's build: from clean, once, without a warning, and readable when it fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ecgfast.data.dali import build
from ecgfast.errors import BackendUnavailableError

pytest.importorskip("nvidia.dali", reason="DALI is not installed")
CPU_TARGET = build.Target(dali="0", cuda="cpu", arch="")
# DALI's headers are system headers, but inlining one of theirs makes GCC 12 warn of a free.
STRICT = "-Wall -Wextra -Werror -Wno-error=free-nonheap-object"


def test_a_build_from_clean_and_the_second_call_builds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXXFLAGS", STRICT)
    target = build.find_target(None)
    library = build.build_plugin(target, tmp_path)
    built_at = library.stat().st_mtime_ns
    assert build.build_plugin(target, tmp_path) == library
    assert library.stat().st_mtime_ns == built_at
    assert target.dali in library.parent.name
    leftovers = {path.name for path in tmp_path.iterdir()}
    assert leftovers == {library.parent.name, f"{library.parent.name}.lock"}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("writable", r"libecgfast_dali\.so can be changed by others \(mode 0777\)"),
        ("link", r"libecgfast_dali\.so is a link"),
        ("folder", r"can be changed by others \(mode 0770\) and would be run as code"),
        ("owner", r"libecgfast_dali\.so belongs to user 12345"),
    ],
)
def test_a_library_that_others_may_have_put_there_is_not_loaded(
    damage: str, said: str, tmp_path: Path
) -> None:
    if damage == "owner" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    cache = tmp_path / "dali"
    source = build._source_folder()
    folder = cache / f"{CPU_TARGET.folder}-{build._digest(source)}"
    folder.mkdir(parents=True, mode=0o700)
    cache.chmod(0o700)
    library = folder / "libecgfast_dali.so"
    library.write_bytes(b"not ours")
    library.chmod(0o700)
    if damage == "writable":
        library.chmod(0o777)
    elif damage == "link":
        library.rename(tmp_path / "elsewhere.so")
        library.symlink_to(tmp_path / "elsewhere.so")
    elif damage == "folder":
        folder.chmod(0o770)
    else:
        os.chown(library, 12345, -1)
    with pytest.raises(BackendUnavailableError, match=said):
        build.build_plugin(CPU_TARGET, cache)


def test_another_target_has_another_folder() -> None:
    folders = {
        build.Target(dali=dali, cuda=cuda, arch=arch).folder
        for dali, cuda, arch in [
            ("2.4.0", "13", "90"),
            ("2.4.0", "13", "80"),
            ("2.5.0", "13", "90"),
        ]
    }
    assert len(folders | {CPU_TARGET.folder}) == 4


def test_without_cmake_the_message_names_it_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "search_path", lambda: str(tmp_path))
    with pytest.raises(BackendUnavailableError, match=r"needs cmake.*pip install cmake"):
        build.build_plugin(build.find_target(None), tmp_path)


def test_a_failed_build_tells_what_the_compiler_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(BackendUnavailableError, match=r"could not be built: .*take engine=cpu"):
        build.build_plugin(CPU_TARGET, tmp_path)
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_the_gpu_backend_builds_and_registers_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    monkeypatch.setenv("CXXFLAGS", STRICT)
    monkeypatch.setenv("CUDAFLAGS", f"-Werror all-warnings -Xcompiler {STRICT.replace(' ', ',')}")
    found = build.find_target(None)
    target = build.Target(dali=found.dali, cuda="13", arch=arch)
    library = build.build_plugin(target, tmp_path)
    assert library.parent.name.startswith(f"dali-{found.dali}-cuda-13-sm{arch}-")
    program = (
        "import sys; from nvidia.dali import ops, plugin_manager as m; m.load_library(sys.argv[1]);"
        "assert 'EcgDecode' in ops.cpu_ops() and 'EcgDecode' in ops.gpu_ops()"
    )
    subprocess.run([sys.executable, "-c", program, str(library)], check=True)
