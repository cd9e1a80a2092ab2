"""A convolution whose weights are kept: the primitive is chosen once, weights are packed once, calls only compute."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from znni.arena import aligned_empty
from znni.errors import InvalidShape, MemoryLimit, Unsupported
from znni.layers import ZEROS, Activation, Conv, Shape, Triple, by_x, triple
from znni.layouts import PLAIN, layouts_of
from znni.machine import this_machine
from znni.predict import Predictor
from znni.primitives import Config, Memory, Operator, Primitive, candidates, get

AUTO, FASTEST = "auto", "fastest"


@dataclass(frozen=True)
class Option:
    """One way to compute the layer, and what its operator will hold."""

    primitive: Primitive
    config: Config
    memory: Memory

    @classmethod
    def of(cls, primitive: Primitive, layer: Conv, shape: Shape, config: Config, threads: int) -> Option:
        """The option of `primitive` with `config`."""
        return cls(primitive, config, primitive.memory(layer, shape, config, threads))

    @property
    def held_bytes(self) -> int:
        """Packed weights and workspace together."""
        return self.memory.host_resident_bytes + self.memory.host_workspace_bytes


class PreparedConv3d:
    """A convolution with its weights packed and its workspace at hand; made by `prepare_conv3d`, called as ``op(x)``.

    Calls from several threads are safe: they share one workspace, so they wait for each other.

    Attributes
    ----------
    primitive : str
        What computes it.
    config : dict
        The primitive's settings.
    memory : Memory
        Bytes that are held, beside the weights as they were given.
    layer : Conv
    input_shape, output_shape : Shape
        (batch, channels, z, y, x).
    threads : int
    """

    def __init__(self, operator: Operator):
        self.primitive, self.config, self.memory = operator.primitive.name, dict(operator.config), operator.memory
        self.layer, self.threads = operator.layer, operator.threads
        self.input_shape, self.output_shape = operator.shape, operator.out_shape
        self._operator = operator
        self._workspace = aligned_empty(operator.memory.host_workspace_bytes)
        self._turn = threading.Lock()

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The convolution of `x`.

        Parameters
        ----------
        x : ndarray of `input_shape`
            Used as it is where it is float32 and C-contiguous, else copied.
        out : ndarray of float32, C-contiguous, of `output_shape`, optional
            Where to write the result; made anew by default.

        Returns
        -------
        ndarray of float32, of `output_shape`
            `out`, where it was given.

        Raises
        ------
        InvalidShape
            Where `x` or `out` is of another shape, or `out` cannot be written as it is.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if x.shape != self.input_shape:
            raise InvalidShape(
                f"this convolution was prepared for an input of {by_x(self.input_shape)}, got {by_x(x.shape)}; "
                "prepare another for other shapes"
            )
        if out is None:
            out = np.empty(self.output_shape, np.float32)
        else:
            _check_result(out, self.output_shape, x)
        with self._turn:
            self._operator(x, out, self._workspace)
        return out

    def __repr__(self) -> str:
        return (
            f"<PreparedConv3d {by_x(self.input_shape)} -> {by_x(self.output_shape)} by {self.primitive} {self.config}, "
            f"{self.threads} threads>"
        )


def prepare_conv3d(
    weight: np.ndarray,
    bias: np.ndarray | None,
    input_shape: Sequence[int],
    *,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] | str = 0,
    dilation: int | tuple[int, int, int] = 1,
    activation: str | tuple | Activation | None = None,
    primitive: str = AUTO,
    config: Config | None = None,
    threads: int | None = None,
    memory_bytes: int | None = None,
) -> PreparedConv3d:
    """Prepare the cross-correlation with `weight`, plus `bias`, then `activation`, for inputs of one shape.

    Parameters
    ----------
    weight : array of (out_channels, in_channels, kz, ky, kx)
        Copied; later changes to it change nothing.
    bias : array of (out_channels,) or None
    input_shape : (batch, in_channels, z, y, x)
    stride, dilation : int or (z, y, x)
    padding : int, (z, y, x), ``"valid"`` (none) or ``"same"`` (at stride 1, the output is as large as the input)
    activation : str, tuple or Activation, optional
        ``relu``, ``leaky_relu``, ``elu``, ``tanh``, ``sigmoid``, or ``(name, a[, b])`` (`znni.layers.Activation`).
    primitive : str
        ``"auto"`` takes what the store of measurements knows to be fastest on this machine, else the cost model's
        guess. ``"fastest"`` times every candidate now, for seconds to minutes, as ``cudnn.benchmark`` does, and stores
        what it found, so that ``"auto"`` finds it from then on. A name (``cpu.direct``, ``cpu.fft_tiled``, ...) takes
        that one. Other libraries (``cpu.torch``, ``cpu.openvino``) are taken by name only.
    config : mapping, optional
        The settings of a primitive that is named; by default its own best guess that fits.
    threads : int, optional
        By default as many as this process may use cores.
    memory_bytes : int, optional
        The most that the operator may hold: packed weights and workspace, its input and output not counted.

    Returns
    -------
    PreparedConv3d
        Called as ``op(x, out=None)``.

    Raises
    ------
    InvalidShape
        Where shapes, padding or threads do not fit.
    Unsupported
        Where no primitive, or not the one named, computes this.
    MemoryLimit
        Where all need more than `memory_bytes`.

    Examples
    --------
    >>> op = prepare_conv3d(weight, bias, x.shape, padding="same", activation="relu", primitive="fastest")
    >>> y = op(x)
    """
    weight = np.array(weight, dtype=np.float32, order="C")
    shape = _shape(input_shape)
    if weight.ndim != 5 or shape[1] != weight.shape[1]:
        raise InvalidShape(
            "a convolution takes an input of (batch, in, z, y, x) and weights of (out, in, kz, ky, kx), "
            f"got {by_x(shape)} and {by_x(weight.shape)}"
        )
    bias = np.zeros(len(weight), np.float32) if bias is None else np.array(bias, dtype=np.float32, order="C")
    if bias.shape != weight.shape[:1]:
        raise InvalidShape(
            f"a convolution takes one bias per output channel ({len(weight)}), got an array of shape {bias.shape}"
        )
    layer = conv_layer(weight.shape, stride, padding, dilation, activation)
    layer.output_shape(shape)
    threads = this_machine().cores if threads is None else threads
    if threads < 1 or (memory_bytes is not None and memory_bytes < 0):
        raise InvalidShape(
            f"expected at least 1 thread, and at least 0 bytes, got {threads} threads and memory_bytes={memory_bytes}"
        )
    weights = {"weight": weight, "bias": bias}
    chosen = _chosen(layer, weights, shape, primitive, config, threads, memory_bytes)
    return PreparedConv3d(chosen.primitive.prepare(layer, weights, shape, chosen.config, threads))


def conv_layer(
    weight_shape: Sequence[int],
    stride: int | tuple[int, int, int],
    padding: int | tuple[int, int, int] | str,
    dilation: int | tuple[int, int, int],
    activation: str | tuple | Activation | None,
) -> Conv:
    """The layer that these arguments of `prepare_conv3d` describe."""
    kernel = triple(tuple(weight_shape[2:]), "the kernel's size")
    dilation = triple(dilation, "dilation")
    if isinstance(padding, str):
        padding = named_padding(padding, kernel, dilation)
    return Conv(
        weight_shape[0],
        kernel,
        triple(stride, "stride"),
        triple(padding, "padding", least=0),
        dilation,
        Activation.of(activation),
    )


def named_padding(name: str, kernel: Triple, dilation: Triple) -> Triple:
    """``"valid"`` or ``"same"`` in voxels at each end of an axis; `InvalidShape` for what is neither, or cannot be."""
    if name == "valid":
        return ZEROS
    if name != "same":
        raise InvalidShape(f"padding is 'same', 'valid', an integer or three (z, y, x), got {name!r}")
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    if any(r % 2 for r in reach):
        raise InvalidShape(
            f"padding 'same' needs a kernel that reaches equally far both ways, got {by_x(kernel)} with dilation "
            f"{by_x(dilation)}; pad the input yourself, or give the padding in numbers"
        )
    return tuple(r // 2 for r in reach)


def _shape(given: Sequence[int]) -> Shape:
    try:
        shape = tuple(int(n) for n in given)
    except (TypeError, ValueError):
        shape = ()
    if len(shape) != 5 or min(shape) < 1:
        raise InvalidShape(f"expected an input shape of (batch, channels, z, y, x), each at least 1, got {given!r}")
    return shape


def _check_result(out: np.ndarray, shape: Shape, x: np.ndarray) -> None:
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != np.float32:
        got = f"{by_x(out.shape)} of {out.dtype}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InvalidShape(f"out must be an array of {by_x(shape)} of float32, got {got}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise InvalidShape("out must be C-contiguous and writeable; leave it out to have one made")
    if np.may_share_memory(x, out):
        raise InvalidShape("out overlaps x; give another array, or leave it out to have one made")


def _chosen(
    layer: Conv,
    weights: Mapping[str, np.ndarray],
    shape: Shape,
    name: str,
    config: Config | None,
    threads: int,
    memory_bytes: int | None,
) -> Option:
    if name not in (AUTO, FASTEST):
        one = get(name)
        one.refuse(layer, shape)
        configs = one.configs(layer, shape) if config is None else [dict(config)]
        for given in configs:
            if layouts_of(given) != (PLAIN, PLAIN):
                raise Unsupported(f"arrays are plain here, got a config of {name} for {' -> '.join(layouts_of(given))}")
        options = [Option.of(one, layer, shape, given, threads) for given in configs]
        return _fitting(options, memory_bytes)[0]
    if config is not None:
        raise Unsupported(f"a config goes with a primitive's name, got config={config!r} with primitive={name!r}")
    found = [
        Option.of(one, layer, shape, given, threads)
        for one in candidates(layer, shape)
        if _is_candidate(one)
        for given in one.configs(layer, shape)
    ]
    if not found:
        raise Unsupported(f"no primitive here computes {layer} on {by_x(shape)}")
    options = _fitting(found, memory_bytes)
    if name == FASTEST:
        from znni.fastest import fastest

        return fastest(layer, weights, shape, options, threads, memory_bytes)
    from znni.store import measured_here

    predictor = Predictor(threads, measured=measured_here(layer, threads))
    return min(options, key=lambda option: predictor.seconds(option.primitive, layer, shape, option.config)[0])


def _is_candidate(primitive: Primitive) -> bool:
    return not primitive.foreign and (PLAIN, PLAIN) in primitive.layouts


def _fitting(options: Sequence[Option], memory_bytes: int | None) -> list[Option]:
    found = [option for option in options if memory_bytes is None or option.held_bytes <= memory_bytes]
    if not found:
        least = min(options, key=lambda option: option.held_bytes)
        raise MemoryLimit(
            f"nothing computes this within memory_bytes={memory_bytes:,}; {least.primitive.name} needs least, "
            f"{least.held_bytes:,} bytes; allow more, or cut the input into smaller ones"
        )
    return found
