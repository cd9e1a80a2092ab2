"""cuDNN's convolutions, where it is installed, by its legacy C interface: that one takes an algorithm and a work area, and
computes 3D convolutions of plain arrays.

True float32 and TF32 differ by the convolution's math type alone: FMA keeps tensor cores out of it, the default lets float32 go
through them rounded to TF32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from znni.errors import DeviceError, DeviceMemory, InvalidShape, NoDevice, Unsupported
from znni.gpu.convolution import Convolutions, ConvolutionSpec
from znni.gpu.cuda_context import CudaContext
from znni.gpu.cuda_streams import CudaStream
from znni.gpu.device import DeviceArray
from znni.gpu.libraries import CUDNN, find, load_companions

#: CUDNN_CONVOLUTION_FWD_ALGO_*, those that are defined for three dimensions or may become so.
_ALGORITHMS = {"implicit_gemm": 0, "implicit_precomp_gemm": 1, "gemm": 2, "fft_tiling": 5, "winograd_nonfused": 7}
_FLOAT, _NCHW, _CROSS_CORRELATION = 0, 0, 1
_DEFAULT_MATH, _FMA_MATH = 0, 3
_INT_END = 1 << 31
#: Kernels that a convolution may launch, roughly.
_LAUNCHES = 8

_handle, _descriptor, _pointer, _int = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_ENTRIES = {
    "cudnnCreate": (_pointer,),
    "cudnnDestroy": (_handle,),
    "cudnnSetStream": (_handle, _pointer),
    "cudnnCreateTensorDescriptor": (_pointer,),
    "cudnnSetTensorNdDescriptor": (_descriptor, _int, _int, _pointer, _pointer),
    "cudnnDestroyTensorDescriptor": (_descriptor,),
    "cudnnCreateFilterDescriptor": (_pointer,),
    "cudnnSetFilterNdDescriptor": (_descriptor, _int, _int, _int, _pointer),
    "cudnnDestroyFilterDescriptor": (_descriptor,),
    "cudnnCreateConvolutionDescriptor": (_pointer,),
    "cudnnSetConvolutionNdDescriptor": (_descriptor, _int, _pointer, _pointer, _pointer, _int, _int),
    "cudnnSetConvolutionMathType": (_descriptor, _int),
    "cudnnDestroyConvolutionDescriptor": (_descriptor,),
    "cudnnGetConvolutionForwardWorkspaceSize": (
        _handle, _descriptor, _descriptor, _descriptor, _descriptor, _int, _pointer,
    ),
    "cudnnConvolutionForward": (
        _handle, _pointer, _descriptor, _pointer, _descriptor, _pointer, _descriptor, _int, _pointer, ctypes.c_size_t,
        _pointer, _descriptor, _pointer,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Descriptors:
    """Of one convolution, in cuDNN's terms."""

    x: int
    weight: int
    convolution: int
    out: int


def out_shape(spec: ConvolutionSpec) -> tuple[int, ...]:
    """Shape of what a convolution gives."""
    size = [
        (n + 2 * p - (k - 1) * d - 1) // s + 1
        for n, k, s, p, d in zip(spec.shape[2:], spec.kernel, spec.stride, spec.padding, spec.dilation, strict=True)
    ]
    return (spec.shape[0], spec.out_channels, *size)


def weight_shape(spec: ConvolutionSpec) -> tuple[int, ...]:
    """(out, in, z, y, x)."""
    return (spec.out_channels, spec.shape[1], *spec.kernel)


class CuDnn(Convolutions):
    """The library at `path`; a handle is made with the first question.

    Parameters
    ----------
    context : CudaContext
    library : ctypes.CDLL
    """

    def __init__(self, context: CudaContext, library: ctypes.CDLL):
        self._context, self._library = context, library
        for name, parameters in _ENTRIES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = ctypes.c_int, parameters
        library.cudnnGetVersion.restype = ctypes.c_size_t
        library.cudnnGetErrorString.restype = ctypes.c_char_p
        self.version = version_text(library.cudnnGetVersion())
        self._handle: int | None = None
        self._stream: int | None = None
        self._known: dict[ConvolutionSpec, _Descriptors | None] = {}
        self._sizes: dict[tuple[ConvolutionSpec, str], int | None] = {}

    def algorithms(self) -> tuple[str, ...]:
        return tuple(_ALGORITHMS)

    def workspace_bytes(self, spec: ConvolutionSpec, algorithm: str) -> int | None:
        key = (spec, algorithm)
        if key not in self._sizes:
            self._sizes[key] = self._ask_workspace(spec, algorithm)
        return self._sizes[key]

    def convolve(
        self,
        stream: CudaStream,
        spec: ConvolutionSpec,
        algorithm: str,
        x: DeviceArray,
        weight: DeviceArray,
        out: DeviceArray,
        work: DeviceArray,
    ) -> None:
        for array, shape in ((x, spec.shape), (weight, weight_shape(spec)), (out, out_shape(spec))):
            if array.shape != tuple(shape):
                raise InvalidShape(f"expected a device array of shape {tuple(shape)}, got {array.shape}")
        need = self.workspace_bytes(spec, algorithm)
        if need is None:
            raise Unsupported(f"cuDNN {self.version} cannot compute this by {algorithm}: {spec}")
        if work is not None and work.nbytes < need:
            raise InvalidShape(f"cuDNN's {algorithm} needs {need} bytes to work in, got {work.nbytes}")
        one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        with self._context:
            if stream.handle != self._stream:
                self._check("cudnnSetStream", self._library.cudnnSetStream(self._opened(), stream.handle))
                self._stream = stream.handle
            of = self._descriptors(spec)
            stream.pace(_LAUNCHES)
            self._check(
                "cudnnConvolutionForward",
                self._library.cudnnConvolutionForward(
                    self._opened(), ctypes.byref(one), of.x, x.pointer, of.weight, weight.pointer, of.convolution,
                    _ALGORITHMS[algorithm], work.pointer if need else None, need, ctypes.byref(zero), of.out, out.pointer,
                ),
            )  # fmt: skip

    def close(self) -> None:
        """Give back handle and descriptors. The context must be current."""
        for made in self._known.values():
            if made is not None:
                self._destroy(made)
        self._known.clear()
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._library.cudnnDestroy(handle)

    def _ask_workspace(self, spec: ConvolutionSpec, algorithm: str) -> int | None:
        number = _ALGORITHMS.get(algorithm)
        if number is None:
            raise Unsupported(f"cuDNN's algorithms are {', '.join(_ALGORITHMS)}; got {algorithm!r}")
        with self._context:
            of = self._descriptors(spec)
            if of is None:
                return None
            nbytes = ctypes.c_size_t()
            status = self._library.cudnnGetConvolutionForwardWorkspaceSize(
                self._opened(), of.x, of.weight, of.convolution, of.out, number, ctypes.byref(nbytes)
            )
        return int(nbytes.value) if status == 0 else None

    def _opened(self) -> int:
        if self._handle is None:
            handle = ctypes.c_void_p()
            self._check("cudnnCreate", self._library.cudnnCreate(ctypes.byref(handle)))
            self._handle = handle.value
        return self._handle

    def _descriptors(self, spec: ConvolutionSpec) -> _Descriptors | None:
        """None where cuDNN cannot describe the convolution."""
        if spec not in self._known:
            self._known[spec] = self._describe(spec)
        return self._known[spec]

    def _describe(self, spec: ConvolutionSpec) -> _Descriptors | None:
        shapes = (tuple(spec.shape), out_shape(spec))
        if any(min(shape) < 1 or _elements(shape) >= _INT_END for shape in shapes):
            return None  # its strides are 32-bit integers
        library = self._library
        made = _Descriptors(
            self._new(library.cudnnCreateTensorDescriptor),
            self._new(library.cudnnCreateFilterDescriptor),
            self._new(library.cudnnCreateConvolutionDescriptor),
            self._new(library.cudnnCreateTensorDescriptor),
        )
        weight = weight_shape(spec)
        steps = [
            *(
                library.cudnnSetTensorNdDescriptor(descriptor, _FLOAT, 5, _ints(shape), _ints(_strides(shape)))
                for descriptor, shape in zip((made.x, made.out), shapes, strict=True)
            ),
            library.cudnnSetFilterNdDescriptor(made.weight, _FLOAT, _NCHW, 5, _ints(weight)),
            library.cudnnSetConvolutionNdDescriptor(
                made.convolution,
                3,
                _ints(spec.padding),
                _ints(spec.stride),
                _ints(spec.dilation),
                _CROSS_CORRELATION,
                _FLOAT,
            ),
            library.cudnnSetConvolutionMathType(made.convolution, _DEFAULT_MATH if spec.tf32 else _FMA_MATH),
        ]
        if any(steps):
            self._destroy(made)
            return None
        return made

    def _new(self, create: Callable[[object], int]) -> int:
        made = ctypes.c_void_p()
        self._check(create.__name__, create(ctypes.byref(made)))
        return made.value

    def _destroy(self, made: _Descriptors) -> None:
        self._library.cudnnDestroyTensorDescriptor(made.x)
        self._library.cudnnDestroyFilterDescriptor(made.weight)
        self._library.cudnnDestroyConvolutionDescriptor(made.convolution)
        self._library.cudnnDestroyTensorDescriptor(made.out)

    def _check(self, call: str, status: int) -> None:
        if status == 0:
            return
        said = (self._library.cudnnGetErrorString(status) or b"failed").decode(errors="replace")
        words = f"{call}: {said} (status {status})"
        if "ALLOC" in said:
            raise DeviceMemory(f"{self._context.name} has no memory left for cuDNN: {words}")
        raise self._context.failure(words)


def open_cudnn(context: CudaContext) -> CuDnn | None:
    """cuDNN, where it is installed; None where it is not.

    Raises
    ------
    DeviceError
        Where it is there, but broken.
    """
    try:
        path = find(CUDNN)
    except NoDevice:
        return None
    return CuDnn(context, load(path))


def load(path: Path) -> ctypes.CDLL:
    """The library's handle; `DeviceError` where it cannot be loaded."""
    load_companions(CUDNN, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise DeviceError(f"cuDNN cannot be loaded: {error}") from error


def version_text(number: int) -> str:
    """``9.13.0`` for 91300; before version 9 it was 8902 for ``8.9.2``."""
    thousands = 10000 if number >= 90000 else 1000
    return f"{number // thousands}.{number % thousands // 100}.{number % 100}"


def _elements(shape: tuple[int, ...]) -> int:
    elements = 1
    for n in shape:
        elements *= n
    return elements


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [_elements(shape[axis + 1 :]) for axis in range(len(shape))]


def _ints(values) -> ctypes.Array:
    return (ctypes.c_int * len(values))(*(int(value) for value in values))
