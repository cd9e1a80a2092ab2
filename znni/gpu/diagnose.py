"""What a GPU needs, piece by piece: is it there, which one, and what to do where it is not. No context is opened."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from znni.errors import DeviceError, NoDevice
from znni.gpu.compile import nvcc_version
from znni.gpu.cuda_device import import_pycuda
from znni.gpu.cudnn import load, version_text
from znni.gpu.driver import OLDEST_CUDA, Driver, read_driver
from znni.gpu.libraries import CUBLAS, CUDNN, CUFFT, Library, find, find_nvcc, version_of
from znni.gpu.scikit_cuda import import_skcuda
from znni.nvidia import gpu_driver, gpu_model


@dataclass(frozen=True)
class Finding:
    """One piece.

    Attributes
    ----------
    name : str
        "driver", "device", "pycuda", "scikit-cuda", "cuFFT", "cuBLAS", "nvcc", "cuDNN"; only the last can be done without.
    found : bool
        It is there, and can be used.
    text : str
        Which one; else what is wrong, and what to do.
    """

    name: str
    found: bool
    text: str


def diagnose() -> tuple[Finding, ...]:
    """Look at every piece; never raises for what is missing."""
    driver, said = _driver()
    cuda = None if driver is None else driver.cuda
    libraries = [_library(library, cuda) for library in (CUFFT, CUBLAS)]
    return (
        *said,
        _pycuda(driver),
        _scikit_cuda(cuda),
        *libraries,
        _nvcc(),
        _cudnn(),
    )


def _driver() -> tuple[Driver | None, list[Finding]]:
    try:
        found = read_driver()
    except NoDevice as error:
        model = gpu_model()
        seen = f"{model}, which cannot be used without its driver" if model else "no NVIDIA device is to be seen"
        return None, [Finding("driver", False, str(error)), Finding("device", False, seen)]
    version = " ".join(filter(None, (gpu_driver(), "CUDA {}.{}".format(*found.cuda))))
    return found, [
        Finding("driver", True, version),
        Finding("device", True, ", ".join(f"{number}: {name}" for number, name in enumerate(found.devices))),
    ]


def _pycuda(driver: Driver | None) -> Finding:
    def look() -> str:
        version = _installed("pycuda", "pycuda")
        if driver is None:
            return f"{version}, not tried for want of a driver"
        return "{}, built for CUDA {}.{}".format(version, *import_pycuda(driver).get_version()[:2])

    return _looked("pycuda", look)


def _scikit_cuda(cuda: tuple[int, int] | None) -> Finding:
    def look() -> str:
        version = _installed("skcuda", "scikit-cuda")
        try:
            paths = find(CUFFT, cuda), find(CUBLAS, cuda)
        except NoDevice:
            return f"{version}, not tried for want of cuFFT or cuBLAS"
        import_skcuda(*paths)
        return version

    return _looked("scikit-cuda", look)


def _library(library: Library, cuda: tuple[int, int] | None) -> Finding:
    return _looked(library.name, lambda: str(find(library, cuda)))


def _nvcc() -> Finding:
    def look() -> str:
        path = find_nvcc()
        release = nvcc_version(path).partition("release ")[2].partition(",")[0]
        if not any(map(shutil.which, ("g++", "c++", "clang++"))):
            raise NoDevice(f"{path} needs a C++ compiler beside it; install g++")
        if release and int(release.partition(".")[0]) < OLDEST_CUDA:
            raise NoDevice(f"{path} is of CUDA {release}; {OLDEST_CUDA}.0 is the oldest that can be used")
        return f"{path}, CUDA {release or 'unknown'}"

    return _looked("nvcc", look)


def _cudnn() -> Finding:
    """Optional: without it there is no gpu.cudnn, and all else works."""

    def look() -> str:
        path = find(CUDNN)
        library = load(path)
        return f"{version_text(library.cudnnGetVersion())}, {path}" if version_of(path) else str(path)

    try:
        return _looked("cuDNN", look)
    except AttributeError as error:
        return Finding("cuDNN", False, str(error))


def _installed(module: str, distribution: str) -> str:
    """Version of a package; `NoDevice` where it is missing."""
    if importlib.util.find_spec(module) is None:
        raise NoDevice(f"{distribution} is not installed; pip install 'znni[gpu]'")
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _looked(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, look())
    except (NoDevice, DeviceError) as error:
        return Finding(name, False, str(error))
