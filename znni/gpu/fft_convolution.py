"""What the FFT convolutions on the device share: blocks of tiles and of output channels, and the operator.

    for each block of tiles and block of outputs, in an order in which little is transformed again:
        spectra of the tiles' input channels, and of the outputs' kernels, unless they are there
        products, transforms back, bias, activation

What a config sets:

``block``
    Tiles (whole images, where these are the tiles) that go together.
``outputs``
    Output channels that go together.
``spectra``
    ``resident``: the kernels' spectra are made once and kept. ``recomputed``: each call makes them, a block of outputs at a
    time.
``product``
    ``cgemm`` or ``lines`` (`znni.gpu.spectra`).
``tf32``
    True: cuBLAS may round what it multiplies to TF32.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

import numpy as np

from znni.errors import InvalidShape, Unsupported
from znni.gpu.current import current
from znni.gpu.device import DeviceArray
from znni.gpu.operator import GpuOperator, GpuPrimitive, carve, carved_bytes
from znni.gpu.spectra import BYTES, CGEMM, FORMS, LINES, Products, sums_of
from znni.gpu.transforms import INPUT, KERNEL, RESULT, Transforms, runs
from znni.layers import ONES, Conv, Shape, by_x
from znni.layouts import settings_of
from znni.primitives.base import Config, Cost, Memory, Weights, config_key, unfit

SPECTRA = ("resident", "recomputed")
#: Complex numbers that are transformed at once, about what stays in a large device's cache from one pass to the next.
_GROUP = 1 << 23
#: Spectra that are transposed at once at least, where there are as many: fewer would write less than a sector at a time.
_LEAST_TRANSPOSED = 8
#: What cuFFT and the kernels count by ints.
_MOST_ELEMENTS = (1 << 31) - 1


class Arrangement:
    """What a call holds, and in what groups it transforms."""

    def __init__(self, layer: Conv, shape: Shape, config: Config, transforms: Transforms):
        self.transforms, self.form = transforms, config["product"]
        self.resident = config["spectra"] == "resident"
        self.tiles, self.channels, self.out_channels = transforms.tiling.tiles, shape[1], layer.out_channels
        self.block, self.outputs = min(config["block"], self.tiles), min(config["outputs"], self.out_channels)
        self._weight_bytes = 4 * prod(layer.weight_shapes(shape[1])["weight"])

    def groups(self, role: str, items: int) -> Iterator[tuple[int, int]]:
        """Items that are transformed at once: (first, count)."""
        least = 1
        if self.form == CGEMM:
            least = min(_LEAST_TRANSPOSED, _MOST_ELEMENTS // (2 * self.transforms.frequencies))
        most = max(least, _GROUP // self.transforms.frequencies)
        if role == KERNEL and self.resident:  # made before the first call, in what a call takes anyway
            most = min(most, self.block * self.channels)
        return runs(items, most)

    def sizes(self) -> set[tuple[str, int]]:
        """All (role, count) that are ever transformed at once."""
        blocks = {count for _, count in runs(self.tiles, self.block)}
        outputs = {count for _, count in runs(self.out_channels, self.outputs)}
        items = {(INPUT, block * self.channels) for block in blocks}
        items |= {(RESULT, block * o) for block in blocks for o in outputs}
        items |= {(KERNEL, o * self.channels) for o in ({self.out_channels} if self.resident else outputs)}
        return {(role, count) for role, total in items for _, count in self.groups(role, total)}

    @property
    def done(self) -> dict[str, int]:
        """Items that a call transforms, of each role: in that order of blocks in which this moves fewer bytes."""
        blocks, parts = -(-self.tiles // self.block), -(-self.out_channels // self.outputs)
        inputs, kernels = self.tiles * self.channels, 0 if self.resident else self.out_channels * self.channels
        tiles_first = inputs, kernels * (blocks if parts > 1 else 1)
        outputs_first = inputs * (parts if blocks > 1 else 1), kernels
        each = [self.transforms.moved_bytes(role) for role in (INPUT, KERNEL)]
        least = min(
            tiles_first, outputs_first, key=lambda counts: sum(n * b for n, b in zip(counts, each, strict=True))
        )
        return dict(zip((INPUT, KERNEL), least, strict=True)) | {RESULT: self.tiles * self.out_channels}

    def blocks(self) -> Iterator[tuple[range, range]]:
        """Tiles and outputs that are multiplied at once, in the order in which they are."""
        tiles, outputs = (
            [range(first, first + count) for first, count in runs(*whole_and_most)]
            for whole_and_most in ((self.tiles, self.block), (self.out_channels, self.outputs))
        )
        if self.done[INPUT] > self.tiles * self.channels:
            return ((t, o) for o in outputs for t in tiles)
        return product(tiles, outputs)

    def resident_sizes(self) -> list[int]:
        """Bytes of weight, bias, and the kernels' spectra."""
        spectra = BYTES * self.out_channels * self.channels * self.transforms.frequencies
        return [self._weight_bytes, 4 * self.out_channels, spectra if self.resident else 0]

    def workspace_sizes(self) -> list[int]:
        """Bytes of the spectra of inputs, kernels and results, of those transformed at once, of what transforming them takes
        beside, and of what cuFFT or cuBLAS works in."""
        spectrum, sizes = BYTES * self.transforms.frequencies, self.sizes()
        most = next(runs(self.tiles, self.block))[1], next(runs(self.out_channels, self.outputs))[1]
        work = max(self.transforms.work_bytes(*size) for size in sizes)
        staging = 0
        if self.form == CGEMM:
            work = max(work, current().blas_work_bytes)
            staging = spectrum * max(count for _, count in sizes)
        return [
            spectrum * most[0] * self.channels,
            0 if self.resident else spectrum * most[1] * self.channels,
            spectrum * prod(most),
            staging,
            max(self.transforms.scratch_bytes(*size) for size in sizes),
            work,
        ]


class FftOperator(GpuOperator):
    """Convolution by products of spectra. Holds weights, bias and, if they are resident, the kernels' spectra."""

    def __init__(
        self, primitive: FftConvolution, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int
    ):
        super().__init__(primitive, layer, shape, config, threads)
        self._host = [np.ascontiguousarray(weights[name], np.float32) for name in ("weight", "bias")]
        self._transforms = primitive.transforms(layer, shape, config)
        self._arrangement = a = Arrangement(layer, shape, config, self._transforms)
        self._sizes = a.workspace_sizes()
        self._products = Products(
            self.device, a.form, a.channels, self._transforms.frequencies, bool(config.get("tf32"))
        )  # fmt: skip
        self._transforms.compile(self.device)
        for tiles, outputs in a.blocks():
            self._products.compile(len(tiles), len(outputs))

    def fill(self, resident: DeviceArray, workspace: DeviceArray) -> None:
        """Weights, bias, plans, and spectra that stay."""
        a, stream = self._arrangement, self.device.compute
        self._transforms.plan(self.device, sorted(a.sizes()))
        self._weight, self._bias, self._spectra = carve(resident, a.resident_sizes())
        for array, values in zip((self._weight, self._bias), self._host, strict=True):
            stream.copy(array, values)
        self._weight = self._weight.view(np.float32, self._host[0].shape)
        self._bias = self._bias.view(np.float32, self._host[1].shape)
        stream.synchronise()  # the host's copies are read until then
        self._host = []
        if a.resident:
            self._kernel_spectra(self._spectra, range(a.out_channels), carve(workspace, self._sizes))

    def release(self) -> None:
        """See `GpuOperator.release`."""
        super().release()
        self._transforms.free()

    def compute(self, x: DeviceArray, out: DeviceArray, workspace: DeviceArray) -> None:
        """See `GpuOperator`."""
        a, stream = self._arrangement, self.device.compute
        pieces = carve(workspace, self._sizes)
        inputs, made, results, *_, work = pieces
        inputs_of = None
        kernels, kernels_of = (self._spectra, range(a.out_channels)) if a.resident else (made, None)
        for tiles, outputs in a.blocks():
            if inputs_of != tiles:
                self._input_spectra(x, inputs, tiles, pieces)
                inputs_of = tiles
            if not a.resident and kernels_of != outputs:
                self._kernel_spectra(kernels, outputs, pieces)
                kernels_of = outputs
            self._products.multiply(stream, inputs, kernels, results, len(tiles), outputs, kernels_of, work)
            self._store(results, out, tiles, outputs, pieces)

    def _input_spectra(self, x, inputs, tiles, pieces) -> None:
        a, stream, items = self._arrangement, self.device.compute, len(tiles) * self._arrangement.channels
        for first, count, target in self._groups(INPUT, items, inputs, pieces):
            self._transforms.load_inputs(stream, x, tiles.start, first, count, target, *pieces[4:])
            if a.form == CGEMM:
                self._products.collect(stream, target, inputs, first, count, items, False)

    def _kernel_spectra(self, kernels, outputs, pieces) -> None:
        a, stream = self._arrangement, self.device.compute
        for first, count, target in self._groups(KERNEL, len(outputs) * a.channels, kernels, pieces):
            start = outputs.start * a.channels + first
            self._transforms.load_kernels(stream, self._weight, start, count, target, *pieces[4:])
            if a.form == CGEMM:
                self._products.collect(stream, target, kernels, first, count, len(outputs) * a.channels, True)

    def _store(self, results, out, tiles, outputs, pieces) -> None:
        stream, items = self.device.compute, len(tiles) * len(outputs)
        for first, count, source in self._groups(RESULT, items, results, pieces):
            if self._arrangement.form == CGEMM:
                self._products.spread(stream, results, source, first, count, items)
            self._transforms.store_results(
                stream, source, self._bias, out, tiles.start, first, count, outputs, *pieces[4:]
            )  # fmt: skip

    def _groups(self, role, items, spectra, pieces) -> Iterator[tuple[int, int, DeviceArray]]:
        """First and count of what is transformed at once, and where its spectra lie: in their place, or to be transposed."""
        bytes_each = BYTES * self._transforms.frequencies
        for first, count in self._arrangement.groups(role, items):
            where, at = (pieces[3], 0) if self._arrangement.form == CGEMM else (spectra, first * bytes_each)
            yield first, count, where.view(np.uint8, (count * bytes_each,), at)


class FftConvolution(GpuPrimitive):
    """A convolution of stride 1 by FFT; subclasses say how tiles are cut and transformed."""

    kind = "conv"
    tolerance = 1e-5
    efficiency = (0.3, 0.5)
    #: Keys of a config beside those that all have.
    keys: tuple[str, ...] = ()

    def transforms(self, layer: Conv, shape: Shape, config: Config) -> Transforms:
        """The transforms that a config stands for."""
        raise NotImplementedError

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, or what of stride, kernel and size it cannot do."""
        if layer.stride != ONES:
            return f"FFT convolution has stride 1 only, got {by_x(layer.stride)}"
        if prod(layer.kernel) == 1:
            return "a kernel of one voxel leaves an FFT convolution nothing to save"
        return unfit(layer, shape)

    def too_large(self, transforms: Transforms) -> str | None:
        """Why these cannot be transformed, where they cannot."""
        elements = 2 * max(transforms.frequencies, transforms.scratch_bytes(INPUT, 1) // BYTES)
        if elements > _MOST_ELEMENTS:
            return (
                f"a transform of {by_x(transforms.tiling.points)} points takes {elements} numbers, and one batch of "
                f"cuFFT at most {_MOST_ELEMENTS}; use a smaller patch, or tiles"
            )
        return None

    def memory(self, layer: Conv, shape: Shape, config: Config, threads: int) -> Memory:
        """Weights, bias and spectra that stay; blocks of spectra, and what cuFFT and cuBLAS work in."""
        self.check(layer, shape, config)
        a = Arrangement(layer, shape, config, self.transforms(layer, shape, config))
        return Memory(
            device_resident_bytes=carved_bytes(a.resident_sizes()),
            device_workspace_bytes=carved_bytes(a.workspace_sizes()),
        )

    def cost(self, layer: Conv, shape: Shape, config: Config) -> Cost:
        """Transforms of the lines that are done, and 8 FLOP a complex product; spectra read and written once a pass."""
        t = self.transforms(layer, shape, config)
        a = Arrangement(layer, shape, config, t)
        pairs, n = a.channels * a.out_channels, t.frequencies
        spectra = 0 if a.form == LINES else 2 * BYTES * n
        flop = 8.0 * n * a.tiles * pairs + sum(count * t.flop(role) for role, count in a.done.items())
        moved = sum(count * (t.moved_bytes(role) + spectra) for role, count in a.done.items())
        # each side is read again for every block, or for every few of the other that are summed up at once
        item_rounds, output_rounds = -(-a.tiles // a.block), -(-a.out_channels // a.outputs)
        if a.form == LINES:
            items_each, outputs_each = sums_of(a.block, a.outputs)
            item_rounds, output_rounds = -(-a.tiles // items_each), -(-a.out_channels // outputs_each)
        read = a.tiles * a.channels * output_rounds + pairs * item_rounds + a.tiles * a.out_channels
        moved += float(BYTES) * n * read + 4.0 * (prod(shape) + prod(layer.output_shape(shape)))
        return Cost(flop, moved)

    def prepare(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> FftOperator:
        """An operator for these weights, to which it refers; `Unsupported` where the config does not fit the layer."""
        self.refuse(layer, shape)
        self.check(layer, shape, config)
        for name, expected in layer.weight_shapes(shape[1]).items():
            if weights[name].shape != expected:
                raise InvalidShape(f"{name} must be {by_x(expected)}, got {by_x(weights[name].shape)}")
        return FftOperator(self, layer, weights, shape, config, threads)

    def check(self, layer: Conv, shape: Shape, config: Config) -> None:
        """Raise `Unsupported` where `config` is none of this primitive's for the layer."""
        settings = settings_of(config)
        known = {"block", "outputs", "spectra", "product", *self.keys}
        sound = known <= set(settings) <= known | {"tf32"}
        sound = sound and all(isinstance(settings[key], int) and settings[key] > 0 for key in ("block", "outputs"))
        sound = sound and settings["spectra"] in SPECTRA and settings["product"] in FORMS
        sound = sound and settings.get("tf32", False) in ((True, False) if settings["product"] == CGEMM else (False,))
        if not sound:
            raise Unsupported(
                f"a config of {self.name} has {', '.join(sorted(known))}: a block of tiles and of outputs of at least 1, "
                f"spectra 'resident' or 'recomputed', a product 'cgemm', then perhaps tf32, or 'lines'; "
                f"got {config_key(config)}; see configs()"
            )
