"""`gpu.stream`: a convolution whose input and output lie in host RAM, by sub-layers that fit on the device.

Another primitive computes each sub-layer. The input of the next one is copied in, and the result of the last one out, while
this one is computed; so a device reaches layers of any size, as fast as the link to the host and its own arithmetic allow
(Zlateski, Lee & Seung, "ZNNi", SC'16). What a config sets:

``conv``, ``with``
    The primitive that convolves a sub-layer, and its config.
``batch``, ``out``, ``in``, ``z``
    Into how many pieces the layer is cut: batch elements, output channels, input channels, and planes of the result (whose
    inputs overlap by the kernel's extent). Where input channels are cut, the device adds up partial sums.
``weights``
    ``resident``: those of all sub-layers stay on the device, as their operators keep them; ``streamed``: they stay on the host,
    and those of the next sub-layer are copied in while one is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from math import prod

import numpy as np

from znni.errors import Unsupported
from znni.gpu.cuts import copied_bytes, cuts
from znni.gpu.device import DeviceArray, Event, Stream
from znni.gpu.operator import GpuOperator, GpuPrimitive, carve, carved_bytes
from znni.gpu.sublayers import Cut, Run, Step, Sublayers
from znni.layers import LINEAR, Conv, Shape
from znni.layouts import DEVICE, PLAIN, with_layouts
from znni.primitives.base import Config, Cost, Memory, Operator, Primitive, Weights, config_key, get, register, unfit

#: Primitives that may convolve sub-layers, and those worth timing where a kernel has few taps, and many.
_INNER = ("gpu.direct", "gpu.cudnn", "gpu.fft_tiled", "gpu.fft_pruned", "gpu.fft")
_FOR_FEW = ("gpu.direct", "gpu.cudnn", "gpu.fft_tiled")
_FOR_MANY = ("gpu.fft_tiled", "gpu.fft_pruned", "gpu.direct")
_FEW_TAPS = 64
#: Part of the memory meant for a cut that its inputs and results may fill where spectra have to go beside them.
_FILLED = 1 / 3
_WEIGHTS = ("resident", "streamed")
_PIECES = ("batch", "out", "in", "z")
#: 2D copies take no pitch beyond this.
_MOST_PITCH_BYTES = 2**31 - 1
_THREADS, _EACH = 256, 4


class _Space:
    """Where a call's buffers lie in its workspace, and weights in what stays; `memory` is that and no more."""

    def __init__(self, layer: Conv, shape: Shape, config: Config, threads: int):
        self.sub = sub = Sublayers(layer, shape, Cut(*(config[key] for key in _PIECES)))
        self.inner, self.config = get(config["conv"]), with_layouts(config["with"], DEVICE, DEVICE)
        memory_of = {key: self.inner.memory(*key, self.config, threads) for key in _pairs(sub)}
        own = [memory_of[sub.conv(out), sub.x_shape(into)] for out, into in sub.pairs]
        #: What each pair's operator keeps on the device.
        self.kept = [memory.device_resident_bytes for memory in own]
        self.streamed = config["weights"] == "streamed"
        self.resident_sizes = [max(self.kept)] * min(2, len(own)) if self.streamed else self.kept
        self.workspace_sizes = [*sub.buffer_bytes, max(memory.device_workspace_bytes for memory in own)]
        self.memory = Memory(
            host_resident_bytes=sum(memory.host_resident_bytes for memory in own)
            + (carved_bytes(self.kept) if self.streamed else 0),
            device_resident_bytes=carved_bytes(self.resident_sizes),
            device_workspace_bytes=carved_bytes(self.workspace_sizes),
        )


class StreamOperator(GpuOperator):
    """Holds an operator for each pair of pieces of output and input channels, in the order of their turns.

    Where weights are streamed, two operators at a time have theirs on the device: what each keeps there is made once, copied
    to the host, and from then on copied to where it was made.
    """

    def __init__(self, primitive: Primitive, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int):
        super().__init__(primitive, layer, shape, config, threads)
        self._space = space = _Space(layer, shape, config, threads)
        self._sub = sub = space.sub
        self._operators = []
        for out, into in sub.pairs:
            rows, columns = slice(*sub.outs[out]), slice(*sub.ins[into])
            bias = (
                weights["bias"][rows] if into == 0 else np.zeros(rows.stop - rows.start, np.float32)
            )  # it is added once
            own = {"weight": weights["weight"][rows, columns], "bias": bias}
            self._operators.append(space.inner.prepare(sub.conv(out), own, sub.x_shape(into), space.config, threads))
        nbytes = carved_bytes(space.kept) if space.streamed else 0
        self._images = self.device.pinned(nbytes) if nbytes else np.empty(0, np.uint8)
        self._slots: list[DeviceArray] = []
        if len(sub.ins) > 1:
            self._add, self._finish = (
                self.device.kernel("accumulate.cu", "accumulate", {"ACTIVATION": code})
                for code in (LINEAR.code, layer.activation.code)
            )

    @property
    def resident_arrays(self) -> tuple[np.ndarray, ...]:
        """What stays on the host: weights that are streamed, and what the pairs' operators hold."""
        return (self._images, *(array for operator in self._operators for array in operator.resident_arrays))

    def fill(self, resident: DeviceArray, workspace: DeviceArray) -> None:
        """Weights of all pairs, on the device or, as they would lie there, on the host."""
        self._slots = carve(resident, self._space.resident_sizes)
        space = self._carved(workspace)[-1]
        for turn, operator in enumerate(self._operators):
            slot = self._slots[turn % len(self._slots)]
            operator.place(slot, space)
            if self._space.streamed:
                image = self._image(turn)
                self.device.compute.copy(image, slot[: image.nbytes])

    def _image(self, turn: int) -> np.ndarray:
        """What the operator of that turn keeps on the device, on the host."""
        start = carved_bytes(self._space.kept[:turn])
        return self._images[start : start + self._space.kept[turn]]

    def release(self) -> None:
        """Give back what libraries hold for it; it cannot be called any more."""
        super().release()
        for operator in self._operators:
            operator.release()

    def _carved(self, workspace: DeviceArray) -> tuple[list[DeviceArray], list[DeviceArray], DeviceArray, DeviceArray]:
        """Buffers of inputs, of results, of partial sums where there are any, and the operators' workspace."""
        pieces, inputs = carve(workspace, self._space.workspace_sizes), self._sub.x_buffers
        return pieces[:inputs], pieces[inputs:][: self._sub.result_buffers], pieces[-2], pieces[-1]

    def compute(self, x: np.ndarray, out: np.ndarray, workspace: DeviceArray) -> None:
        """Step after step: what it needs is copied in on `uploads`, its result out on `downloads`, and `compute` works between.

        A step waits for what was copied in for it, and for its result's buffer to be copied out; a copy in for the last step
        that read the buffer; a copy out for the last step of the result.
        """
        sub, streamed, host = self._sub, self._space.streamed, x.reshape(-1)
        compute, uploads, downloads = self.device.compute, self.device.uploads, self.device.downloads
        xs, results, sums, space = self._carved(workspace)
        read_x, read_slot, sent = [None] * len(xs), [None] * len(self._slots), [None] * len(results)
        in_slot = [None] * len(self._slots)

        def bring(step: Step) -> Event | None:
            """Copy in what is not there yet; the event of that."""
            slot = step.turn % len(self._slots)
            weights = streamed and in_slot[slot] != step.turn
            if step.upload:
                _wait(uploads, read_x[step.buffer])
                for run in sub.x_runs(step):
                    _copy_in(uploads, xs[step.buffer], host, run)
            if weights:
                _wait(uploads, read_slot[slot])
                image, in_slot[slot] = self._image(step.turn), step.turn
                uploads.copy(self._slots[slot][: image.nbytes], image)
            return uploads.record() if step.upload or weights else None

        _wait(uploads, compute.record())  # no earlier than this call's turn
        steps = sub.steps()
        arrived = bring(steps[0])
        for step, following in zip_longest(steps, steps[1:]):
            _wait(compute, arrived)
            if step.first:
                _wait(compute, sent[step.result])
            shape = sub.result_shape(step.out)
            result = results[step.result].view(np.float32, shape)
            part = result if step.first else sums.view(np.float32, shape)
            self._operators[step.turn](xs[step.buffer].view(np.float32, sub.x_shape(step.into)), part, space)
            read_x[step.buffer] = read_slot[step.turn % len(self._slots)] = compute.record()
            if not step.first:
                self._accumulate(result, part, step.last)
            # before the copy out, which would hold it up where the host's arrays are not page-locked
            arrived = bring(following) if following else None
            if step.last:
                _wait(downloads, compute.record())
                for run in sub.result_runs(step):
                    _copy_out(downloads, out.reshape(-1), results[step.result], run)
                sent[step.result] = downloads.record()
        _wait(compute, sent[steps[-1].result])

    def _accumulate(self, result: DeviceArray, part: DeviceArray, last: bool) -> None:
        """Add a partial sum; the last one is followed by the activation."""
        activation = self.layer.activation
        self.device.compute.launch(
            self._finish if last else self._add,
            (-(-result.size // (_THREADS * _EACH)), 1, 1),
            (_THREADS, 1, 1),
            [result, part, np.int64(result.size), np.float32(activation.a), np.float32(activation.b)],
        )


def _wait(stream: Stream, event: Event | None) -> None:
    if event is not None:
        stream.wait(event)


def _copy_in(stream: Stream, buffer: DeviceArray, host: np.ndarray, run: Run) -> None:
    for device, lines, rows in _pitched(buffer, host, run):
        if rows == 1:
            stream.copy(device, lines)
        else:
            stream.copy_rows(device, 4 * run.length, lines, 4 * run.pitch, 4 * run.length, rows)


def _copy_out(stream: Stream, host: np.ndarray, buffer: DeviceArray, run: Run) -> None:
    for device, lines, rows in _pitched(buffer, host, run):
        if rows == 1:
            stream.copy(lines, device)
        else:
            stream.copy_rows(lines, 4 * run.pitch, device, 4 * run.length, 4 * run.length, rows)


def _pitched(buffer: DeviceArray, host: np.ndarray, run: Run) -> Iterator[tuple[DeviceArray, np.ndarray, int]]:
    """Both sides of a run, and its rows: all at once, or, where they are too far apart for that, one by one."""
    together = run.rows if 4 * run.pitch <= _MOST_PITCH_BYTES else 1
    for row in range(0, run.rows, together):
        start = run.host + row * run.pitch
        device = buffer.view(np.float32, (together * run.length,), 4 * (run.device + row * run.length))
        yield device, host[start : start + (together - 1) * run.pitch + run.length], together


class GpuStream(GpuPrimitive):
    """A convolution from host RAM to host RAM; whatever the sub-layers' primitive takes."""

    name, kind = "gpu.stream", "conv"
    layouts = ((PLAIN, PLAIN),)
    #: Its bytes are those over the link to the host, a small fraction of what device memory moves.
    efficiency = (0.5, 0.01)

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None where another primitive on the device supports it."""
        if reason := unfit(layer, shape):
            return reason
        reasons = {name: get(name).supports(layer, shape) for name in self._inner(layer)}
        if None in reasons.values():
            return None
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

    def _inner(self, layer: Conv) -> tuple[str, ...]:
        """Primitives worth trying on sub-layers, best guess first."""
        return _FOR_FEW if prod(layer.kernel) <= _FEW_TAPS else _FOR_MANY

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """From no cut to pieces of a small share of the layer, each by the first config that keeps to it of some primitives."""
        found = []
        for name in self._inner(layer):
            for option in cuts(layer, shape, _FILLED if "fft" in name else 1.0):
                sub, cut = Sublayers(layer, shape, option.cut), option.cut
                if any(get(name).supports(*pair) for pair in _pairs(sub)):
                    continue
                pieces = dict(zip(_PIECES, (cut.batch, cut.out, cut.into, cut.z), strict=True))
                weights = _WEIGHTS if option.resident and len(sub.pairs) > 1 else _WEIGHTS[not option.resident :][:1]
                own = [
                    {"conv": name, "with": dict(config), **pieces, "weights": where}
                    for where in weights
                    for config in get(name).configs(sub.conv(0), sub.x_shape(0), machine)
                ]
                found.append(_modest(layer, shape, own, option.most_bytes))
        return found

    def memory(self, layer: Conv, shape: Shape, config: Config, threads: int) -> Memory:
        """On the device two inputs, two results and a partial sum of sub-layers, and what their operators take."""
        self._check(layer, shape, config)
        return _Space(layer, shape, config, threads).memory

    def cost(self, layer: Conv, shape: Shape, config: Config) -> Cost:
        """All sub-layers' arithmetic; the bytes are those that go over the link between host and device."""
        self._check(layer, shape, config)
        sub = Sublayers(layer, shape, Cut(*(config[key] for key in _PIECES)))
        inner, own = get(config["conv"]), with_layouts(config["with"], DEVICE, DEVICE)
        rounds = len(sub.batches) * len(sub.planes)
        flop = rounds * sum(
            inner.cost(conv, x_shape, own).flop * count for (conv, x_shape), count in _pairs(sub).items()
        )
        weights = 4 * prod(layer.kernel) * shape[1] * layer.out_channels if config["weights"] == "streamed" else 0
        least = 4 * (prod(shape) + prod(sub.out_shape))
        return Cost(float(flop), float(max(least, sum(copied_bytes(sub))) + weights * rounds))

    def error(self, layer: Conv, shape: Shape, config: Config) -> float:
        """That of a sub-layer; adding up a few partial sums adds next to nothing."""
        sub = Sublayers(layer, shape, Cut(*(config[key] for key in _PIECES)))
        return get(config["conv"]).error(sub.conv(0), sub.x_shape(0), config["with"])

    def tolerance_of(self, config: Config) -> float:
        """That of the primitive which convolves."""
        return get(config["conv"]).tolerance_of(config["with"])

    def prepare(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> Operator:
        """An operator that holds those of the sub-layers."""
        self._check(layer, shape, config)
        return StreamOperator(self, layer, weights, shape, config, threads)

    def _check(self, layer: Conv, shape: Shape, config: Config) -> None:
        self.refuse(layer, shape)
        counts = [config.get(key) for key in _PIECES]
        if (
            config.get("conv") not in _INNER
            or not isinstance(config.get("with"), dict)
            or not all(isinstance(count, int) and count > 0 for count in counts)
            or config.get("weights") not in _WEIGHTS
        ):
            raise Unsupported(
                f"a config of {self.name} has a conv of {', '.join(_INNER)}, its config in with, a number of pieces for each "
                f"of {', '.join(_PIECES)}, and weights {' or '.join(_WEIGHTS)}, got {config_key(config)}; see configs()"
            )


def _modest(layer: Conv, shape: Shape, configs: Sequence[Config], most_bytes: float) -> Config:
    """The first config that takes so many bytes of the device at most, else the one that takes least."""
    needs = []
    for config in configs:
        memory = _Space(layer, shape, config, 1).memory
        needs.append(memory.device_resident_bytes + memory.device_workspace_bytes)
        if needs[-1] <= most_bytes:
            return config
    return configs[needs.index(min(needs))]


def _pairs(sub: Sublayers) -> dict[tuple[Conv, Shape], int]:
    """Layers and input shapes of sub-layers, as channels go, with how many there are of each."""
    found: dict[tuple[Conv, Shape], int] = {}
    for out, into in sub.pairs:
        key = (sub.conv(out), sub.x_shape(into))
        found[key] = found.get(key, 0) + 1
    return found


STREAM = register(GpuStream())
