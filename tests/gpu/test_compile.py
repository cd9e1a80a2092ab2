"""Kernels are compiled once, and anew where anything changes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from znni.errors import DeviceError
from znni.gpu import compile as compiling
from znni.gpu.compile import KernelCompiler, default_folder, nvcc_version

KERNEL = """#include "scale.cuh"
extern "C" __global__ void scaled(float *x) { x[threadIdx.x] *= scale() * FACTOR; }
"""


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "cu"
    folder.mkdir()
    (folder / "kernel.cu").write_text(KERNEL)
    (folder / "scale.cuh").write_text('#include "deeper.cuh"\nstatic __device__ float scale() { return TWO; }\n')
    (folder / "deeper.cuh").write_text("  # include <math.h>\n#define TWO 2.0f\n")
    return folder


@pytest.fixture
def nvcc(tmp_path):
    """A compiler that can say its version."""
    path = tmp_path / "nvcc"
    path.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.48'\n")
    path.chmod(0o755)
    nvcc_version.cache_clear()
    return path


@pytest.fixture
def make(tmp_path, sources, nvcc):
    """Compilers that share a folder, and what they compiled."""
    calls = []

    def compiler(text, options, architecture, nvcc):
        calls.append((text, options, architecture, nvcc))
        return f"code {len(calls)}".encode()

    def made(architecture="sm_90", folder=tmp_path / "cache"):
        return KernelCompiler(architecture, nvcc, compiler, folder, sources)

    made.calls = calls
    return made


def test_it_is_compiled_once(make, sources, nvcc, tmp_path):
    assert make().machine_code("kernel.cu", {"FACTOR": 3, "A": "x"}) == b"code 1"
    assert make().machine_code("kernel.cu", {"A": "x", "FACTOR": 3}) == b"code 1"
    ((text, options, architecture, used),) = make.calls
    assert text == '#line 1 "kernel.cu"\n' + KERNEL
    assert options == ["-std=c++17", "-O3", "-lineinfo", "-DA=x", "-DFACTOR=3", f"-I{sources}"]
    assert (architecture, used) == ("sm_90", nvcc)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".cubin"]


@pytest.mark.parametrize("name", ["kernel.cu", "scale.cuh", "deeper.cuh"])
def test_anew_where_a_source_changes(make, sources, name):
    make().machine_code("kernel.cu")
    (sources / name).write_text((sources / name).read_text() + "// more\n")
    assert make().machine_code("kernel.cu") == b"code 2"


def test_anew_for_other_macros_architectures_and_compilers(make, nvcc):
    make().machine_code("kernel.cu", {"FACTOR": 3})
    make().machine_code("kernel.cu", {"FACTOR": 4})
    make("sm_80").machine_code("kernel.cu", {"FACTOR": 3})
    nvcc.write_text("#!/bin/sh\necho 'release 13.1'\n")
    nvcc_version.cache_clear()
    make().machine_code("kernel.cu", {"FACTOR": 3})
    assert len(make.calls) == 4


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_damaged_entries_are_compiled_again(make, tmp_path, damage):
    make().machine_code("kernel.cu")
    (entry,) = (tmp_path / "cache").iterdir()
    entry.write_bytes(entry.read_bytes()[:-1] if damage is None else damage)
    assert make().machine_code("kernel.cu") == b"code 2"
    assert make().machine_code("kernel.cu") == b"code 2"


def test_where_nothing_can_be_kept_it_is_said_once(make, tmp_path):
    (tmp_path / "file").write_text("")
    compiler = make(folder=tmp_path / "file/cache")
    with pytest.warns(UserWarning, match="set ZNNI_CACHE") as said:
        assert [compiler.machine_code("kernel.cu") for _ in range(2)] == [b"code 1", b"code 2"]
    assert len(said) == 1


def test_a_write_that_breaks_off_leaves_nothing(make, tmp_path, monkeypatch):
    def broken(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(compiling.os, "replace", broken)
    with pytest.warns(UserWarning, match="disk full"):
        make().machine_code("kernel.cu")
    assert not list((tmp_path / "cache").iterdir())


def test_a_source_that_is_missing(make):
    with pytest.raises(DeviceError, match=r"none\.cu cannot be read"):
        make().machine_code("none.cu")


def test_a_compiler_that_does_not_run(tmp_path):
    with pytest.raises(DeviceError, match="does not run"):
        nvcc_version(tmp_path / "none")


def test_the_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("ZNNI_CACHE", "/a")
    assert default_folder() == Path("/a/kernels")
    monkeypatch.delenv("ZNNI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_folder() == Path("/b/znni/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache/znni/kernels"


def _with_nvcc(text, options, architecture, nvcc):
    """As `with_pycuda`, without the driver that pycuda needs."""
    folder = Path(options.pop().removeprefix("-I"))
    source = folder / "again.cu"
    source.write_text(text)
    done = subprocess.run(
        [nvcc, "-cubin", "-arch", architecture, *options, f"-I{folder}", "-o", folder / "out", source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise DeviceError(done.stderr)
    return (folder / "out").read_bytes()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_the_real_compiler(sources, tmp_path):
    real = Path(shutil.which("nvcc"))
    assert "release" in nvcc_version(real)
    compiler = KernelCompiler("sm_80", real, _with_nvcc, tmp_path / "cache", sources)
    code = compiler.machine_code("kernel.cu", {"FACTOR": "5.0f"})
    assert code.startswith(b"\x7fELF") and b"scaled" in code
    with pytest.raises(DeviceError, match=r"kernel\.cu.*FACTOR"):
        compiler.machine_code("kernel.cu")
    assert os.listdir(tmp_path / "cache") != []
