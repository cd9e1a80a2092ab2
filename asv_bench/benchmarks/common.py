"""What the benchmarks share: the layers that are watched, seeded arrays and prepared operators."""

import os

import numpy as np

from reports.layers import PUBLISHED
from znni.arena import aligned_empty
from znni.layers import MaxPoolFragments, by_x
from znni.layouts import array_shape, with_layouts
from znni.predict import Predictor
from znni.primitives import candidates

THREADS = int(os.environ.get("ZNNI_BENCH_THREADS", "2"))
#: A primitive that the cost model thinks so many times slower than the layer's best is not watched on that layer.
_HOPELESS = 3.0


def _title(layer, shape):
    """A layer in short: ``conv 80>80 k3x3x3 in 58x58x58``."""
    kernel = f"{shape[1]}>{layer.out_channels} k{by_x(layer.kernel)}" if layer.kind == "conv" else f"{shape[1]}"
    return f"{layer.kind} {kernel} in {by_x(shape[2:])}"


#: Title -> (layer, input shape): the published ones, and fragments.
LAYERS = {
    _title(layer, shape): (layer, shape)
    for layer, shape in (*PUBLISHED, (MaxPoolFragments((2, 2, 2), (2, 2, 2)), (1, 80, 63, 63, 63)))
}


def _watched():
    """``layer | primitive, layout`` -> (layer, shape, primitive, config): every primitive that may be best on a layer, at its
    own best guess, in the layout that it runs in within networks."""
    found, predictor = {}, Predictor(THREADS)
    for title, (layer, shape) in LAYERS.items():
        seconds = {}
        for primitive in candidates(layer, shape):
            if not primitive.foreign:
                config = primitive.configs(layer, shape)[0]
                seconds[primitive] = predictor.seconds(primitive, layer, shape, config)[0], config
        best = min(time for time, _ in seconds.values())
        for primitive, (time, config) in seconds.items():
            if time <= _HOPELESS * best:
                kept = [pair for pair in primitive.layouts if pair[0] == pair[1]]
                takes, gives = min(kept or primitive.layouts)  # blocked before plain
                config = with_layouts(config, takes, gives)
                found[f"{title} | {primitive.name}, {takes}"] = (layer, shape, primitive, config)
    return found


WATCHED = _watched()


def prepared(name):
    """(operator, x, out, workspace, output voxels) of one of `WATCHED`."""
    layer, shape, primitive, config = WATCHED[name]
    rng = np.random.default_rng(0)
    weights = {}
    if hasattr(layer, "weight_shapes"):
        weights = {key: rng.standard_normal(s, np.float32) for key, s in layer.weight_shapes(shape[1]).items()}
    operator = primitive.prepare(layer, weights, shape, config, THREADS)
    # lanes beyond the last channel should hold zeros; numbers there cost the same time
    x = rng.random(array_shape(shape, operator.takes), np.float32)
    out = np.zeros(array_shape(operator.out_shape, operator.gives), np.float32)
    workspace = aligned_empty(operator.memory.host_workspace_bytes)
    workspace[:] = 0
    batch, _, z, y, x_size = operator.out_shape
    return operator, x, out, workspace, batch * z * y * x_size
