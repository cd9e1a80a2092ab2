"""scikit-cuda 0.5.3, made to work: it knows CUDA up to 10.1, the NumPy and the setuptools of 2019.

All that it needs is here. While `skcuda.cufft` and `skcuda.cublas` are imported

- the libraries that they ask for by name are the files that `znni.gpu.libraries` found;
- the version of cuBLAS is told from its file's name, for else a handle is made on import, before there is a context;
- `skcuda.version`, which wants pkg_resources, and `skcuda.cuda`, which wants the driver and the runtime under names that nobody
  installs, are stood in for (of the latter cuBLAS uses two types);
- pkg_resources and elftools are hidden, which it does without where they are missing, and uses in forms that are gone.

What needs old NumPy (`skcuda.misc`, and all that imports it) is left alone. Entry points that are younger than scikit-cuda are
declared on its own library handles.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from znni.errors import NoDevice
from znni.gpu.libraries import CUBLAS, CUFFT, find, load_companions, version_of

_lock = threading.RLock()
_handle, _pointer, _int, _long_long = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
_plan, _size = ctypes.c_int, ctypes.c_size_t

#: Parameters of the entry points that scikit-cuda lacks; all return a status.
CUFFT_ENTRIES = {
    "cufftMakePlanMany64": (
        _plan, _int, _pointer, _pointer, _long_long, _long_long, _pointer, _long_long, _long_long, _int, _long_long, _pointer,
    ),
}  # fmt: skip
CUBLAS_ENTRIES = {
    "cublasSetWorkspace_v2": (_handle, _pointer, _size),
    "cublasGemmStridedBatchedEx": (
        _handle, _int, _int, _int, _int, _int, _pointer, _pointer, _int, _int, _long_long, _pointer, _int, _int, _long_long,
        _pointer, _pointer, _int, _int, _long_long, _int, _int, _int,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ScikitCuda:
    """The two modules of scikit-cuda that are used, and the files behind them."""

    cufft: ModuleType
    cublas: ModuleType
    cufft_path: Path
    cublas_path: Path


_loaded: ScikitCuda | None = None


def scikit_cuda(cuda: tuple[int, int] | None = None) -> ScikitCuda:
    """Import scikit-cuda's cuFFT and cuBLAS, once.

    Parameters
    ----------
    cuda : tuple of int
        The newest CUDA that the driver supports.

    Raises
    ------
    NoDevice
        Where scikit-cuda, cuFFT or cuBLAS is missing or cannot be loaded.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            cufft_path, cublas_path = find(CUFFT, cuda), find(CUBLAS, cuda)
            load_companions(CUFFT, cufft_path)
            load_companions(CUBLAS, cublas_path)
            cufft, cublas = import_skcuda(cufft_path, cublas_path)
            declare(cufft._libcufft, CUFFT_ENTRIES, cufft_path)
            declare(cublas._libcublas, CUBLAS_ENTRIES, cublas_path)
            _loaded = ScikitCuda(cufft, cublas, cufft_path, cublas_path)
        return _loaded


def import_skcuda(cufft_path: Path, cublas_path: Path) -> tuple[ModuleType, ModuleType]:
    """`skcuda.cufft` and `skcuda.cublas` over these files."""
    try:
        version = importlib.metadata.version("scikit-cuda")
    except importlib.metadata.PackageNotFoundError as error:
        raise NoDevice("scikit-cuda is not installed; pip install 'znni[gpu]'") from error
    stand_ins = {"skcuda.version": _version_module(version), "skcuda.cuda": _cuda_module()}
    stand_ins |= {"pkg_resources": None, "elftools": None}
    files = {"libcufft.so": cufft_path, "libcublas.so": cublas_path}
    with _lock, warnings.catch_warnings(), _standing_in(stand_ins), _handing_over(files):
        warnings.simplefilter("ignore")  # of its escapes in strings
        try:
            cufft = importlib.import_module("skcuda.cufft")
            utils = importlib.import_module("skcuda.utils")
            with _telling_version(utils, cublas_path):
                cublas = importlib.import_module("skcuda.cublas")
        except (ImportError, OSError, AttributeError) as error:
            raise NoDevice(
                f"scikit-cuda {version} cannot be loaded over {cufft_path} and {cublas_path}: {error}"
            ) from error
    return cufft, cublas


def declare(library: ctypes.CDLL, entries: dict[str, tuple], path: Path) -> None:
    """Declare entry points on a library's handle; `NoDevice` where it is too old to have one."""
    for name, parameters in entries.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise NoDevice(f"{path} is too old: it has no {name}; CUDA 12 is the oldest that can be used") from error
        function.restype, function.argtypes = ctypes.c_int, parameters


@contextmanager
def _standing_in(modules: dict[str, ModuleType | None]) -> Iterator[None]:
    """These modules (None: an import error), where the import asks for them; afterwards others may import the real ones."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextmanager
def _handing_over(files: dict[str, Path]) -> Iterator[None]:
    """``ctypes.cdll.LoadLibrary`` with these names standing for these files."""

    def load(name: str) -> ctypes.CDLL:
        return ctypes.CDLL(str(files.get(name, name)))

    ctypes.cdll.LoadLibrary = load
    try:
        yield
    finally:
        del ctypes.cdll.LoadLibrary  # the method is seen again


@contextmanager
def _telling_version(utils: ModuleType, path: Path) -> Iterator[None]:
    major, minor = (*version_of(path), 0, 0)[:2]
    before = utils.find_lib_path, utils.get_soname
    utils.find_lib_path, utils.get_soname = lambda name: str(path), lambda name: f"libcublas.so.{major}.{minor}"
    try:
        yield
    finally:
        utils.find_lib_path, utils.get_soname = before


def _version_module(version: str) -> ModuleType:
    module = ModuleType("skcuda.version")
    module.__version__ = version
    return module


def _cuda_module() -> ModuleType:
    module = ModuleType("skcuda.cuda")
    for name, part in (("cuFloatComplex", ctypes.c_float), ("cuDoubleComplex", ctypes.c_double)):
        fields = {"_fields_": [("x", part), ("y", part)]}
        setattr(module, name, type(name, (ctypes.Structure,), fields))
    return module
