"""`cpu.torch`: PyTorch's convolution (oneDNN), where PyTorch is installed; imported when the first one is prepared.

What a config sets:

``format``
    Layout that weights are kept in and the input is brought to: ``contiguous`` or ``channels_last_3d``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from znni.layers import Activation, Conv, Shape
from znni.primitives.base import Config, Primitive, Weights, register
from znni.primitives.foreign import ForeignConv, ForeignOperator


class _Torch(ForeignOperator):
    """Keeps the weights in the format of the config."""

    def __init__(self, primitive: Primitive, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int):
        import torch

        super().__init__(primitive, layer, shape, config, threads)
        last = config["format"] == "channels_last_3d"
        self._format = torch.channels_last_3d if last else torch.contiguous_format
        self._weight = torch.from_numpy(weights["weight"].copy()).contiguous(memory_format=self._format)
        self._bias = torch.from_numpy(weights["bias"].copy())
        self._activate = _activation(layer.activation)

    def _call(self, x: np.ndarray, out: np.ndarray) -> None:
        import torch

        if torch.get_num_threads() != self.threads:  # one number for the whole process
            torch.set_num_threads(self.threads)
        layer = self.layer
        with torch.inference_mode():
            source = torch.from_numpy(x).contiguous(memory_format=self._format)
            made = torch.conv3d(source, self._weight, self._bias, layer.stride, layer.padding, layer.dilation)
            torch.from_numpy(out).copy_(self._activate(made))


def _activation(activation: Activation) -> Callable:
    """The activation in place, of a tensor that it gives back."""
    import torch

    a, b = activation.a, activation.b
    return {
        "linear": lambda y: y,
        "relu": lambda y: y.relu_(),
        "leaky_relu": lambda y: torch.nn.functional.leaky_relu_(y, a),
        "elu": lambda y: torch.nn.functional.elu_(y, a),
        "tanh": lambda y: y.mul_(b).tanh_().mul_(a),
        "sigmoid": lambda y: y.sigmoid_(),
        "clip": lambda y: y.clamp_(a, b),
    }[activation.name]


class CpuTorch(ForeignConv):
    """PyTorch's conv3d on contiguous or channels-last tensors."""

    name = "cpu.torch"
    library = "torch"
    counted = (1, 3, 2)
    fixed_bytes = 4 << 20

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """Both formats."""
        return [{"format": "contiguous"}, {"format": "channels_last_3d"}]

    def _error_of_a_term(self, config: Config) -> float:
        """Contiguous, 1.0e-6 was seen at 3^3, 2.2e-6 at 5^3 and 3.7e-6 at 7^3."""
        return 2.25e-8 if config["format"] == "contiguous" else super()._error_of_a_term(config)

    def _prepared(self, layer: Conv, weights: Weights, shape: Shape, config: Config, threads: int) -> _Torch:
        return _Torch(self, layer, weights, shape, config, threads)


_torch = CpuTorch()
if _torch.is_installed:
    register(_torch)
