"""What is peculiar to layers computed voxel by voxel on the device: chunks of an image, NaN, values that overflow."""

import numpy as np
import pytest
from primitives.cases import Case
from primitives.truth import truth

from znni.layers import Maxout, Softmax
from znni.layouts import DEVICE, with_layouts
from znni.primitives.gpu_pointwise import MAXOUT, SOFTMAX

from .calls import Call


def computed(device, layer, x):
    primitive = SOFTMAX if layer == Softmax() else MAXOUT
    with Call(device, primitive.prepare(layer, {}, x.shape, with_layouts({}, DEVICE, DEVICE), 1)) as call:
        return call.of(x)


@pytest.mark.parametrize("voxels", [1, 255, 1023, 1024, 1025, 2300])
def test_chunks_of_an_image(device, voxels):
    for layer in (Softmax(), Maxout(2)):
        x, _ = Case(layer, (3, 4, 1, 1, voxels)).arrays(0)
        np.testing.assert_allclose(computed(device, layer, x), truth(layer, {}, x), rtol=2e-6)


def test_a_nan_makes_its_maximum_or_its_voxel_nan(device):
    x, _ = Case(Maxout(3), (1, 6, 2, 3, 5)).arrays(0)
    x[0, 0, 0, 0, 0] = x[0, 4, 1, 1, 1] = x[0, 5, 1, 2, 3] = np.nan
    np.testing.assert_array_equal(computed(device, Maxout(3), x), truth(Maxout(3), {}, x).astype(np.float32))
    found = np.isnan(computed(device, Softmax(), x))
    np.testing.assert_array_equal(found, np.isnan(x).any(axis=1, keepdims=True).repeat(6, axis=1))


def test_softmax_of_large_values(device):
    x = np.array([[3e38, -3e38, 1000.0], [3e38, 3e38, 999.0]], np.float32).T.reshape(3, 2, 1, 1, 1)
    np.testing.assert_allclose(computed(device, Softmax(), x), truth(Softmax(), {}, x), rtol=1e-6)


def test_more_blocks_than_a_launch_has_are_refused():
    assert "more than the 2147483647 blocks" in MAXOUT.supports(Maxout(1), (1 << 21, 1 << 11, 1, 1, 1))
