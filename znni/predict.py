"""What a primitive will take on a layer: measured, else scaled from a kindred measurement, else the cost model's guess."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from znni.arena import aligned
from znni.gpu.ceilings import DeviceCeilings
from znni.gpu.device import device_aligned
from znni.layers import Conv, ConvMaxPoolFragments, Layer, Shape
from znni.layouts import DEVICE, PLAIN, layouts_of, tensor_bytes, with_layouts
from znni.primitives import candidates, get, registered
from znni.primitives.base import Config, Cost, Primitive, config_key
from znni.solve import Choice, Option, undominated

#: What a guess assumes of a machine whose ceilings are not known: one core of a modern desktop.
ASSUMED_FLOP_PER_S = 5e10
ASSUMED_BYTES_PER_S = 1e10


#: What a side that is plain costs a primitive that could take or give it blocked, in passes over it: on two Zen 4 cores 2 for
#: cpu.direct_mpf and cpu.mpf, 3 for cpu.fft_tiled.
_TRANSPOSITION = 2.0


@dataclass(frozen=True)
class Measured:
    """One measured operator: what was run, and the median of its seconds."""

    layer: Layer
    shape: Shape
    primitive: str
    config: Config
    seconds: float


class Predictor:
    """Predicts seconds of operators on one machine at one thread count.

    Parameters
    ----------
    threads : int
    flop_per_s, bytes_per_s : float
        The machine's measured ceilings at that thread count.
    measured : iterable of Measured
        What the store knows at that thread count.
    foreign : bool
        Whether other libraries' primitives may be used, which a plan that is to travel should not.
    gpu : DeviceCeilings, optional
        Of the open device, whose primitives are then options too.
    only : str, optional
        "gpu": nothing but primitives on the device, and copies; "stream": those that stream from host memory, too, and the
        CPU's for all that is no convolution. By default all.
    """

    def __init__(
        self,
        threads: int,
        flop_per_s: float = ASSUMED_FLOP_PER_S,
        bytes_per_s: float = ASSUMED_BYTES_PER_S,
        measured: Iterable[Measured] = (),
        foreign: bool = False,
        gpu: DeviceCeilings | None = None,
        only: str | None = None,
    ):
        self.threads, self.flop_per_s, self.bytes_per_s, self.foreign = threads, flop_per_s, bytes_per_s, foreign
        self.gpu, self.only = gpu, only
        self._options: dict[tuple, list[Option]] = {}
        self._best: dict[tuple, list[Option]] = {}
        self._exact: dict[tuple, float] = {}
        self._kindred: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
        known = registered()
        for row in measured:
            # another library's may have been installed when it was measured, or a GPU been open
            if row.primitive in known and (gpu or known[row.primitive].device == "cpu"):
                self.add(row)

    def add(self, row: Measured) -> None:
        """Take one more measurement into account."""
        self._options.clear()
        self._best.clear()
        model = self.model(get(row.primitive), row.layer, row.shape, row.config)
        size, ratio = _voxels(row.layer, row.shape), row.seconds / model
        key = config_key(row.config)
        self._exact[row.primitive, row.layer, row.shape, key] = row.seconds
        for kin in _kin(row.primitive, row.layer, row.shape, key):
            self._kindred[kin].append((size, ratio))

    def model(self, primitive: Primitive, layer: Layer, shape: Shape, config: Config) -> float:
        """The cost model's guess: arithmetic and traffic, each at the primitive's usual share of the ceiling."""
        cost = primitive.cost(layer, shape, config)
        of_flop, of_bytes = primitive.efficiency
        if primitive.device == "gpu":
            return self._gpu_model(cost, primitive, layer, shape, config)
        transposed = 0
        if len(primitive.layouts) > 1:
            sides = zip((shape, layer.output_shape(shape)), layouts_of(config), strict=True)
            transposed = sum(tensor_bytes(own) for own, layout in sides if layout == PLAIN and own[1] > 1)
        moved_s = cost.moved_bytes / of_bytes + _TRANSPOSITION * transposed
        return cost.flop / (of_flop * self.flop_per_s) + moved_s / self.bytes_per_s

    def _gpu_model(self, cost: Cost, primitive: Primitive, layer: Layer, shape: Shape, config: Config) -> float:
        """Copies to and from the host, where a side lies there, go on while others compute."""
        of_flop, of_bytes = primitive.efficiency
        takes, gives = layouts_of(config)
        up_s = tensor_bytes(shape) / self.gpu.upload_bytes_per_s if takes != DEVICE else 0.0
        down_s = tensor_bytes(layer.output_shape(shape)) / self.gpu.download_bytes_per_s if gives != DEVICE else 0.0
        work_s = cost.flop / (of_flop * self.gpu.flop_per_s) + cost.moved_bytes / (of_bytes * self.gpu.bytes_per_s)
        return max(work_s, up_s, down_s)

    def seconds(self, primitive: Primitive, layer: Layer, shape: Shape, config: Config) -> tuple[float, str]:
        """Predicted seconds and their basis: "measured", "scaled" or "model"."""
        key = config_key(config)
        exact = self._exact.get((primitive.name, layer, shape, key))
        if exact is not None:
            return exact, "measured"
        guess = self.model(primitive, layer, shape, config)
        voxels = _voxels(layer, shape)
        for depth, kin in enumerate(_kin(primitive.name, layer, shape, key)):
            if kin in self._kindred:
                _, ratio = min(self._kindred[kin], key=lambda size_ratio: abs(math.log(size_ratio[0] / voxels)))
                return guess * ratio, "scaled" if depth < 2 else "model"
        return guess, "model"

    def options(self, layer: Layer, shape: Shape) -> list[Option]:
        """Every candidate for one call of `layer` on an input of `shape`, in each of its layouts, with its predicted time and
        bytes; `step_bytes` is the workspace alone."""
        key = (layer, shape)
        if key not in self._options:
            self._options[key] = [
                self._option(primitive, layer, shape, with_layouts(config, *layouts))
                for device in (("cpu",) if self.gpu is None else ("cpu", "gpu"))
                for primitive in candidates(layer, shape, device)
                if self._may_be(primitive, layer)
                for config in primitive.configs(layer, shape)
                for layouts in primitive.layouts
            ]
        return self._options[key]

    def _may_be(self, primitive: Primitive, layer: Layer) -> bool:
        if primitive.foreign and not self.foreign:
            return False
        if self.only is None:
            return True
        if primitive.device == "gpu":
            return self.only == "stream" or primitive.layouts != ((PLAIN, PLAIN),)
        return self.only == "stream" and not isinstance(layer, Conv | ConvMaxPoolFragments)

    def best_options(self, layer: Layer, shape: Shape, most_error: float) -> list[Option]:
        """The candidates whose error is at most `most_error` and that no other beats in seconds and bytes."""
        key = (layer, shape, most_error)
        if key not in self._best:
            self._best[key] = undominated([o for o in self.options(layer, shape) if o.error <= most_error])
        return self._best[key]

    def _option(self, primitive: Primitive, layer: Layer, shape: Shape, config: Config) -> Option:
        memory = primitive.memory(layer, shape, config, self.threads)
        seconds, basis = self.seconds(primitive, layer, shape, config)
        takes, gives = layouts_of(config)
        workspace_bytes = aligned(memory.host_workspace_bytes)
        device_workspace_bytes = device_aligned(memory.device_workspace_bytes)
        return Option(
            Choice(primitive.name, config),
            seconds,
            workspace_bytes,
            memory.host_resident_bytes,
            takes,
            gives,
            basis,
            workspace_bytes,
            primitive.error(layer, shape, config),
            device_workspace_bytes,
            device_aligned(memory.device_resident_bytes),
            device_workspace_bytes,
        )


def _voxels(layer: Layer, shape: Shape) -> float:
    out = layer.output_shape(shape)
    return float(out[0]) * out[2] * out[3] * out[4]


def _kin(primitive: str, layer: Layer, shape: Shape, key: str) -> list[tuple]:
    """Classes of like measurements, closest first: same layer, spatial size and config at another batch; same layer and
    config; same layer. Other layers say nothing: correcting one primitive by them, and not its rivals, misleads."""
    return [
        (primitive, layer, shape[1:], key),
        (primitive, layer, shape[1], key),
        (primitive, layer, shape[1]),
    ]
