"""The functional face: one convolution, by whichever primitive is fastest here."""

from __future__ import annotations

import numpy as np

from znni.arena import aligned_empty
from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv, by_x, triple
from znni.machine import this_machine
from znni.predict import Predictor
from znni.primitives import candidates, get


def conv3d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] = 0,
    dilation: int | tuple[int, int, int] = 1,
    activation: str | tuple | Activation | None = None,
    primitive: str = "auto",
    threads: int | None = None,
) -> np.ndarray:
    """Cross-correlate `x` with `weight`, add `bias`, apply `activation`.

    Parameters
    ----------
    x : array of (batch, in_channels, z, y, x)
        Taken as float32.
    weight : array of (out_channels, in_channels, kz, ky, kx)
    bias : array of (out_channels,), optional
    stride, padding, dilation : int or (z, y, x)
    activation : str, tuple or Activation, optional
        ``relu``, ``leaky_relu``, ``elu``, ``tanh``, ``sigmoid``, or ``(name, a[, b])`` (`znni.layers.Activation`).
    primitive : str
        ``"auto"`` takes what the store knows to be fastest on this machine, else the cost model's guess; a name
        (``cpu.direct``, ``cpu.fft_tiled``, ...) takes that one at its best-guess config.
    threads : int, optional
        By default as many as this process may use cores.

    Returns
    -------
    ndarray of float32, (batch, out_channels, z, y, x)

    Raises
    ------
    InvalidShape
        Where shapes do not fit each other.
    Unsupported
        Where no primitive, or not the one named, computes this.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    if x.ndim != 5 or weight.ndim != 5 or x.shape[1] != weight.shape[1]:
        raise InvalidShape(
            "conv3d takes x of (batch, in, z, y, x) and weight of (out, in, kz, ky, kx), "
            f"got {by_x(x.shape)} and {by_x(weight.shape)}"
        )
    out_channels = weight.shape[0]
    bias = np.zeros(out_channels, np.float32) if bias is None else np.ascontiguousarray(bias, dtype=np.float32)
    if bias.shape != (out_channels,):
        raise InvalidShape(f"conv3d takes one bias per output channel ({out_channels}), got {by_x(bias.shape)}")
    layer = Conv(
        out_channels,
        weight.shape[2:],
        triple(stride, "stride"),
        triple(padding, "padding", least=0),
        triple(dilation, "dilation"),
        Activation.of(activation),
    )
    out = np.empty(layer.output_shape(x.shape), np.float32)
    threads = threads or this_machine().cores
    if primitive == "auto":
        chosen, config = _fastest_known(layer, x.shape, threads)
    else:
        chosen = get(primitive)
        chosen.refuse(layer, x.shape)
        config = chosen.configs(layer, x.shape)[0]
    operator = chosen.prepare(layer, {"weight": weight, "bias": bias}, x.shape, config, threads)
    operator(x, out, aligned_empty(operator.memory.host_workspace_bytes))
    return out


def _fastest_known(layer: Conv, shape: tuple, threads: int):
    from znni.store import measured_here

    predictor = Predictor(threads, measured=measured_here(layer, threads))
    options = [
        (predictor.seconds(p, layer, shape, config)[0], p.name, config)
        for p in candidates(layer, shape)
        for config in p.configs(layer, shape)
    ]
    if not options:
        raise Unsupported(f"no primitive here computes {layer} on {by_x(shape)}")
    _, name, config = min(options, key=lambda option: option[:2])
    return get(name), config
