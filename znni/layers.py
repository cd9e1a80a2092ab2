"""Layer descriptions: what is computed, never how.

Shapes are ``(batch, channels, z, y, x)``; triples are ``(z, y, x)``. A layer is immutable, hashable, and knows the shape it
makes of a shape it is given. How it is computed is a primitive's affair (`znni.primitives`).
"""

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


@dataclass(frozen=True)
class Activation:
    """A pointwise function fused into the convolution that feeds it.

    ``linear``: x; ``relu``: max(x, 0); ``leaky_relu``: x if x > 0 else a x; ``elu``: x if x > 0 else a (exp(x) - 1);
    ``tanh``: a tanh(b x); ``sigmoid``: 1 / (1 + exp(-x)). Unused parameters stay at their defaults.
    """

    name: str = "linear"
    a: float = 1.0
    b: float = 1.0

    #: The codes that the kernels know (``pyx/activation.h``).
    CODES: ClassVar[dict[str, int]] = {"linear": 0, "relu": 1, "leaky_relu": 2, "elu": 3, "tanh": 4, "sigmoid": 5}

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


def _spatial(shape: Shape, size: tuple[int, ...], what: str) -> None:
    for axis, have, need in zip(AXES, shape[2:], size, strict=True):
        if have < need:
            raise InvalidShape(f"{what} needs at least {need} voxels along {axis}, got {have} (shape {by_x(shape)})")


@dataclass(frozen=True)
class Conv:
    """Cross-correlation with bias and activation. Weights: ``weight`` (out, in, kz, ky, kx), ``bias`` (out,)."""

    kind: ClassVar[str] = "conv"
    out_channels: int
    kernel: Triple
    stride: Triple = ONES
    padding: Triple = ZEROS
    dilation: Triple = ONES
    activation: Activation = LINEAR

    @property
    def extent(self) -> Triple:
        """Input voxels that the dilated kernel spans, per axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; `InvalidShape` where the kernel does not fit."""
        padded = tuple(n + 2 * p for n, p in zip(shape[2:], self.padding, strict=True))
        _spatial((*shape[:2], *padded), self.extent, f"a convolution with kernel {by_x(self.kernel)}")
        size = ((n - e) // s + 1 for n, e, s in zip(padded, self.extent, self.stride, strict=True))
        return (shape[0], self.out_channels, *size)

    def weight_shapes(self, in_channels: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, given the channels that come in."""
        return {"weight": (self.out_channels, in_channels, *self.kernel), "bias": (self.out_channels,)}


@dataclass(frozen=True)
class MaxPool:
    """Maximum over windows at a stride. In a sliding-window network it stands for pooling at every offset."""

    kind: ClassVar[str] = "max_pool"
    window: Triple
    stride: Triple

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; voxels that fill no window are dropped."""
        _spatial(shape, self.window, f"a max-pooling with window {by_x(self.window)}")
        size = ((n - w) // s + 1 for n, w, s in zip(shape[2:], self.window, self.stride, strict=True))
        return (*shape[:2], *size)


@dataclass(frozen=True)
class MaxFilter:
    """Maximum over a dilated window at stride 1: the dense form of a max-pooling."""

    kind: ClassVar[str] = "max_filter"
    window: Triple
    dilation: Triple = ONES

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`."""
        extent = tuple((w - 1) * d + 1 for w, d in zip(self.window, self.dilation, strict=True))
        _spatial(shape, extent, f"a max-filter with window {by_x(self.window)}")
        return (*shape[:2], *(n - e + 1 for n, e in zip(shape[2:], extent, strict=True)))


@dataclass(frozen=True)
class MaxPoolFragments:
    """Max-pooling at all prod(stride) offsets (MPF; ZNNi, SC'16).

    Fragment ``f = (fz * sy + fy) * sx + fx`` of batch element ``b`` is batch element ``b * prod(stride) + f`` of the result:
    the pooling of the input from voxel (fz, fy, fx) on. All fragments must be equally large.
    """

    kind: ClassVar[str] = "mpf"
    window: Triple
    stride: Triple

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; `InvalidShape` where fragments would differ in size."""
        _spatial(
            shape, tuple(w + s - 1 for w, s in zip(self.window, self.stride, strict=True)), "max-pooling fragments"
        )
        size = []
        for axis, n, w, s in zip(AXES, shape[2:], self.window, self.stride, strict=True):
            if (n - w + 1) % s:
                raise InvalidShape(
                    f"max-pooling fragments of window {w}, stride {s} need {axis} = {w - 1} + {s} i voxels, got {n}"
                )
            size.append((n - w + 1) // s)
        return (shape[0] * self.stride[0] * self.stride[1] * self.stride[2], shape[1], *size)


@dataclass(frozen=True)
class ConvMaxPoolFragments:
    """A convolution and the max-pooling fragments of its result, which is never held as a whole.

    Weights are the convolution's. With `parts` > 1, which needs a batch of 1, one call makes 1 / parts of the fragments,
    next to each other, and computes of the convolution what these need (`znni.primitives.base.Operator.part`).
    """

    kind: ClassVar[str] = "conv_mpf"
    conv: Conv
    pool: MaxPoolFragments
    parts: int = 1

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape` by one part; `InvalidShape` where fragments would differ in size."""
        batch, *rest = self.pool.output_shape(self.conv.output_shape(shape))
        if batch // shape[0] % self.parts or (self.parts > 1 and shape[0] > 1):
            raise InvalidShape(
                f"{self.parts} parts need a batch of 1 and a multiple of as many fragments, got a batch of {shape[0]} with "
                f"{batch // shape[0]} fragments each"
            )
        return (batch // self.parts, *rest)

    def weight_shapes(self, in_channels: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the convolution's weights."""
        return self.conv.weight_shapes(in_channels)


@dataclass(frozen=True)
class Recombine:
    """Interleaves the fragments of successive MPF layers (`strides`, first layer first) into one dense result."""

    kind: ClassVar[str] = "recombine"
    strides: tuple[Triple, ...]
    #: Calls that the work is cut into: one takes 1 / parts of all fragments, next to each other in the batch, and writes
    #: the voxels of the dense result that they are, and no others (`znni.primitives.base.Operator.part`).
    parts: int = 1

    @property
    def step(self) -> Triple:
        """Product of the strides per axis."""
        z = y = x = 1
        for s in self.strides:
            z, y, x = z * s[0], y * s[1], x * s[2]
        return (z, y, x)

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; all parts together must hold all fragments."""
        step = self.step
        fragments = step[0] * step[1] * step[2]
        if shape[0] * self.parts % fragments:
            raise InvalidShape(
                f"recombining needs a batch that is a multiple of {fragments} fragments, got {shape[0] * self.parts}"
            )
        return (shape[0] * self.parts // fragments, shape[1], *(n * s for n, s in zip(shape[2:], step, strict=True)))


@dataclass(frozen=True)
class Softmax:
    """exp(x_c) / sum_c exp(x_c) over channels, per voxel."""

    kind: ClassVar[str] = "softmax"

    def output_shape(self, shape: Shape) -> Shape:
        """`shape` itself."""
        return shape


@dataclass(frozen=True)
class Maxout:
    """Maximum over groups of `group` adjacent channels."""

    kind: ClassVar[str] = "maxout"
    group: int

    def output_shape(self, shape: Shape) -> Shape:
        """The shape made of `shape`; channels must divide by `group`."""
        if shape[1] % self.group:
            raise InvalidShape(f"maxout over groups of {self.group} needs channels that divide by it, got {shape[1]}")
        return (shape[0], shape[1] // self.group, *shape[2:])


@dataclass(frozen=True)
class Relayout:
    """Values as they are, in another layout (`znni.layouts`); plans have it between layers that differ in theirs."""

    kind: ClassVar[str] = "relayout"

    def output_shape(self, shape: Shape) -> Shape:
        """`shape` itself."""
        return shape


Layer = Conv | MaxPool | MaxFilter | MaxPoolFragments | ConvMaxPoolFragments | Recombine | Softmax | Maxout | Relayout


KINDS: dict[str, type] = {layer.kind: layer for layer in Layer.__args__}


def describe(layer: Layer) -> dict:
    """A layer as plain data (for keys, plans and digests)."""
    return {"kind": layer.kind, **asdict(layer)}


def layer_of(data: dict) -> Layer:
    """The layer that `describe` made `data` of, also after a trip through JSON."""
    kind = KINDS[data["kind"]]
    fields = {key: _frozen(value) for key, value in data.items() if key != "kind"}
    if "activation" in fields:
        fields["activation"] = Activation(**fields["activation"])
    if kind is ConvMaxPoolFragments:
        fields["conv"] = layer_of({"kind": Conv.kind} | fields["conv"])
        fields["pool"] = layer_of({"kind": MaxPoolFragments.kind} | fields["pool"])
    return kind(**fields)


def _frozen(value):
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value
