"""The functional face: one convolution, by whichever primitive is fastest here."""

from __future__ import annotations

import numpy as np

from znni.layers import Activation
from znni.prepared_conv import AUTO, prepare_conv3d


def conv3d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] | str = 0,
    dilation: int | tuple[int, int, int] = 1,
    activation: str | tuple | Activation | None = None,
    primitive: str = AUTO,
    threads: int | None = None,
) -> np.ndarray:
    """Cross-correlate `x` with `weight`, add `bias`, apply `activation`.

    Each call chooses, packs the weights and takes a workspace anew; `znni.prepare_conv3d` does so once for many calls.

    Parameters
    ----------
    x : array of (batch, in_channels, z, y, x)
        Taken as float32.
    weight : array of (out_channels, in_channels, kz, ky, kx)
    bias : array of (out_channels,), optional
    stride, dilation : int or (z, y, x)
    padding : int, (z, y, x), ``"valid"`` or ``"same"``
    activation : str, tuple or Activation, optional
        ``relu``, ``leaky_relu``, ``elu``, ``tanh``, ``sigmoid``, or ``(name, a[, b])`` (`znni.layers.Activation`).
    primitive : str
        ``"auto"`` takes what the store knows to be fastest on this machine, else the cost model's guess;
        ``"fastest"`` times every candidate first; a name (``cpu.direct``, ``cpu.fft_tiled``, ...) takes that one at its
        best-guess config.
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
    operator = prepare_conv3d(
        weight,
        bias,
        x.shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        primitive=primitive,
        threads=threads,
    )
    return operator(x)
