"""The uniform layer interface: one contract, kept by every primitive, and the registry of them all.

    primitive.supports(layer, shape)                  None, or the reason why not, in words
    primitive.configs(layer, shape, machine)          settings worth timing, best guess first
    primitive.memory(layer, shape, config, threads)   bytes; this *is* the allocation
    primitive.cost(layer, shape, config)              floating-point operations and bytes moved
    primitive.prepare(layer, weights, shape, config, threads) -> operator
    operator(x, out, workspace)                       allocates nothing, writes every element of `out`

`shape` is always that of the layer's input, ``(batch, channels, z, y, x)``; of a layer that reads several tensors, the one from
which theirs follow (`Layer.input_shapes`), and `x` is a tuple of arrays. Arrays are C-contiguous float32, in the layouts
(`znni.layouts`) that the config's ``takes`` and ``gives`` name; plain where it names none. In layout ``device`` they are
`znni.gpu.DeviceArray`, and so is the workspace of a primitive on the GPU (`znni.gpu.operator`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from znni.errors import InvalidShape, Unsupported
from znni.layers import Layer, Shape, by_x
from znni.layouts import PLAIN, array_shape, layouts_of

#: Settings of a primitive: a flat mapping of names to JSON scalars or lists of them.
Config = Mapping[str, object]
Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Memory:
    """Bytes that an operator takes, beside its input and output.

    *Resident* is kept from `prepare` on as long as the operator lives (packed weights, kernel spectra); *workspace* is
    handed to each call, and may be shared with other operators between calls.
    """

    host_resident_bytes: int = 0
    host_workspace_bytes: int = 0
    device_resident_bytes: int = 0
    device_workspace_bytes: int = 0


@dataclass(frozen=True)
class Cost:
    """What one call does: floating-point operations and bytes moved to and from main memory (compulsory plus spills)."""

    flop: float
    moved_bytes: float


class Operator(ABC):
    """A primitive prepared for given weights, shape and config.

    Attributes
    ----------
    layer, shape, config, threads
        What it was prepared for.
    out_shape : Shape
        The shape of the result.
    memory : Memory
        What `Primitive.memory` said, which is what it holds and wants.
    takes, gives : str
        Layouts of its input and output.
    part : int
        Which of the layer's `parts` the next call computes, where it has several; set by the caller.
    """

    part: int = 0

    def __init__(self, primitive: Primitive, layer: Layer, shape: Shape, config: Config, threads: int):
        self.primitive, self.layer, self.shape, self.config, self.threads = primitive, layer, shape, config, threads
        self.out_shape = layer.output_shape(shape)
        self.takes, self.gives = layouts_of(config)
        if (self.takes, self.gives) not in primitive.layouts:
            raise Unsupported(f"{primitive.name} cannot take a {self.takes} input and give a {self.gives} output")
        self._x_shapes = tuple(array_shape(own, self.takes) for own in layer.input_shapes(shape))
        self._result_shape = array_shape(self.out_shape, self.gives)
        self.memory = primitive.memory(layer, shape, config, threads)

    def __call__(self, x: np.ndarray | tuple[np.ndarray, ...], out: np.ndarray, workspace: np.ndarray) -> None:
        """Compute `out` from `x`.

        Parameters
        ----------
        x : ndarray of float32, C-contiguous, or of a layer that joins a tuple of them
            Of shape `shape` (`Layer.input_shapes`), or what that is in layout `takes`; lanes beyond its channels are zero.
        out : ndarray of float32, C-contiguous
            Of shape `out_shape`, or what that is in layout `gives`. Every element is written (of a layer cut into parts,
            those of the part), lanes beyond its channels with zeros; must not overlap `x`.
        workspace : ndarray of uint8, 64-byte aligned
            At least `workspace_bytes` long; its contents are lost.
        """
        self.check_arrays(x, out, workspace)
        self.compute(x, out, workspace)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the workspace that a call is given."""
        return self.memory.host_workspace_bytes

    def check_arrays(self, x: np.ndarray | tuple[np.ndarray, ...], out: np.ndarray, workspace: np.ndarray) -> None:
        """`InvalidShape` where a call's arrays are not what it was prepared for."""
        shapes = tuple(array.shape for array in x) if isinstance(x, tuple) else (x.shape,)
        if shapes != self._x_shapes or out.shape != self._result_shape:
            expected, got = (" and ".join(map(by_x, several)) for several in (self._x_shapes, shapes))
            raise InvalidShape(
                f"{self.primitive.name} was prepared for {expected} -> {by_x(self._result_shape)}, "
                f"got {got} -> {by_x(out.shape)}"
            )
        if workspace.nbytes < self.workspace_bytes:
            raise InvalidShape(
                f"{self.primitive.name} needs a workspace of {self.workspace_bytes} bytes, got {workspace.nbytes}"
            )

    @abstractmethod
    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """The work itself; arguments are checked already. Releases the GIL, allocates nothing."""

    @property
    @abstractmethod
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """Every array this operator owns; together they are ``memory.host_resident_bytes`` long."""


class Primitive(ABC):
    """One way to compute layers of one kind on one device."""

    #: ``device.method``: ``cpu.direct``, ``gpu.fft``.
    name: str
    #: `Layer.kind` that it computes.
    kind: str
    device: str = "cpu"
    #: True where a vendor library allocates for itself; its memory is then a measured upper bound.
    foreign: bool = False
    #: True where the work depends on the size of the patch as a whole, so that a smaller one tells little of a larger one.
    whole_patch: bool = False
    #: Pairs of layouts (taken, given) that it can be prepared for, each with any of its configs.
    layouts: tuple[tuple[str, str], ...] = ((PLAIN, PLAIN),)
    #: Relative L2 error of one layer that the contract test allows.
    tolerance: float = 1e-5

    @abstractmethod
    def supports(self, layer: Layer, shape: Shape) -> str | None:
        """None where `layer` on an input of `shape` can be computed, else the reason why not."""

    def configs(self, layer: Layer, shape: Shape, machine=None) -> list[Config]:
        """Settings worth timing, best guess first; ``[{}]`` where there is nothing to set. Layouts are not among them."""
        return [{}]

    @abstractmethod
    def memory(self, layer: Layer, shape: Shape, config: Config, threads: int) -> Memory:
        """The bytes that the operator will hold and want, exactly."""

    @abstractmethod
    def cost(self, layer: Layer, shape: Shape, config: Config) -> Cost:
        """Operations and bytes of one call."""

    def error(self, layer: Layer, shape: Shape, config: Config) -> float:
        """Relative L2 error against float64 to expect of this layer: what was measured on layers like it."""
        return 5e-7

    def tolerance_of(self, config: Config) -> float:
        """The relative L2 error of one layer that the contract test allows this config."""
        return self.tolerance

    #: Fraction of the machine's FLOP/s, and of its bytes/s, that a guess assumes before anything is measured.
    efficiency: tuple[float, float] = (0.5, 0.5)

    @abstractmethod
    def prepare(self, layer: Layer, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator for these weights, this input shape, config and thread count."""

    def refuse(self, layer: Layer, shape: Shape) -> None:
        """Raise `Unsupported` where `layer` is of another kind, or with the reason where `supports` has one."""
        reason = self.supports(layer, shape) if layer.kind == self.kind else f"it computes {self.kind} layers"
        if reason:
            raise Unsupported(f"{self.name} cannot compute this {layer.kind} on {by_x(shape)}: {reason}")


def unfit(layer: Layer, shape: Shape) -> str | None:
    """Why `layer` on an input of `shape` cannot be, where it cannot."""
    if min(shape) < 1:
        return "there is nothing to compute: every size must be at least 1"
    try:
        layer.output_shape(shape)
    except InvalidShape as error:
        return str(error)
    return None


_registry: dict[str, Primitive] = {}


def register(primitive: Primitive) -> Primitive:
    """Enter a primitive; its name must be new."""
    if primitive.name in _registry:
        raise ValueError(f"a primitive named {primitive.name!r} is registered already")
    _registry[primitive.name] = primitive
    return primitive


def registered() -> dict[str, Primitive]:
    """All primitives by name."""
    return dict(_registry)


def get(name: str) -> Primitive:
    """The primitive of that name; `Unsupported`, naming those there are, where there is none."""
    if name not in _registry:
        raise Unsupported(f"no primitive is named {name!r} here; there are {', '.join(sorted(_registry))}")
    return _registry[name]


def candidates(layer: Layer, shape: Shape, device: str = "cpu") -> list[Primitive]:
    """The primitives on `device` that support `layer` on `shape`."""
    return [
        p for p in _registry.values() if p.device == device and p.kind == layer.kind and not p.supports(layer, shape)
    ]


def config_key(config: Config) -> str:
    """A config as canonical JSON, the form in which it is stored and compared."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"))
