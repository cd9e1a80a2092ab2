"""What all layer descriptions share: shapes, triples, activations, and the registry of kinds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from znni.errors import InvalidShape

Triple = tuple[int, int, int]
Shape = tuple[int, int, int, int, int]

AXES = "zyx"
ONES: Triple = (1, 1, 1)
ZEROS: Triple = (0, 0, 0)


def triple(value: int | tuple[int, ...], name: str = "value", least: int = 1) -> Triple:
    """An int or a sequence of three as a ``(z, y, x)`` triple of ints, each at least `least`."""
    values = (value,) * 3 if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != 3 or min(values) < least:
        raise InvalidShape(f"{name} must be one integer or three (z, y, x), each at least {least}, got {value!r}")
    return values


def by_x(values: tuple[int, ...]) -> str:
    """``(1, 2, 3)`` as ``1x2x3``."""
    return "x".join(map(str, values))


#: Every kind of layer by name.
KINDS: dict[str, type[Layer]] = {}


class Layer:
    """What is computed, never how: immutable, hashable, and knowing the shape that it makes of one it is given."""

    #: The name of this kind of layer.
    kind: ClassVar[str]
    #: Whether it reads several tensors (`znni.layers.joining`).
    joins: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    def input_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Shapes of all that it reads, given the one shape by which it is known: of most layers, that shape alone."""
        return (shape,)

    def joined_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """The one shape by which a layer that reads `shapes` is known."""
        (shape,) = shapes
        return shape

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; `InvalidShape` where it cannot be."""
        raise NotImplementedError(self.kind)


@dataclass(frozen=True)
class Activation:
    """A pointwise function fused into the convolution that feeds it.

    ``linear``: x; ``relu``: max(x, 0); ``leaky_relu``: x if x > 0 else a x; ``elu``: x if x > 0 else a (exp(x) - 1);
    ``tanh``: a tanh(b x); ``sigmoid``: 1 / (1 + exp(-x)); ``clip``: min(max(x, a), b).
    Unused parameters stay at their defaults.
    """

    name: str = "linear"
    a: float = 1.0
    b: float = 1.0

    #: The codes that the kernels know (``pyx/activation.h``).
    CODES: ClassVar[dict[str, int]] = {
        "linear": 0,
        "relu": 1,
        "leaky_relu": 2,
        "elu": 3,
        "tanh": 4,
        "sigmoid": 5,
        "clip": 6,
    }

    def __post_init__(self):
        if self.name not in self.CODES:
            raise InvalidShape(f"unknown activation {self.name!r}; known are {', '.join(self.CODES)}")

    @property
    def code(self) -> int:
        """The integer by which the kernels know this function."""
        return self.CODES[self.name]

    @classmethod
    def of(cls, value: Activation | str | tuple | None) -> Activation:
        """From an `Activation`, a name, ``(name, a[, b])`` or None (linear). ``leaky_relu`` alone has slope 0.01."""
        if value is None:
            return cls()
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value, 0.01) if value == "leaky_relu" else cls(value)
        return cls(*value)


LINEAR = Activation()


def check_size(shape: Shape, size: tuple[int, ...], what: str) -> None:
    """`InvalidShape` unless `shape` has at least `size` voxels along each axis."""
    for axis, have, need in zip(AXES, shape[2:], size, strict=True):
        if have < need:
            raise InvalidShape(f"{what} needs at least {need} voxels along {axis}, got {have} (shape {by_x(shape)})")


def describe(layer: Layer) -> dict:
    """A layer as plain data (for keys, plans and digests)."""
    return {"kind": layer.kind, **asdict(layer)}


def layer_of(data: dict) -> Layer:
    """The layer that `describe` made `data` of, also after a trip through JSON."""
    kind = KINDS[data["kind"]]
    fields = {key: _frozen(value) for key, value in data.items() if key != "kind"}
    if "activation" in fields:
        fields["activation"] = Activation(**fields["activation"])
    for name, inner in getattr(kind, "inner_kinds", {}).items():
        fields[name] = layer_of({"kind": inner} | fields[name])
    return kind(**fields)


def _frozen(value):
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value
