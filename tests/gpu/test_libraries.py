"""Where CUDA's libraries and compiler are found, in made-up folders."""

import sys

import pytest

from znni.errors import NoDevice
from znni.gpu import libraries
from znni.gpu.libraries import CUBLAS, CUDNN, CUFFT, find, find_nvcc, load_companions, version_of


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty system."""
    for name in ("CUDA_HOME", "CUDA_PATH", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), ""])
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(libraries, "_cached", lambda stem: [])
    return tmp_path


def _file(path, text="", mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_both_layouts_of_nvidias_packages(root):
    twelve = _file(root / "site/nvidia/cufft/lib/libcufft.so.11")
    _file(root / "site/nvidia/cufft/lib/libcufftw.so.11")
    assert find(CUFFT, (12, 4), root) == twelve
    thirteen = _file(root / "site/nvidia/cu13/lib/libcufft.so.12")
    assert find(CUFFT, (13, 0), root) == thirteen
    assert find(CUFFT, None, root) == thirteen
    assert find(CUFFT, (12, 9), root) == twelve  # the driver is too old for the newer one


def test_cudnn_is_versioned_by_itself(root):
    path = _file(root / "site/nvidia/cudnn/lib/libcudnn.so.9")
    _file(root / "site/nvidia/cudnn/lib/libcudnn_ops.so.9")
    assert find(CUDNN, (12, 0), root) == path


def test_places_in_turn(root, monkeypatch):
    last = root / "cache/libcublas.so.13"
    monkeypatch.setattr(libraries, "_cached", lambda stem: [last])
    assert find(CUBLAS, (13, 0), root) == last
    expected = []
    for folder in (
        "usr/lib/x86_64-linux-gnu",
        "own",
        "prefix/lib",
        "usr/local/cuda-12.9/lib64",
        "usr/local/cuda-13.0/lib64",
    ):
        expected.append(_file(root / folder / "libcublas.so.13"))
        if folder == "own":
            monkeypatch.setenv("LD_LIBRARY_PATH", f":{root / 'own'}")
        assert find(CUBLAS, (13, 0), root) == expected[-1]
    home = _file(root / "home/targets/x86_64-linux/lib/libcublas.so.13")
    monkeypatch.setenv("CUDA_HOME", str(root / "home"))
    assert find(CUBLAS, (13, 0), root) == home
    wheel = _file(root / "site/nvidia/cu13/lib/libcublas.so.13")
    assert find(CUBLAS, (13, 0), root) == wheel
    loaded = "/opt/elsewhere/lib/libcublas.so.13"
    _file(
        root / "proc/self/maps",
        f"7f00-7f01 r-xp 00000000 08:01 42   {loaded}\n7f02-7f03 r--p 0 0 0 /x/libcublasLt.so.13\n",
    )
    assert str(find(CUBLAS, (13, 0), root)) == loaded


def test_versions_are_read_from_names_and_links(root):
    real = _file(root / "lib/libcufft.so.11.3.3.83")
    (root / "lib/libcufft.so").symlink_to(real)
    assert version_of(real) == version_of(root / "lib/libcufft.so") == (11, 3, 3, 83)
    assert version_of(_file(root / "lib/libcublas.so")) == ()


def test_nowhere_is_said_with_where_it_was_looked_for(root):
    _file(root / "site/nvidia/cu13/lib/libcufft.so.12")
    with pytest.raises(NoDevice) as error:
        find(CUBLAS, (13, 0), root)
    assert str(root / "site/nvidia/cu13/lib") in str(error.value)
    for words in ("cuBLAS was not found", "pip install nvidia-cublas (CUDA 13)", "LD_LIBRARY_PATH (not set)"):
        assert words in str(error.value)
    with pytest.raises(NoDevice, match=r"passed over, for the driver supports CUDA 12 at most: .*libcufft\.so\.12"):
        find(CUFFT, (12, 4), root)


def test_the_loaders_cache_is_read(root, monkeypatch):
    monkeypatch.undo()
    said = "\tlibcublas.so.12 (libc6,x86-64) => /usr/lib/libcublas.so.12\n\tlibcublasLt.so.12 (libc6,x86-64) => /usr/lib/no\n"
    _file(root / "bin/ldconfig", f"#!/bin/sh\nprintf '{said}'\n", 0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:/bin:/usr/bin")
    assert [str(path) for path in libraries._cached("cublas")] == ["/usr/lib/libcublas.so.12"]


def test_companions_are_loaded_from_beside_or_elsewhere(root, monkeypatch):
    loaded = []
    monkeypatch.setattr(libraries.ctypes, "CDLL", loaded.append)
    path = _file(root / "site/nvidia/cudnn/lib/libcudnn.so.9")
    beside = _file(path.parent / "libcublasLt.so.13")
    elsewhere = _file(root / "site/nvidia/cuda_nvrtc/lib/libnvrtc.so.13")
    load_companions(CUDNN, path, root)
    assert loaded == [str(elsewhere), str(beside)]

    def broken(name):
        raise OSError("no")

    monkeypatch.setattr(libraries.ctypes, "CDLL", broken)
    load_companions(CUDNN, path, root)


def test_nvcc_in_turn(root, monkeypatch):
    with pytest.raises(NoDevice, match="no nvcc on the PATH"):
        find_nvcc(root)
    for path in ("usr/local/cuda-12.4/bin/nvcc", "usr/local/cuda/bin/nvcc", "site/nvidia/cu13/bin/nvcc", "bin/nvcc"):
        _file(root / path, "", 0o644)
        assert path.startswith("usr/local/cuda-12.4") or find_nvcc(root) != root / path
        (root / path).chmod(0o755)
        (root / "site/nvidia/cu13/lib").mkdir(parents=True, exist_ok=True)
        assert find_nvcc(root) == root / path
    home = _file(root / "home/bin/nvcc", "", 0o755)
    monkeypatch.setenv("CUDA_PATH", str(root / "home"))
    assert find_nvcc(root) == home
