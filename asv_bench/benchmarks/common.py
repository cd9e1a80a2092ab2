"""What the benchmarks share: seeded arrays and prepared operators."""

import os

import numpy as np

from znni.arena import aligned_empty
from znni.layers import Activation, Conv, MaxPoolFragments, by_x
from znni.primitives import get

THREADS = int(os.environ.get("ZNNI_BENCH_THREADS", "2"))

#: The layers that are watched: name -> (layer, input shape).
LAYERS = {
    "1>80 k2 in64": (Conv(80, (2, 2, 2), activation=Activation("relu")), (1, 1, 64, 64, 64)),
    "80>80 k3 in34": (Conv(80, (3, 3, 3), activation=Activation("relu")), (1, 80, 34, 34, 34)),
    "80>80 k5 in26 n4": (Conv(80, (5, 5, 5), activation=Activation("relu")), (4, 80, 26, 26, 26)),
    "80>80 k9 in34": (Conv(80, (9, 9, 9), activation=Activation("relu")), (1, 80, 34, 34, 34)),
    "48>48 k1,5,5 in1,104,104": (Conv(48, (1, 5, 5), activation=Activation("relu")), (1, 48, 1, 104, 104)),
    "mpf 80 p2 in63": (MaxPoolFragments((2, 2, 2), (2, 2, 2)), (1, 80, 63, 63, 63)),
}


def prepared(primitive_name, layer_name, config=None):
    """(operator, x, out, workspace, output voxels); `NotImplementedError`, which asv reads as a skip, where unsupported."""
    layer, shape = LAYERS[layer_name]
    primitive = get(primitive_name)
    if primitive.kind != layer.kind or primitive.supports(layer, shape):
        raise NotImplementedError(f"{primitive_name} does not compute {layer_name} on {by_x(shape)}")
    rng = np.random.default_rng(0)
    weights = {}
    if isinstance(layer, Conv):
        weights = {key: rng.standard_normal(s, np.float32) for key, s in layer.weight_shapes(shape[1]).items()}
    config = primitive.configs(layer, shape)[0] if config is None else config
    operator = primitive.prepare(layer, weights, shape, config, THREADS)
    x = rng.standard_normal(shape, np.float32)
    out = np.zeros(operator.out_shape, np.float32)
    workspace = aligned_empty(operator.memory.host_workspace_bytes)
    workspace[:] = 0
    batch, _, z, y, x_size = operator.out_shape
    return operator, x, out, workspace, batch * z * y * x_size
