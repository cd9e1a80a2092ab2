"""Transposed convolutions cut into a convolution and voxels spread from channels, against PyTorch's."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from znni.layers import ConvTranspose
from znni.lowering import lower, lowered_weights
from znni.nodes import Node

torch = pytest.importorskip("torch")

CASES = [
    ((1, 2, 2), (1, 2, 2), (0, 0, 0), (0, 0, 0)),
    ((1, 4, 4), (1, 2, 2), (0, 1, 1), (0, 0, 0)),
    ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    ((3, 5, 2), (1, 3, 4), (1, 0, 0), (0, 2, 3)),
    ((2, 3, 4), (3, 1, 2), (0, 1, 2), (2, 0, 1)),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "extra"), CASES)
def test_equals_pytorch(kernel, stride, padding, extra):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 5, 3), np.float32)
    weights = {"weight": rng.standard_normal((3, 5, *kernel), np.float32), "bias": rng.standard_normal(5, np.float32)}
    high = tuple(p - e for p, e in zip(padding, extra, strict=True))
    layer = ConvTranspose(5, kernel, stride, padding, high)
    expected = torch.nn.functional.conv_transpose3d(
        *(torch.from_numpy(a).double() for a in (x, weights["weight"], weights["bias"])), stride, padding, extra
    ).numpy()
    assert layer.output_shape(x.shape) == expected.shape

    conv, spread = lower((Node("up", layer),), "strided")
    own = lowered_weights((Node("up", layer),), {"up": weights})["up"]
    assert {k: v.shape for k, v in own.items()} == conv.layer.weight_shapes(3)
    cells = torch.nn.functional.conv3d(
        *(torch.from_numpy(a).double() for a in (x, own["weight"], own["bias"])), padding=conv.layer.padding
    ).numpy()
    assert spread.layer.output_shape(conv.layer.output_shape(x.shape)) == expected.shape
    np.testing.assert_allclose(spread_out(spread.layer, cells), expected, atol=1e-5)


def spread_out(layer, cells):
    """What a `DepthToSpace` is, by NumPy."""
    batch, channels, *size = cells.shape
    split = cells.reshape(batch, *layer.factor, channels // prod(layer.factor), *size)
    whole = split.transpose(0, 4, 5, 1, 6, 2, 7, 3).reshape(
        batch, -1, *(n * f for n, f in zip(size, layer.factor, strict=True))
    )
    kept = (slice(a, n - b) for a, b, n in zip(layer.low, layer.high, whole.shape[2:], strict=True))
    return whole[(..., *kept)]
