"""`cpu.winograd_voxels`: Winograd's minimal filtering along y, voxels in the lanes (``pyx/winograd_voxels.pyx``).

For few input channels, as a network's first layer has: the lanes of `cpu.winograd`, which are channels, would be idle,
and a direct convolution has all its products to do. What a config sets:

``outputs``
    Rows of a tile: of `OUTPUTS`, those of the kernel along y. F(m, r) takes m + r - 1 products for m outputs of a kernel
    of r.
``stream``
    Store past the caches, which pays for an output much larger than they are.

Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR'16, of one axis; the points are those of
`znni.winograd_points`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from znni._kernels import winograd_voxels
from znni.arena import aligned, aligned_empty
from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv, Shape, Triple, by_x
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, config_key, register, unfit
from znni.winograd_points import kernel_transform

#: Rows that a tile may have, by the kernel along y: those with transforms of 4, 6 or 8 points. F(3, 2) is left out: on
#: 1 -> 80 channels of 2x2x2 it took 1.4 times as long as cpu.direct_voxels.
OUTPUTS = {3: (2, 4, 6), 4: (3, 5), 5: (2, 4), 6: (3,), 7: (2,)}
#: By rows and kernel along y: by how much the transforms multiply the error.
ERROR_GROWTH = {(2, 3): 1.33, (4, 3): 2.23, (6, 3): 4.7, (3, 4): 2.3, (5, 4): 4.5, (2, 5): 2.4, (4, 5): 4.5,
                (3, 6): 4.5, (2, 7): 5.0}  # fmt: skip
#: Terms (input channel, kernel plane, kernel column) that it takes on: their points should stay in L1 or L2.
_MOST_TERMS = 72
#: The points of a tile, which a row is cut for where it is longer.
_POINT_BYTES = 64 << 10
#: Outputs larger than this are better streamed; much larger ones, always.
_STREAMED_BYTES, _ALWAYS_BYTES = 4 << 20, 32 << 20
#: FLOP of the input transform of one column, by points.
_INPUT_FLOP = {4: 4, 6: 24, 8: 48}


@dataclass(frozen=True)
class Tiling:
    """How one layer on one shape is cut, which is what `winograd_voxels.convolve` goes by.

    A tile is `outputs` rows, of `points` along y. There are `tiles` of them in a plane, cut into `chunks` of `width`
    voxels along x. Offsets and steps of the workspace count floats, those of the resident array bytes.
    """

    threads: int
    activation: Activation
    padding: Triple
    kernel_z: int
    dilation_z: int
    dilation_y: int
    dilation_x: int
    stride_z: int
    points: int
    outputs: int
    rows: int
    terms: int
    blocks: int
    tiles: int
    chunks: int
    width: int
    points_row: int
    product_at: int
    gather_at: int
    scratch: int
    stream: bool
    workspace_bytes: int
    bias_at: int
    weight_at: int
    resident_bytes: int


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@lru_cache(maxsize=4096)
def _tiling(layer: Conv, shape: Shape, outputs: int, stream: bool, threads: int) -> Tiling:
    lanes, block, least = winograd_voxels.LANES, winograd_voxels.BLOCK_CHANNELS, winograd_voxels.BLOCK_WIDTH
    (_, _, _, height, length), points = layer.output_shape(shape), outputs + layer.kernel[1] - 1
    rows, halo, dilation = shape[1] * layer.kernel[0] * points, layer.extent[2] - 1, layer.dilation[1]
    most = max(least, (_POINT_BYTES // (4 * rows) - halo) // least * least)
    chunks = -(-length // most)
    width = _up(-(-length // chunks), least)
    chunks = -(-length // width)
    points_row = _up(width + halo, lanes)
    # every part starts at a multiple of 64 bytes
    product_at = aligned(4 * rows * points_row) // 4
    gather_at = product_at + points * block * least
    scratch = gather_at + outputs * block * width
    terms = shape[1] * layer.kernel[0] * layer.kernel[2]
    weight_at = aligned(4 * layer.out_channels)
    return Tiling(
        threads=threads,
        activation=layer.activation,
        padding=layer.padding,
        kernel_z=layer.kernel[0],
        dilation_z=layer.dilation[0],
        dilation_y=layer.dilation[1],
        dilation_x=layer.dilation[2],
        stride_z=layer.stride[0],
        points=points,
        outputs=outputs,
        rows=rows // points,
        terms=terms,
        blocks=-(-layer.out_channels // block),
        tiles=dilation * -(-height // (outputs * dilation)),
        chunks=chunks,
        width=width,
        points_row=points_row,
        product_at=product_at,
        gather_at=gather_at,
        scratch=scratch,
        stream=stream,
        workspace_bytes=4 * threads * scratch,
        bias_at=0,
        weight_at=weight_at,
        resident_bytes=weight_at + 4 * layer.out_channels * points * terms,
    )


class _WinogradVoxels(Operator):
    """Holds bias and transformed kernels in one array."""

    def __init__(self, primitive: Primitive, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._tiling = t = _tiling(layer, shape, config["outputs"], config["stream"], threads)
        self._packed = packed = aligned_empty(t.resident_bytes)
        packed[:] = 0  # what lies between the parts
        packed[: 4 * layer.out_channels].view(np.float32)[:] = weights["bias"]
        # of a block: by point, by term, by channel
        transform, done = kernel_transform(t.outputs, layer.kernel[1]), t.weight_at
        for kernels in np.array_split(weights["weight"], t.blocks):
            part = packed[done : done + 4 * len(kernels) * t.points * t.terms]
            at = part.view(np.float32).reshape(t.points, *shape[1:2], layer.kernel[0], layer.kernel[2], len(kernels))
            at[:] = np.einsum("py,oizyx->pizxo", transform, kernels)
            done += part.nbytes

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        """One call of the kernel, which gives its threads tile after tile."""
        winograd_voxels.convolve(x, out, self._packed, workspace, self._tiling)

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """The packed bias and kernels."""
        return (self._packed,)


class CpuWinogradVoxels(Primitive):
    """Kernels of 3 to 7 along y and few input channels; any kernel along z and x, any dilation and padding."""

    name = "cpu.winograd_voxels"
    kind = "conv"
    tolerance = 5e-6
    efficiency = (0.85, 0.6)

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, or what of stride, dilation, kernel and channels it cannot do."""
        if reason := unfit(layer, shape):
            return reason
        if layer.stride[1:] != (1, 1):
            return f"it needs stride 1 along y and x, got {by_x(layer.stride)}; use cpu.direct"
        if layer.kernel[1] not in OUTPUTS:
            known = f"{min(OUTPUTS)} to {max(OUTPUTS)}"
            return f"it takes kernels of {known} along y, got {by_x(layer.kernel)}; use cpu.direct_voxels"
        terms = shape[1] * layer.kernel[0] * layer.kernel[2]
        if terms > _MOST_TERMS:
            return (
                f"it is for few input channels: at most {_MOST_TERMS} times kernel voxels along z and x, got {terms}; "
                "use cpu.winograd"
            )
        return None

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """The most rows to a tile that the output can fill, and fewer; larger outputs are streamed.

        On a Zen 4 core that made no difference at 3 MB; it was 1.4 times as fast at 16 MB and 1.5 times at 50 MB.
        """
        out, known = layer.output_shape(shape), OUTPUTS[layer.kernel[1]]
        enough = min((m for m in known if m * layer.dilation[1] >= out[3]), default=known[-1])
        out_bytes = 4 * math.prod(out)
        stream = out_bytes > _STREAMED_BYTES
        found = [{"outputs": m, "stream": stream} for m in reversed(known) if m <= enough]
        return found if out_bytes > _ALWAYS_BYTES else [*found, found[0] | {"stream": not stream}]

    def memory(self, layer: Conv, shape: Shape, config: Config, threads: int) -> Memory:
        """Bias and transformed kernels; of every thread the points of a tile, and the products of a block."""
        self._check(layer, shape, config)
        tiling = _tiling(layer, shape, config["outputs"], config["stream"], threads)
        return Memory(tiling.resident_bytes, tiling.workspace_bytes)

    def cost(self, layer: Conv, shape: Shape, config: Config) -> Cost:
        """Products and transforms, in idle lanes too; input, output and kernels once."""
        t = _tiling(layer, shape, config["outputs"], config["stream"], 1)
        batch, _, z, _, x = out = layer.output_shape(shape)
        columns = batch * z * t.tiles * _up(x, winograd_voxels.BLOCK_WIDTH)
        pairs = t.points // 2 - 1
        each = out[1] * (2 * t.points * t.terms + 2 * pairs + 2 * pairs * t.outputs)
        each += shape[1] * layer.kernel[0] * _INPUT_FLOP[t.points]
        return Cost(float(columns * each), 4.0 * (math.prod(shape) + math.prod(out) + out[1] * t.points * t.terms))

    def error(self, layer: Conv, shape: Shape, config: Config) -> float:
        """Relative L2 error, as on an input and weights of independent normal numbers.

        Measured: every form with 1 to 64 products to a sum; from 6.5e-8 of F(2, 3) with 1 to 7.6e-7 of F(2, 7) with 64;
        but for the former, to within 15 %.
        """
        terms = shape[1] * layer.kernel[0] * layer.kernel[2]
        return 1e-8 * math.sqrt(36 + 3 * terms) * ERROR_GROWTH[config["outputs"], layer.kernel[1]]

    def prepare(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator for these weights; `Unsupported` where the config does not fit the layer."""
        self._check(layer, shape, config)
        for name, expected in layer.weight_shapes(shape[1]).items():
            if weights[name].shape != expected:
                raise InvalidShape(f"{name} must be {by_x(expected)}, got {by_x(weights[name].shape)}")
        return _WinogradVoxels(self, layer, weights, shape, config, threads)

    def _check(self, layer: Conv, shape: Shape, config: Config) -> None:
        self.refuse(layer, shape)
        known = OUTPUTS[layer.kernel[1]]
        if config.get("outputs") not in known or not isinstance(config.get("stream"), bool):
            raise Unsupported(
                f"a config of {self.name} has outputs ({' or '.join(map(str, known))}, with a kernel of "
                f"{layer.kernel[1]} along y) and stream, true or false; got {config_key(config)}; see configs()"
            )


register(CpuWinogradVoxels())
