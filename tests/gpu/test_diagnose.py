"""Every piece that a GPU needs is found, or said to be missing, and nothing raises."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from znni.errors import DeviceError, NoDevice
from znni.gpu import diagnose as looking
from znni.gpu.diagnose import Finding, diagnose
from znni.gpu.driver import Driver

NAMES = ["driver", "device", "pycuda", "scikit-cuda", "cuFFT", "cuBLAS", "nvcc", "cuDNN"]


@pytest.fixture
def whole(monkeypatch):
    """A machine that has everything."""
    monkeypatch.setattr(looking, "read_driver", lambda: Driver((13, 0), ("NVIDIA H200",)))
    monkeypatch.setattr(looking, "gpu_driver", lambda: "580.82.07")
    monkeypatch.setattr(looking, "gpu_model", lambda: "NVIDIA H200")
    monkeypatch.setattr(looking, "find", lambda library, cuda=None: Path(f"/lib/lib{library.stem}.so.9"))
    monkeypatch.setattr(looking, "import_pycuda", lambda driver: SimpleNamespace(get_version=lambda: (13, 0, 0)))
    monkeypatch.setattr(looking, "import_skcuda", lambda *paths: None)
    monkeypatch.setattr(looking.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(looking.importlib.metadata, "version", {"pycuda": "2026.1", "scikit-cuda": "0.5.3"}.get)
    monkeypatch.setattr(looking, "load", lambda path: SimpleNamespace(cudnnGetVersion=lambda: 91300))
    monkeypatch.setattr(looking, "find_nvcc", lambda: Path("/usr/local/cuda/bin/nvcc"))
    monkeypatch.setattr(looking, "nvcc_version", lambda path: "nvcc: NVIDIA\nCuda tools, release 13.0, V13.0.48")
    monkeypatch.setattr(looking.shutil, "which", lambda name: f"/usr/bin/{name}")
    return monkeypatch


def _said() -> dict[str, Finding]:
    found = diagnose()
    assert [finding.name for finding in found] == NAMES
    return {finding.name: finding for finding in found}


def _raiser(error):
    def raises(*_, **__):
        raise error

    return raises


def test_all_is_there(whole):
    said = _said()
    assert all(finding.found for finding in said.values())
    assert {name: finding.text for name, finding in said.items()} == {
        "driver": "580.82.07 CUDA 13.0",
        "device": "0: NVIDIA H200",
        "pycuda": "2026.1, built for CUDA 13.0",
        "scikit-cuda": "0.5.3",
        "cuFFT": "/lib/libcufft.so.9",
        "cuBLAS": "/lib/libcublas.so.9",
        "nvcc": "/usr/local/cuda/bin/nvcc, CUDA 13.0",
        "cuDNN": "9.13.0, /lib/libcudnn.so.9",
    }


def test_without_a_driver_the_rest_is_looked_at_all_the_same(whole):
    whole.setattr(looking, "read_driver", _raiser(NoDevice("no NVIDIA driver: libcuda.so.1")))
    said = _said()
    assert not said["driver"].found and "libcuda.so.1" in said["driver"].text
    assert not said["device"].found and said["device"].text.startswith("NVIDIA H200, which cannot be used")
    assert said["pycuda"].text == "2026.1, not tried for want of a driver"
    assert said["cuFFT"].found and said["nvcc"].found
    whole.setattr(looking, "gpu_model", lambda: None)
    assert _said()["device"].text == "no NVIDIA device is to be seen"


@pytest.mark.parametrize(
    ("attribute", "error", "missing"),
    [
        ("find", NoDevice("nowhere"), {"cuFFT", "cuBLAS", "cuDNN"}),
        ("find_nvcc", NoDevice("no nvcc"), {"nvcc"}),
        ("nvcc_version", DeviceError("does not run"), {"nvcc"}),
        ("import_pycuda", NoDevice("another CUDA"), {"pycuda"}),
        ("import_skcuda", NoDevice("cannot be loaded"), {"scikit-cuda"}),
        ("load", DeviceError("broken"), {"cuDNN"}),
    ],
)
def test_each_piece_may_be_missing(whole, attribute, error, missing):
    whole.setattr(looking, attribute, _raiser(error))
    said = _said()
    assert {name for name, finding in said.items() if not finding.found} == missing
    assert all(str(error) in said[name].text for name in missing)


def test_packages_and_compilers_that_are_missing_or_old(whole):
    whole.setattr(looking.importlib.util, "find_spec", lambda name: None)
    said = _said()
    assert "pip install 'znni[gpu]'" in said["pycuda"].text and "pip install 'znni[gpu]'" in said["scikit-cuda"].text
    whole.setattr(looking, "nvcc_version", lambda path: "release 11.8, V11.8.89")
    assert "CUDA 11.8; 12.0 is the oldest" in _said()["nvcc"].text
    whole.setattr(looking.shutil, "which", lambda name: None)
    assert "install g++" in _said()["nvcc"].text
    whole.setattr(looking, "load", lambda path: SimpleNamespace())
    assert not _said()["cuDNN"].found


def test_this_machine_is_diagnosed_whatever_it_is():
    assert len(_said()) == len(NAMES)
