"""What convolutions by other libraries have in common: they allocate for themselves, so their bytes are a bound.

The bound was measured: on 18 layers from 1 > 80 channels of 80^3 to 200 > 200 of 14^3, kernels of 1 to 9, batches of 1 to
64, dilations of 1 to 4, the most that a process grew by from preparing to the end of a second call (its resident peak, two
threads) stays below it. All of it counts as resident: a library gives nothing back that another operator could be
handed. The library's own code and threads, hundreds of MiB, come on top once a process; `load_foreign` takes them at
once, so that a baseline can hold them.
"""

from __future__ import annotations

import ctypes
import importlib.util
from abc import abstractmethod
from math import prod

import numpy as np

from znni.errors import InvalidShape, Unsupported
from znni.layers import Conv, Shape, by_x
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, config_key, registered, unfit

#: Libraries pad channels to blocks of at most so many.
_BLOCK = 16
_MIB = 1 << 20


class ForeignOperator(Operator):
    """A convolution that another library computes; `_call` gets arrays that are what they should be."""

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """Refuse what the library would convert, or write somewhere else."""
        for name, array in (("x", x), ("out", out)):
            if array.dtype != np.float32 or not array.flags.c_contiguous:
                raise InvalidShape(f"{name} must be C-contiguous float32, got {array.dtype}, strides {array.strides}")
        self._call(x if x.flags.writeable else _writeable(x), out)

    @abstractmethod
    def _call(self, x: np.ndarray, out: np.ndarray) -> None:
        """The work itself."""

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """None: what the library holds cannot be seen."""
        return ()


def _writeable(x: np.ndarray) -> np.ndarray:
    """The memory of a read-only array as one that may be written, since libraries take no other; they only read it."""
    return np.ctypeslib.as_array((ctypes.c_float * x.size).from_address(x.ctypes.data)).reshape(x.shape)


class ForeignConv(Primitive):
    """Direct convolution by a library that may be installed, or not; any kernel, stride, padding and dilation."""

    kind = "conv"
    foreign = True
    efficiency = (0.6, 0.5)
    #: The module to import, and bytes beside the tensors that an operator was seen to take.
    library: str
    fixed_bytes: int
    #: How often the bound counts input, output and weights, channels padded to whole blocks.
    counted: tuple[int, int, int]

    @property
    def is_installed(self) -> bool:
        """Whether the library can be imported; it is not."""
        return importlib.util.find_spec(self.library) is not None

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, unless the kernel does not fit `shape`."""
        return unfit(layer, shape)

    def memory(self, layer: Conv, shape: Shape, config: Config, threads: int) -> Memory:
        """The measured bound, all of it resident."""
        self._check(layer, shape, config)
        out = layer.output_shape(shape)
        taken, made = (-(-n // _BLOCK) * _BLOCK for n in (shape[1], layer.out_channels))
        of_x, of_out, of_weights = self.counted
        floats = of_x * shape[0] * taken * prod(shape[2:]) + of_out * out[0] * made * prod(out[2:])
        floats += of_weights * taken * made * prod(layer.kernel)
        return Memory(host_resident_bytes=4 * floats + self.fixed_bytes + threads * _MIB)

    def cost(self, layer: Conv, shape: Shape, config: Config) -> Cost:
        """A multiplication and an addition per term; input and output to the library's layout and back, and weights."""
        out = layer.output_shape(shape)
        terms = shape[1] * prod(layer.kernel)
        return Cost(2.0 * terms * prod(out), 4.0 * (3 * prod(shape) + 3 * prod(out) + 2 * terms * out[1]))

    def error(self, layer: Conv, shape: Shape, config: Config) -> float:
        """What was measured between 80 channels: it grows with the root of the terms that are summed one after another."""
        return max(2e-7, self._error_of_a_term(config) * (shape[1] * prod(layer.kernel)) ** 0.5)

    def _error_of_a_term(self, config: Config) -> float:
        """1.3e-8 was seen (6.1e-7 at 3^3, 1.3e-6 at 5^3, 1.4e-6 at 7^3)."""
        return 1.3e-8

    def prepare(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator for these weights; imports the library."""
        self._check(layer, shape, config)
        for name, expected in layer.weight_shapes(shape[1]).items():
            if weights[name].shape != expected:
                raise InvalidShape(f"{name} must be {by_x(expected)}, got {by_x(weights[name].shape)}")
        return self._prepared(layer, weights, shape, config, threads)

    def load(self, threads: int) -> None:
        """Import the library and let it compute a small layer, so that what it takes for itself is taken."""
        layer, shape = Conv(8, (3, 3, 3)), (1, 8, 8, 8, 8)
        weights = {name: np.zeros(own, np.float32) for name, own in layer.weight_shapes(8).items()}
        operator = self.prepare(layer, weights, shape, self.configs(layer, shape)[0], threads)
        operator(np.zeros(shape, np.float32), np.zeros(operator.out_shape, np.float32), np.empty(0, np.uint8))

    @abstractmethod
    def _prepared(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """The operator; everything is checked."""

    def _check(self, layer: Conv, shape: Shape, config: Config) -> None:
        self.refuse(layer, shape)
        known = self.configs(layer, shape)
        settings = {key: value for key, value in config.items() if key not in ("takes", "gives")}
        if settings not in known:
            raise Unsupported(
                f"configs of {self.name} are {', '.join(map(config_key, known))}, got {config_key(config)}"
            )


def load_foreign(threads: int) -> tuple[str, ...]:
    """Import every library that is installed and let it compute once, so that its own bytes are taken; their names."""
    foreign = [primitive for primitive in registered().values() if isinstance(primitive, ForeignConv)]
    for primitive in foreign:
        primitive.load(threads)
    return tuple(primitive.library for primitive in foreign)
