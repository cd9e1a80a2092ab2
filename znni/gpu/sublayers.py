"""A convolution cut into sub-layers that follow one another on a device with little memory (after ZNNi, SC'16).

It is cut along batch, output channels and input channels, and, since one channel of a huge patch may be too much already,
along z. Pieces along batch and z are equally large, the last one shifted back where they would reach beyond, so that one
operator computes them all; those of channels may differ by size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod

from znni.errors import Unsupported
from znni.layers import LINEAR, Conv, Shape
from znni.layouts import tensor_bytes

Span = tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """Pieces along batch, output channels, input channels and planes (z) of the result; as many as there can be, at most."""

    batch: int = 1
    out: int = 1
    into: int = 1
    z: int = 1


@dataclass(frozen=True)
class Step:
    """One sub-layer.

    Attributes
    ----------
    batch, planes : Span
        Batch elements, and planes of the result.
    out, into : int
        Which piece of output and of input channels.
    turn : int
        Which of these pairs it is, in the order in which they come for each batch and planes.
    buffer : int
        Which buffer its input lies in.
    upload : bool
        Whether that has to be filled for it, or holds this input already.
    first, last : bool
        Of the steps that are summed up into the same piece of the result.
    result : int
        Which buffer that lies in.
    """

    batch: Span
    planes: Span
    out: int
    into: int
    turn: int
    buffer: int
    upload: bool
    first: bool
    last: bool
    result: int


@dataclass(frozen=True)
class Run:
    """`rows` runs of `length` elements: `pitch` apart on the host from `host` on, one after another on the device."""

    host: int
    device: int
    length: int
    pitch: int
    rows: int


def _size(n: int, pieces: int) -> int:
    return -(-n // min(n, pieces))


def _equal(n: int, pieces: int) -> tuple[Span, ...]:
    """Equal spans that cover `n`, the last one shifted back."""
    size = _size(n, pieces)
    starts = (min(start, n - size) for start in range(0, n, size))
    return tuple((start, start + size) for start in starts)


def _disjoint(n: int, pieces: int) -> tuple[Span, ...]:
    """Disjoint spans that cover `n`."""
    size = _size(n, pieces)
    return tuple((start, min(start + size, n)) for start in range(0, n, size))


@dataclass(frozen=True)
class Sublayers:
    """All sub-layers of `layer` on an input of `shape`; `Unsupported` where it cannot be cut so."""

    layer: Conv
    shape: Shape
    cut: Cut

    def __post_init__(self):
        if self.cut.z > 1 and self.layer.padding[0]:
            raise Unsupported("a convolution that is padded along z cannot be cut along z")

    @cached_property
    def out_shape(self) -> Shape:
        """Shape of the layer's result."""
        return self.layer.output_shape(self.shape)

    @cached_property
    def batches(self) -> tuple[Span, ...]:
        """Pieces of the batch."""
        return _equal(self.shape[0], self.cut.batch)

    @cached_property
    def planes(self) -> tuple[Span, ...]:
        """Pieces of the result along z."""
        return _equal(self.out_shape[2], self.cut.z)

    @cached_property
    def outs(self) -> tuple[Span, ...]:
        """Pieces of the output channels."""
        return _disjoint(self.out_shape[1], self.cut.out)

    @cached_property
    def ins(self) -> tuple[Span, ...]:
        """Pieces of the input channels."""
        return _disjoint(self.shape[1], self.cut.into)

    def conv(self, out: int) -> Conv:
        """The layer that computes that piece of output channels; without activation where partial sums are added up."""
        start, stop = self.outs[out]
        activation = self.layer.activation if len(self.ins) == 1 else LINEAR
        return replace(self.layer, out_channels=stop - start, activation=activation)

    def x_shape(self, into: int) -> Shape:
        """Shape of a sub-layer's input."""
        return (_length(self.batches[0]), _length(self.ins[into]), _length(self.taken(self.planes[0])), *self.shape[3:])

    def result_shape(self, out: int) -> Shape:
        """Shape of a piece of the result."""
        return (_length(self.batches[0]), _length(self.outs[out]), _length(self.planes[0]), *self.out_shape[3:])

    def taken(self, planes: Span) -> Span:
        """The planes of the input that these of the result depend on."""
        if len(self.planes) == 1:
            return (0, self.shape[2])
        stride = self.layer.stride[0]
        return (planes[0] * stride, (planes[1] - 1) * stride + self.layer.extent[0])

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pieces of output and input channels that are convolved with each other, by turn (`Step`)."""
        steps = self.steps()[: len(self.outs) * len(self.ins)]
        return tuple((step.out, step.into) for step in steps)

    @property
    def x_buffers(self) -> int:
        """Two, so that one is filled while another is read, unless there is but one input."""
        return min(2, len(self.batches) * len(self.planes) * len(self.ins))

    @property
    def result_buffers(self) -> int:
        """Two, so that one is copied out while another is computed, unless there is but one result."""
        return min(2, len(self.batches) * len(self.planes) * len(self.outs))

    @property
    def buffer_bytes(self) -> list[int]:
        """Sizes of the input buffers, the result buffers, and the one for partial sums, where there are any."""
        result = tensor_bytes(self.result_shape(0))
        sums = [result] if len(self.ins) > 1 else []
        return [tensor_bytes(self.x_shape(0))] * self.x_buffers + [result] * self.result_buffers + sums

    def x_runs(self, step: Step) -> list[Run]:
        """Where a step's input lies on the host."""
        return _runs(self.shape, step.batch, self.ins[step.into], self.taken(step.planes))

    def result_runs(self, step: Step) -> list[Run]:
        """Where a step's result lies on the host."""
        return _runs(self.out_shape, step.batch, self.outs[step.out], step.planes)

    def steps(self) -> tuple[Step, ...]:
        """Every sub-layer, in order (`_steps`)."""
        return _steps(self)


@lru_cache(maxsize=256)
def _steps(sub: Sublayers) -> tuple[Step, ...]:
    """All output channels of some input before the next input, and input channels to and fro, so that what the input buffers
    hold already is used again."""
    found: list[Step] = []
    held: list[tuple | None] = [None] * sub.x_buffers
    buffer, results = 0, 0
    for batch in sub.batches:
        for planes in sub.planes:
            for out in range(len(sub.outs)):
                order = list(range(len(sub.ins)))[:: -1 if out % 2 else 1]
                for place, into in enumerate(order):
                    wanted = (batch, planes, into)
                    upload = wanted not in held
                    if upload:
                        buffer = (buffer + 1) % len(held)  # not the one read last
                        held[buffer] = wanted
                    else:
                        buffer = held.index(wanted)
                    found.append(
                        Step(
                            batch,
                            planes,
                            out,
                            into,
                            turn=out * len(order) + place,
                            buffer=buffer,
                            upload=upload,
                            first=place == 0,
                            last=place == len(order) - 1,
                            result=results % sub.result_buffers,
                        )
                    )
                results += 1
    return tuple(found)


def _length(span: Span) -> int:
    return span[1] - span[0]


def _runs(shape: Shape, batch: Span, channels: Span, planes: Span) -> list[Run]:
    """How that part of a host array of `shape` lies, in as few runs as may be."""
    plane = shape[3] * shape[4]
    image = shape[2] * plane
    count, length = _length(channels), _length(planes) * plane
    start = (batch[0] * shape[1] + channels[0]) * image + planes[0] * plane
    if count == shape[1]:  # from image to image the same distance throughout
        return [_run(start, 0, length, image, _length(batch) * count)]
    if length == image:
        return [_run(start, 0, count * image, shape[1] * image, _length(batch))]
    return [_run(start + b * shape[1] * image, b * count * length, length, image, count) for b in range(_length(batch))]


def _run(host: int, device: int, length: int, pitch: int, rows: int) -> Run:
    """One run where there are no gaps."""
    if length == pitch or rows == 1:
        return Run(host, device, length * rows, length * rows, 1)
    return Run(host, device, length, pitch, rows)


def layer_bytes(layer: Conv, shape: Shape) -> int:
    """Input, output and weights, all of which the device need not hold."""
    weights = sum(map(prod, layer.weight_shapes(shape[1]).values()))
    return tensor_bytes(shape) + tensor_bytes(layer.output_shape(shape)) + 4 * weights
