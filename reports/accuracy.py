"""The error of every primitive and config against float64, on layers like those of the published networks.

    python -m reports.accuracy reports/results/accuracy.json

Relative L2 error of one layer before any activation, by `znni.reference_conv`, which shares no code with the primitives. Inputs
are of normal values, and of those with the negative ones cut off, as they come out of a ReLU; weights keep the deviation.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from znni._version import __version__
from znni.arena import aligned_empty
from znni.layers import Conv, ConvMaxPoolFragments, MaxPoolFragments, Shape, describe
from znni.layouts import PLAIN, array_shape, packed, settings_of, unpacked, with_layouts
from znni.machine import this_machine
from znni.primitives import Config, Primitive, candidates
from znni.primitives.foreign import ForeignConv
from znni.reference_conv import convolve

Layers = Mapping[str, tuple[Conv | ConvMaxPoolFragments, Shape]]

#: Those of `reports.layers`, smaller where that is enough for the same tiles, and one fused with its fragments.
LAYERS: Layers = {
    "80>80 k3 in34": (Conv(80, (3, 3, 3)), (1, 80, 34, 34, 34)),
    "80>80 k5 in28": (Conv(80, (5, 5, 5)), (1, 80, 28, 28, 28)),
    "80>80 k7 in30": (Conv(80, (7, 7, 7)), (1, 80, 30, 30, 30)),
    "80>80 k9 in32": (Conv(80, (9, 9, 9)), (1, 80, 32, 32, 32)),
    "28>28 k1,3,3 in18,80,80 pad same": (Conv(28, (1, 3, 3), padding=(0, 1, 1)), (1, 28, 18, 80, 80)),
    "36>36 k3 in18,80,80 pad same": (Conv(36, (3, 3, 3), padding=(1, 1, 1)), (1, 36, 18, 80, 80)),
    "64>64 k3 in18,40,40 pad same": (Conv(64, (3, 3, 3), padding=(1, 1, 1)), (1, 64, 18, 40, 40)),
    "1>28 k1,5,5 in18,80,80 pad same": (Conv(28, (1, 5, 5), padding=(0, 2, 2)), (1, 1, 18, 80, 80)),
    "80>80 k1 in32": (Conv(80, (1, 1, 1)), (1, 80, 32, 32, 32)),
    "80>80 k3 in33 mpf2": (
        ConvMaxPoolFragments(Conv(80, (3, 3, 3)), MaxPoolFragments((2, 2, 2), (2, 2, 2))),
        (1, 80, 33, 33, 33),
    ),
}
INPUTS = ("normal", "rectified")


def truth(
    layer: Conv | ConvMaxPoolFragments, weights: dict[str, np.ndarray], x: np.ndarray, threads: int
) -> np.ndarray:
    """The layer's result in float64; stride 1 only."""
    conv = layer if isinstance(layer, Conv) else layer.conv
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *((p, p) for p in conv.padding)])
    with ThreadPoolExecutor(threads) as pool:
        made = convolve(
            np.ascontiguousarray(np.moveaxis(padded, 1, -1)), weights["weight"], conv.dilation, pool, threads
        )
    made = np.moveaxis(made, -1, 1) + weights["bias"].astype(np.float64)[:, None, None, None]
    return made if isinstance(layer, Conv) else _fragments(layer.pool, made)


def _fragments(pool: MaxPoolFragments, made: np.ndarray) -> np.ndarray:
    """The maxima of all windows of a batch of 1, offset after offset."""
    size = pool.output_shape(made.shape)[2:]
    found = []
    for offset in itertools.product(*map(range, pool.stride)):
        seen = []
        for tap in itertools.product(*map(range, pool.window)):
            axes = zip(offset, tap, size, pool.stride, strict=True)
            seen.append(made[(..., *(slice(o + t, o + t + (n - 1) * s + 1, s) for o, t, n, s in axes))])
        found.append(np.max(seen, axis=0))
    return np.concatenate(found)


def arrays(layer: Conv | ConvMaxPoolFragments, shape: Shape) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs by name, and weights that keep their deviation; the same every time."""
    rng = np.random.default_rng(20190604)
    x = rng.standard_normal(shape, dtype=np.float32)
    weights = {name: rng.standard_normal(own, np.float32) for name, own in layer.weight_shapes(shape[1]).items()}
    weights["weight"] *= np.float32(weights["weight"][0].size ** -0.5)
    return {"normal": x, "rectified": np.maximum(x, 0)}, weights


def result(
    primitive: Primitive, layer: Conv | ConvMaxPoolFragments, weights: dict, x: np.ndarray, config: Config, threads: int
) -> np.ndarray:
    """What the primitive computes, as a plain array."""
    operator = primitive.prepare(layer, weights, x.shape, config, threads)
    out = np.empty(array_shape(operator.out_shape, operator.gives), np.float32)
    operator(packed(x, operator.takes), out, aligned_empty(operator.memory.host_workspace_bytes))
    return unpacked(out, operator.out_shape[1], operator.gives)


def rows(layers: Layers, threads: int) -> Iterator[dict]:
    """A row for each layer, primitive and config."""
    for name, (layer, shape) in layers.items():
        inputs, weights = arrays(layer, shape)
        expected = {key: truth(layer, weights, x, threads) for key, x in inputs.items()}
        for primitive in candidates(layer, shape):
            pair = (PLAIN, PLAIN) if (PLAIN, PLAIN) in primitive.layouts else primitive.layouts[0]
            for settings in primitive.configs(layer, shape):
                config = with_layouts(settings, *pair)
                row = {"name": name, "layer": describe(layer), "shape": list(shape), "primitive": primitive.name,
                       "config": settings_of(config), "expected": primitive.error(layer, shape, config)}  # fmt: skip
                for key, x in inputs.items():
                    found = result(primitive, layer, weights, x, config, threads)
                    row[key] = float(np.linalg.norm(found - expected[key]) / np.linalg.norm(expected[key]))
                yield row


def measure(path: str, layers: Layers = LAYERS) -> dict:
    """Measure all of `layers`, and write what was found to `path`."""
    machine = this_machine()
    found = []
    for row in rows(layers, machine.cores):
        found.append(row)
        print(f"{row['name']}  {row['primitive']}  {json.dumps(row['config'])}  " + text(row), flush=True)
    libraries = {p.library for layer, shape in layers.values() for p in candidates(layer, shape) if _is_foreign(p)}
    data = {
        "machine": machine.describe(),
        "versions": {"znni": __version__} | {name: importlib.metadata.version(name) for name in sorted(libraries)},
        "command": f"python -m reports.accuracy {path}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "error": "relative L2 against float64, of one layer",
        "rows": found,
    }
    Path(path).write_text(json.dumps(data, indent=1) + "\n")
    return data


def _is_foreign(primitive: Primitive) -> bool:
    return isinstance(primitive, ForeignConv)


def text(row: dict) -> str:
    """The errors of a row in words."""
    return ", ".join(f"{key} {row[key]:.1e}" for key in (*INPUTS, "expected"))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="reports.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("path", help="JSON file to write")
    measure(parser.parse_args().path)


if __name__ == "__main__":
    main()
