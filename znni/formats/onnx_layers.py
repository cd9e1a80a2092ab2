"""ONNX operators as layers: each function gives (layer, weights, what it reads) for the steps that an operator takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from znni.errors import FormatError
from znni.layers import (
    ONES,
    ZEROS,
    Activate,
    Activation,
    Add,
    Affine,
    AvgPool,
    Concat,
    Conv,
    ConvTranspose,
    DepthToSpace,
    GlobalPool,
    GroupedConv,
    Layer,
    MaxFilter,
    MaxPool,
    Multiply,
    Norm,
    Pad,
    PRelu,
    Resize,
    Shape,
    Slice,
    Softmax,
    Triple,
)


@dataclass(frozen=True)
class Tensor:
    """What a node gives, for the size of the input that is read for; `rank` is that of ONNX's tensor: 4 where it is flat, 2
    where only channels are left. Where `groups` is not 0, ONNX has it as (batch, groups, rest)."""

    name: str
    shape: Shape
    rank: int
    groups: int = 0

    @property
    def onnx_shape(self) -> tuple[int, ...]:
        """The shape that ONNX has."""
        if self.groups:
            return (self.shape[0], self.groups, math.prod(self.shape[1:]) // self.groups)
        if self.rank == 2:
            return self.shape[:2]
        return (*self.shape[:2], *self.shape[5 - self.rank + 2 :])


@dataclass
class Operation:
    """A node of the ONNX graph: what it reads is a `Tensor`, a constant, or None where an input is left out."""

    kind: str
    attributes: Mapping[str, object]
    inputs: Sequence[np.ndarray | Tensor | None]
    flat: bool
    opset: int
    rank: int = 5
    groups: int = 0

    def __post_init__(self):
        first = next(i for i in self.inputs if isinstance(i, Tensor))
        self.rank, self.groups = first.rank, first.groups
        if first.groups and self.kind not in ("InstanceNormalization", "Reshape"):
            raise FormatError(f"of a tensor reshaped to {first.onnx_shape} it is not supported")

    @property
    def x(self) -> Tensor:
        """The first input, which must not be a constant."""
        if not isinstance(self.inputs[0], Tensor):
            raise FormatError("its first input is a constant, which is not supported")
        return self.inputs[0]

    def constant(self, number: int, default=None):
        """A constant input, or `default` where it is left out."""
        value = self.inputs[number] if number < len(self.inputs) else None
        if isinstance(value, Tensor):
            raise FormatError(f"its input {number} must be constant")
        return default if value is None else value

    def triple(self, name: str, default: int = 1) -> Triple:
        """An attribute of one number an axis; flat ones do nothing along z."""
        given = self.attributes.get(name)
        if given is None:
            return (default,) * 3 if self.rank == 5 else (1 if default else 0, default, default)
        return self.padded(given, min(default, 1))

    def padded(self, given: Sequence[int], neutral: int) -> Triple:
        """Numbers of the spatial axes as a triple."""
        values = tuple(int(n) for n in given)
        if len(values) != self.rank - 2:
            raise FormatError(f"expected {self.rank - 2} numbers, one an axis, got {list(values)}")
        return values if self.rank == 5 else (neutral, *values)

    def sides(self, kernel: Triple, stride: Triple, dilation: Triple) -> tuple[Triple, Triple]:
        """Padding before and after each axis, by ``pads`` or ``auto_pad``."""
        auto = self.attributes.get("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            low, high = [], []
            for n, k, s, d in zip(self.x.shape[2:], kernel, stride, dilation, strict=True):
                total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
                small, large = total // 2, total - total // 2
                low.append(small if auto == "SAME_UPPER" else large)
                high.append(large if auto == "SAME_UPPER" else small)
            return tuple(low), tuple(high)
        if auto not in ("NOTSET", "VALID"):
            raise FormatError(f"auto_pad {auto} is not supported")
        pads = self.attributes.get("pads") if auto == "NOTSET" else None
        if pads is None:
            return ZEROS, ZEROS
        half = len(pads) // 2
        if min(pads, default=0) < 0:
            raise FormatError(f"negative pads {list(pads)} are not supported")
        return self.padded(pads[:half], 0), self.padded(pads[half:], 0)


#: A step: a layer, its weights, and what it reads (None: the step before).
Step = tuple[Layer, dict[str, np.ndarray] | None, tuple[Tensor | None, ...]]


def _one(layer: Layer, x: Tensor, weights: dict | None = None) -> list[Step]:
    return [(layer, weights, (x,))]


def _refuse(op: Operation, *names: str) -> None:
    for name in names:
        if op.attributes.get(name):
            raise FormatError(f"{name} = {op.attributes[name]!r} is not supported")


def _pad_then(x: Tensor, low: Triple, high: Triple, value: float, layer: Layer, weights: dict | None = None) -> list[Step]:
    if not any(low) and not any(high):
        return _one(layer, x, weights)
    return [(Pad(low, high, "constant", value), None, (x,)), (layer, weights, (None,))]


def _weight(op: Operation, flat_at: int = 2) -> np.ndarray:
    weight = np.asarray(op.constant(1))
    if weight.ndim != op.rank:
        raise FormatError(f"its weight must have {op.rank} axes, got {weight.ndim}")
    return np.expand_dims(weight, flat_at) if op.rank == 4 else weight


def _conv(op: Operation) -> list[Step]:
    weight, groups = _weight(op), int(op.attributes.get("group", 1))
    out, kernel = len(weight), tuple(weight.shape[2:])
    bias = op.constant(2, np.zeros(out, np.float32))
    stride, dilation = op.triple("strides"), op.triple("dilations")
    low, high = op.sides(kernel, stride, dilation)
    padding = low if low == high else ZEROS
    if groups == 1:
        layer: Layer = Conv(out, kernel, stride, padding, dilation)
    else:
        layer = GroupedConv(out, kernel, groups, stride, padding, dilation)
    if weight.shape[1] * groups != op.x.shape[1]:
        raise FormatError(f"its weight is of {weight.shape[1] * groups} channels, its input has {op.x.shape[1]}")
    own = {"weight": weight, "bias": bias}
    return _one(layer, op.x, own) if low == high else _pad_then(op.x, low, high, 0.0, layer, own)


def _conv_transpose(op: Operation) -> list[Step]:
    weight, groups = _weight(op), int(op.attributes.get("group", 1))
    dilation, stride = op.triple("dilations"), op.triple("strides")
    if dilation != ONES:  # zeros between the taps
        size = tuple((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True))
        spread = np.zeros((*weight.shape[:2], *size), weight.dtype)
        spread[(..., *(slice(None, None, d) for d in dilation))] = weight
        weight = spread
    _refuse(op, "output_shape")
    if op.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise FormatError(f"auto_pad {op.attributes['auto_pad']} is not supported")
    low, high = op.sides(weight.shape[2:], stride, ONES)
    extra = op.triple("output_padding", 0)
    high = tuple(h - e for h, e in zip(high, extra, strict=True))
    out = weight.shape[1] * groups
    layer = ConvTranspose(out, tuple(weight.shape[2:]), stride, low, high, groups)
    return _one(layer, op.x, {"weight": weight, "bias": op.constant(2, np.zeros(out, np.float32))})


def _ceil_extra(op: Operation, kernel: Triple, stride: Triple, low: Triple, high: Triple) -> Triple:
    """More padding at the end, where sizes are rounded up: only windows that begin inside count."""
    if not op.attributes.get("ceil_mode"):
        return high
    found = []
    for n, k, s, a, b in zip(op.x.shape[2:], kernel, stride, low, high, strict=True):
        steps = -(-(n + a + b - k) // s)
        if steps * s >= n + a:
            steps -= 1
        found.append(max(b, steps * s + k - n - a))
    return tuple(found)


def _max_pool(op: Operation) -> list[Step]:
    _refuse(op, "storage_order")
    window, stride, dilation = op.triple("kernel_shape"), op.triple("strides"), op.triple("dilations")
    extent = tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
    low, high = op.sides(window, stride, dilation)
    high = _ceil_extra(op, extent, stride, low, high)
    if dilation == ONES:
        return _pad_then(op.x, low, high, -math.inf, MaxPool(window, stride))
    return [*_pad_then(op.x, low, high, -math.inf, MaxFilter(window, dilation)), (Slice(step=stride), None, (None,))]


def _average_pool(op: Operation) -> list[Step]:
    window, stride = op.triple("kernel_shape"), op.triple("strides")
    if op.triple("dilations") != ONES:
        raise FormatError("dilations are not supported")
    low, high = op.sides(window, stride, ONES)
    if _ceil_extra(op, window, stride, low, high) != high:
        raise FormatError("ceil_mode that makes windows reach beyond the padding is not supported")
    counted = bool(op.attributes.get("count_include_pad", 0))
    if low == high:
        return _one(AvgPool(window, stride, low, counted), op.x)
    if not counted:
        raise FormatError(f"padding by {low} and {high} that does not count is not supported")
    return _pad_then(op.x, low, high, 0.0, AvgPool(window, stride))


def _reduce(reduce: str) -> Callable[[Operation], list[Step]]:
    def read(op: Operation) -> list[Step]:
        axes = op.attributes.get("axes")
        axes = op.constant(1) if axes is None else axes
        spatial = {a % op.rank for a in map(int, axes if axes is not None else range(op.rank))}
        if spatial != set(range(2, op.rank)) or not op.attributes.get("keepdims", 1):
            raise FormatError("only reductions over all spatial axes, which are kept, are supported")
        return _one(GlobalPool(reduce), op.x)

    return read


def _batch_norm(op: Operation) -> list[Step]:
    scale, shift, mean, variance = (np.asarray(op.constant(i), np.float64) for i in range(1, 5))
    epsilon = float(op.attributes.get("epsilon", 1e-5))
    if op.attributes.get("training_mode"):
        return _one(Norm("batch", epsilon=epsilon), op.x, {"scale": scale, "bias": shift})
    if op.opset < 7 and not op.attributes.get("is_test"):
        raise FormatError("batch norm of this opset is in training mode, unless is_test says otherwise")
    factor = scale / np.sqrt(variance + epsilon)
    return _one(Affine(), op.x, {"scale": factor, "bias": shift - mean * factor})


def _instance_norm(op: Operation) -> list[Step]:
    groups = op.x.groups
    if groups:  # PyTorch's group norm
        each = op.x.shape[1] // groups
        own = {"scale": np.repeat(op.constant(1), each), "bias": np.repeat(op.constant(2), each)}
        return _one(Norm("group", groups, float(op.attributes.get("epsilon", 1e-5))), op.x, own)
    own = {"scale": op.constant(1), "bias": op.constant(2)}
    return _one(Norm("instance", epsilon=float(op.attributes.get("epsilon", 1e-5))), op.x, own)


def _group_norm(op: Operation) -> list[Step]:
    groups, channels = int(op.attributes["num_groups"]), op.x.shape[1]
    scale, bias = (np.asarray(op.constant(i)) for i in (1, 2))
    if len(scale) == groups != channels:  # before opset 21, one a group
        scale, bias = (np.repeat(a, channels // groups) for a in (scale, bias))
    layer = Norm("group", groups, float(op.attributes.get("epsilon", 1e-5)))
    return _one(layer, op.x, {"scale": scale, "bias": bias})


def _activation(name: str, **defaults: float) -> Callable[[Operation], list[Step]]:
    def read(op: Operation) -> list[Step]:
        return _one(Activate(Activation(name, *(float(op.attributes.get(k, v)) for k, v in defaults.items()))), op.x)

    return read


def _clip(op: Operation) -> list[Step]:
    low, high = (op.attributes.get(key, op.constant(i)) for i, key in ((1, "min"), (2, "max")))
    low = -np.finfo(np.float32).max if low is None else float(np.asarray(low).reshape(()))
    high = np.finfo(np.float32).max if high is None else float(np.asarray(high).reshape(()))
    return _one(Activate(Activation("clip", float(low), float(high))), op.x)


def _per_channel(array: np.ndarray, x: Tensor) -> np.ndarray:
    """A constant that goes with (batch, channels, ..) as one number a channel."""
    shape = (1,) * (x.rank - array.ndim) + array.shape
    if array.ndim > x.rank or any(n != 1 for i, n in enumerate(shape) if i != 1) or shape[1] not in (1, x.shape[1]):
        raise FormatError(f"a constant of shape {array.shape} does not go by channel with one of {x.onnx_shape}")
    return np.broadcast_to(array.reshape(shape[1]).astype(np.float64), (x.shape[1],))


def _prelu(op: Operation) -> list[Step]:
    return _one(PRelu(), op.x, {"slope": _per_channel(np.asarray(op.constant(1)), op.x)})


def _arithmetic(op: Operation) -> list[Step]:
    a, b = op.inputs
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _of_tensors(op.kind, a, b)
    x, constant = (a, np.asarray(b)) if isinstance(a, Tensor) else (b, np.asarray(a))
    values = _per_channel(constant, x)
    one, zero = np.ones(x.shape[1]), np.zeros(x.shape[1])
    if op.kind == "Add":
        scale, bias = one, values
    elif op.kind == "Sub":
        scale, bias = (one, -values) if x is a else (-one, values)
    elif op.kind == "Mul":
        scale, bias = values, zero
    elif x is a:
        scale, bias = 1 / values, zero
    else:
        raise FormatError("a constant divided by a tensor is not supported")
    return _one(Affine(), x, {"scale": scale, "bias": bias})


def _layer_norm(op: Operation) -> list[Step]:
    """Over all channels and voxels; its scale and bias must be the same for all voxels of a channel."""
    if int(op.attributes.get("axis", -1)) % op.rank != 1:
        raise FormatError("only the norm over channels and voxels together (axis 1) is supported")
    shape, own = op.x.onnx_shape[1:], {}
    for key, number, default in (("scale", 1, np.ones(1)), ("bias", 2, np.zeros(1))):
        values = np.broadcast_to(op.constant(number, default), shape).reshape(shape[0], -1)
        if (values != values[:, :1]).any():
            raise FormatError(f"its {key} is not the same for all voxels of a channel, which is not supported")
        own[key] = values[:, 0]
    return _one(Norm("group", 1, float(op.attributes.get("epsilon", 1e-5))), op.x, own)


def _spread(a: Tensor, b: Tensor) -> list[Step] | None:
    """`b` of one channel repeated to the channels of `a`, where they else go together."""
    if b.shape[1] != 1 or a.shape[1] == 1 or a.shape[2:] != b.shape[2:] or a.rank != b.rank:
        return None
    own = {"weight": np.ones((a.shape[1], 1, 1, 1, 1)), "bias": np.zeros(a.shape[1])}
    return _one(Conv(a.shape[1], ONES), b, own)


def _of_tensors(kind: str, a: Tensor, b: Tensor) -> list[Step]:
    if kind in ("Add", "Mul"):
        for one, other in ((a, b), (b, a)):
            steps = _spread(one, other)
            if steps:  # an attention gate
                return [*steps, (Multiply() if kind == "Mul" else Add(), None, (one, None))]
    if kind == "Mul":
        if a.shape == b.shape:
            return [(Multiply(), None, (a, b))]
        if a.shape[2:] == ONES:
            a, b = b, a
        return [(Multiply(per_channel=True), None, (a, b))]
    if kind == "Add":
        return [(Add(), None, (a, b))]
    if kind == "Sub":
        own = {"scale": -np.ones(b.shape[1]), "bias": np.zeros(b.shape[1])}
        return [(Affine(), own, (b,)), (Add(), None, (a, None))]
    raise FormatError("of two tensors it is not supported")


def _sum(op: Operation) -> list[Step]:
    if not all(isinstance(i, Tensor) for i in op.inputs):
        raise FormatError("a sum with constants is not supported")
    return [(Add(len(op.inputs)), None, tuple(op.inputs))]


def _concat(op: Operation) -> list[Step]:
    if op.attributes["axis"] % op.rank != 1 or not all(isinstance(i, Tensor) for i in op.inputs):
        raise FormatError("only tensors put together along the channels are supported")
    return [(Concat(tuple(i.shape[1] for i in op.inputs)), None, tuple(op.inputs))]


def _slice(op: Operation) -> list[Step]:
    if "starts" in op.attributes:
        starts, ends, axes = (op.attributes.get(key) for key in ("starts", "ends", "axes"))
        steps = None
    else:
        starts, ends, axes, steps = (op.constant(i) for i in (1, 2, 3, 4))
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    low, high, step, channels = [0, 0, 0], [0, 0, 0], [1, 1, 1], None
    for start, end, axis, by in zip(starts, ends, axes, steps, strict=True):
        axis = int(axis) % op.rank
        n = op.x.onnx_shape[axis]
        first, stop, by = slice(int(start), int(end), int(by)).indices(n)
        if by < 1 or stop <= first:
            raise FormatError(f"a slice from {start} to {end} by {by} of {n} is not supported")
        if axis == 0:
            if (first, stop, by) != (0, n, 1):
                raise FormatError("slices of the batch are not supported")
        elif axis == 1:
            if by != 1:
                raise FormatError("every so many channels is not supported")
            channels = (first, stop)
        else:
            at = axis - op.rank + 3
            low[at], high[at], step[at] = first, n - stop, by
    return _one(Slice(tuple(low), tuple(high), tuple(step), channels), op.x)


def _pad(op: Operation) -> list[Step]:
    pads = op.attributes.get("pads", op.attributes.get("paddings"))
    pads = [int(n) for n in (op.constant(1) if pads is None else pads)]
    value = op.attributes.get("value", op.constant(2))
    axes = op.constant(3)
    if axes is not None:
        half, whole = len(pads) // 2, [0] * (2 * op.rank)
        for i, axis in enumerate(axes):
            whole[int(axis) % op.rank], whole[op.rank + int(axis) % op.rank] = pads[i], pads[half + i]
        pads = whole
    low, high = pads[: op.rank], pads[op.rank :]
    if any((*low[:2], *high[:2])):
        raise FormatError("padding of batch or channels is not supported")
    mode = op.attributes.get("mode", "constant")
    if mode not in ("constant", "edge", "reflect"):
        raise FormatError(f"padding by {mode} is not supported")
    low, high = op.padded(low[2:], 0), op.padded(high[2:], 0)
    if min((*low, *high)) < 0:  # cut off
        if any(n > 0 for n in (*low, *high)):
            raise FormatError("padding that adds here and cuts there is not supported")
        return _one(Slice(tuple(-n for n in low), tuple(-n for n in high)), op.x)
    number = 0.0 if value is None else float(np.asarray(value).reshape(()))
    return _one(Pad(low, high, mode, number), op.x)


def _as_written(scale: float) -> float:
    """The fraction that a scale was before it became a float32: 10 voxels times 0.7 are 7."""
    near = float(Fraction(scale).limit_denominator(1000))
    return near if np.float32(near) == np.float32(scale) else scale


def _resize(op: Operation) -> list[Step]:
    upsample = op.kind == "Upsample"
    scales = op.attributes.get("scales") if upsample and "scales" in op.attributes else None
    if scales is None:
        scales = op.constant(1 if upsample or op.opset < 11 else 2)
    sizes = None if upsample or op.opset < 11 else op.constant(3)
    mode = op.attributes.get("mode", "nearest")
    mode = "linear" if mode in ("bilinear", "trilinear") else mode
    if mode not in ("nearest", "linear"):
        raise FormatError(f"mode {mode} is not supported; supported are nearest and linear")
    _refuse(op, "antialias", "exclude_outside", "axes")
    if op.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise FormatError(f"keep_aspect_ratio_policy {op.attributes['keep_aspect_ratio_policy']} is not supported")
    old = upsample or op.opset < 11
    coordinates = "asymmetric" if old else op.attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else op.attributes.get("nearest_mode", "round_prefer_floor")
    if sizes is not None and len(sizes):
        given, extra = [], []
        if tuple(sizes[:2]) != op.x.onnx_shape[:2]:
            raise FormatError("resizing batch or channels is not supported")
        for n, m in zip(op.x.shape[2:], op.padded([int(s) for s in sizes[2:]], op.x.shape[2]), strict=True):
            factor = m / n if m % n == 0 or n % m == 0 else float(round(m / n) or 1)
            given.append(factor)
            extra.append(m - math.floor(n * factor))
        factor, more = tuple(given), tuple(extra)
    else:
        if scales is None or not len(scales):
            raise FormatError("neither scales nor sizes are constant")
        if any(float(s) != 1 for s in scales[:2]):
            raise FormatError("resizing batch or channels is not supported")
        each = [_as_written(float(s)) for s in scales[2:]]
        factor, more = tuple(each if op.rank == 5 else (1.0, *each)), ZEROS
    return _one(Resize(factor, mode, coordinates, rounding, more), op.x)


def _depth_to_space(op: Operation) -> list[Step]:
    if op.rank != 4 or op.attributes.get("mode", "DCR") != "DCR":
        raise FormatError("only the mode DCR of images is supported")
    size = int(op.attributes["blocksize"])
    return _one(DepthToSpace((1, size, size)), op.x)


def _softmax(op: Operation) -> list[Step]:
    axis = int(op.attributes.get("axis", 1 if op.opset < 13 else -1)) % op.rank
    if axis != 1 or (op.opset < 13 and op.x.shape[2:] != ONES):
        raise FormatError("only the softmax over channels is supported")
    return _one(Softmax(), op.x)


def _as_it_is(op: Operation) -> Tensor:
    return op.x


def _dropout(op: Operation) -> Tensor:
    if len(op.inputs) > 2 and op.inputs[2] is not None and bool(op.constant(2)):
        raise FormatError("in training mode it is not supported")
    return op.x


def _cast(op: Operation) -> Tensor:
    if op.attributes["to"] not in (1, 10, 11, 16):
        raise FormatError("of a tensor to no float is not supported")
    return op.x


def _reshaped(op: Operation) -> Tensor:
    """A reshape that leaves (batch, channels, ..) as it lies."""
    x = op.x
    if op.kind == "Flatten":
        wanted = (x.shape[0], math.prod(x.shape[1:])) if int(op.attributes.get("axis", 1)) == 1 else None
    elif op.kind == "Reshape":
        wanted = tuple(int(n) for n in np.asarray(op.constant(1)))
        wanted = tuple(x.onnx_shape[i] if n == 0 else n for i, n in enumerate(wanted))
        if -1 in wanted:
            rest = -math.prod(wanted)
            wanted = tuple(math.prod(x.shape) // rest if n == -1 else n for n in wanted)
    else:
        axes = op.attributes.get("axes")
        axes = op.constant(1) if axes is None else axes
        if op.kind == "Squeeze":
            gone = {int(a) % x.rank for a in axes} if axes is not None else set(range(2, x.rank))
            wanted = tuple(n for i, n in enumerate(x.onnx_shape) if i not in gone)
        else:
            wanted = list(x.onnx_shape)
            for axis in sorted(int(a) % (x.rank + len(axes)) for a in axes):
                wanted.insert(axis, 1)
            wanted = tuple(wanted)
    if wanted == x.onnx_shape:
        return x
    if x.groups and wanted in (x.shape, (*x.shape[:2], *x.shape[3:])):
        return Tensor(x.name, x.shape, len(wanted))
    if len(wanted or ()) == 3 and x.rank > 2 and not x.groups:
        grouped = Tensor(x.name, x.shape, x.rank, wanted[1])
        if wanted[1] and x.shape[1] % wanted[1] == 0 and wanted == grouped.onnx_shape:
            return grouped
    ones = x.shape[2:] == ONES
    if ones and wanted is not None and wanted[:2] == x.shape[:2] and len(wanted) in (2, 4, 5) and set(wanted[2:]) <= {1}:
        return Tensor(x.name, x.shape, len(wanted))
    raise FormatError(f"from {x.onnx_shape} to {wanted} is not supported: only what leaves voxels where they are is")


def _gemm(op: Operation) -> list[Step]:
    weight = np.asarray(op.constant(1))
    if op.x.shape[2:] != ONES or op.x.rank != 2 or weight.ndim != 2:
        raise FormatError("only a product of (batch, channels) and a matrix is supported")
    alpha, beta = (float(op.attributes.get(key, 1.0)) for key in ("alpha", "beta"))
    _refuse(op, "transA")
    if op.kind == "MatMul" or not op.attributes.get("transB"):
        weight = weight.T
    bias = np.broadcast_to(beta * np.asarray(op.constant(2, np.zeros(1))), (1, len(weight))).reshape(-1)
    own = {"weight": alpha * weight[:, :, None, None, None], "bias": bias}
    return _one(Conv(len(weight), ONES), op.x, own)


#: What is supported, by operator.
OPERATORS: dict[str, Callable[[Operation], list[Step] | Tensor]] = {
    "Add": _arithmetic,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _arithmetic,
    "Dropout": _dropout,
    "Elu": _activation("elu", alpha=1.0),
    "Flatten": _reshaped,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda op: _one(GlobalPool("mean"), op.x),
    "GlobalMaxPool": lambda op: _one(GlobalPool("max"), op.x),
    "GroupNormalization": _group_norm,
    "Identity": _as_it_is,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _activation("leaky_relu", alpha=0.01),
    "MatMul": _gemm,
    "MaxPool": _max_pool,
    "Mul": _arithmetic,
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMax": _reduce("max"),
    "ReduceMean": _reduce("mean"),
    "Relu": _activation("relu"),
    "Reshape": _reshaped,
    "Resize": _resize,
    "Sigmoid": _activation("sigmoid"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _reshaped,
    "Sub": _arithmetic,
    "Sum": _sum,
    "Tanh": _activation("tanh"),
    "Unsqueeze": _reshaped,
    "Upsample": _resize,
}
