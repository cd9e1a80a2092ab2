"""A real device: pycuda for its memory, streams and kernels, scikit-cuda's cuFFT and cuBLAS, cuDNN where it is installed.

None of them is loaded before a device is opened.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from functools import cached_property
from types import ModuleType

import numpy as np

from znni.errors import DeviceError, NoDevice
from znni.gpu.compile import KernelCompiler, with_pycuda
from znni.gpu.cublas import CuBlas, work_bytes
from znni.gpu.cuda_context import CudaContext
from znni.gpu.cuda_memory import CudaAllocation, CudaMemory
from znni.gpu.cuda_streams import CudaKernel, CudaStream
from znni.gpu.cudnn import CuDnn, open_cudnn
from znni.gpu.cufft import CudaFft
from znni.gpu.device import BlasSpec, Device, DeviceArray, FftSpec
from znni.gpu.driver import Driver, read_driver
from znni.gpu.libraries import find_nvcc
from znni.gpu.scikit_cuda import scikit_cuda
from znni.nvidia import gpu_driver


class CudaDevice(Device):
    """CUDA device `number`, as the driver counts those that CUDA_VISIBLE_DEVICES shows.

    Raises
    ------
    NoDevice
        Where a piece is missing: driver, device, pycuda, scikit-cuda, cuFFT, cuBLAS or nvcc; says which, and what to do.
    """

    def __init__(self, number: int = 0):
        require_packages()
        found = read_driver()
        if not 0 <= number < len(found.devices):
            raise NoDevice(f"there is no device {number}; the driver shows {_listed(found)}")
        nvcc = find_nvcc()
        libraries = scikit_cuda(found.cuda)
        driver = import_pycuda(found)
        handle = driver.Device(number)
        self.name = found.devices[number]
        self.architecture = "sm_{}{}".format(*handle.compute_capability())
        self.total_bytes = int(handle.total_memory())
        self.driver = " ".join(filter(None, (gpu_driver(), "CUDA {}.{}".format(*found.cuda))))
        attributes = driver.device_attribute
        self.multiprocessors = handle.get_attribute(attributes.MULTIPROCESSOR_COUNT)
        self.shared_bytes = handle.get_attribute(attributes.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        self.blas_work_bytes = work_bytes(self.architecture)
        self._cufft = libraries.cufft
        self._compiler = KernelCompiler(self.architecture, nvcc, with_pycuda)
        self._modules: dict[tuple, object] = {}
        self._kernels: dict[tuple, CudaKernel] = {}
        self._fft_work_bytes: dict[FftSpec, int] = {}
        self._context = CudaContext(driver, number, self.name)
        try:
            self._memory = CudaMemory(self._context)
            self._blas = CuBlas(self._context, libraries.cublas)
            self.compute, self.uploads, self.downloads = (
                CudaStream(self._context, self.shared_bytes) for _ in range(3)
            )
        except BaseException:
            self._context.close()
            raise

    def free_bytes(self) -> int:
        with self._context:
            return int(self._context.driver.mem_get_info()[0])

    def allocate(self, nbytes: int) -> CudaAllocation:
        return self._memory.allocate(int(nbytes))

    def pinned(self, nbytes: int) -> np.ndarray:
        """As `Device.pinned`; not to be touched after `close`, which gives all its pages back."""
        return self._memory.pinned(int(nbytes))

    def kernel(self, source: str, function: str, defines: Mapping[str, int | str] | None = None) -> CudaKernel:
        macros = tuple(sorted((defines or {}).items()))
        key = (source, function, macros)
        if key not in self._kernels:
            module = self._module(source, macros)
            with self._context:
                try:
                    made = module.get_function(function)
                except self._context.driver.Error as error:
                    raise self._context.failure(f"{source} has no kernel {function}: {error}") from error
                self._kernels[key] = CudaKernel(self._context, made, f"{function} of {source}")
        return self._kernels[key]

    def fft(self, spec: FftSpec) -> CudaFft:
        made = CudaFft(self._context, self._cufft, spec)
        self._fft_work_bytes[spec] = made.work_bytes
        return made

    def fft_work_bytes(self, spec: FftSpec) -> int:
        if spec not in self._fft_work_bytes:
            self.fft(spec).free()
        return self._fft_work_bytes[spec]

    def blas(
        self,
        stream: CudaStream,
        spec: BlasSpec,
        a: DeviceArray,
        b: DeviceArray,
        c: DeviceArray,
        work: DeviceArray,
        alpha: complex = 1.0,
        beta: complex = 0.0,
    ) -> None:
        self._blas.multiply(stream, spec, a, b, c, work, alpha, beta)

    @cached_property
    def cudnn(self) -> CuDnn | None:
        return open_cudnn(self._context)

    @property
    def peak_bytes(self) -> int:
        return self._memory.peak_bytes

    def reset_peak(self) -> None:
        self._memory.reset_peak()

    def synchronise(self) -> None:
        for stream in (self.compute, self.uploads, self.downloads):
            stream.synchronise()

    def close(self) -> None:
        if self._context.closed:
            return
        try:
            if self._context.lost is None:
                with self._context:
                    self._release()
        except DeviceError:
            if self._context.lost is None:
                raise
        finally:
            self._context.close()

    def _release(self) -> None:
        """Give back all that the device holds, in its context, once its work is done."""
        try:
            self._context.driver.Context.synchronize()
        finally:
            if "cudnn" in self.__dict__ and self.cudnn is not None:
                self.cudnn.close()
            self._blas.close()
            self._kernels.clear()
            self._modules.clear()
            self._memory.close()
            for stream in (self.compute, self.uploads, self.downloads):
                stream.close()

    def _module(self, source: str, macros: tuple) -> object:
        key = (source, macros)
        if key not in self._modules:
            code = self._compiler.machine_code(source, dict(macros))
            with self._context:
                self._modules[key] = self._context.driver.module_from_buffer(code)
        return self._modules[key]


def require_packages() -> None:
    """`NoDevice` where pycuda or scikit-cuda is not installed."""
    missing = [
        name
        for module, name in (("pycuda", "pycuda"), ("skcuda", "scikit-cuda"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise NoDevice(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; pip install 'znni[gpu]' (pycuda is "
            f"built against the CUDA toolkit whose bin folder comes first on the PATH)"
        )


def import_pycuda(found: Driver) -> ModuleType:
    """`pycuda.driver`, initialised; `NoDevice` where it does not go with the driver.

    Parameters
    ----------
    found : Driver
        What the driver said of itself.
    """
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise NoDevice(
            f"pycuda cannot be loaded: {error}; it was built for another CUDA or Python: pip install --force-reinstall "
            f"--no-cache-dir pycuda, with the toolkit's bin folder first on the PATH"
        ) from error
    built = driver.get_version()
    if built[0] > found.cuda[0]:
        raise NoDevice(
            f"pycuda was built for CUDA {built[0]}.{built[1]}, the driver supports {found.cuda[0]}.{found.cuda[1]} at most; "
            f"update the driver, or build pycuda against an older toolkit"
        )
    try:
        driver.init()
    except driver.Error as error:
        raise NoDevice(f"pycuda cannot start the driver: {error}") from error
    return driver


def _listed(found: Driver) -> str:
    return ", ".join(f"{number}: {name}" for number, name in enumerate(found.devices))
