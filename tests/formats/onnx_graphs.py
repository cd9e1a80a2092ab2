"""Small ONNX models: one operator each, random graphs by seed, and files that are damaged or not supported."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper


def model(nodes, initializers, in_shape, opset=17, output="y", out_rank=None, name="x") -> ModelProto:
    """A model of these nodes, from `x` of `in_shape` (None: free) to `output`."""
    value = helper.make_tensor_value_info
    rank = out_rank or len(in_shape)
    graph = helper.make_graph(
        nodes,
        "graph",
        [value(name, TensorProto.FLOAT, in_shape)],
        [value(output, TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


class RandomGraph:
    """A random network of three to twelve operators over 3D or flat images, its sizes free."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.flat = bool(self.rng.random() < 0.2)
        self.channels = {"x": int(self.rng.integers(1, 4))}
        self.scale = {"x": 0}  # halvings along y and x
        self.size = 16
        self.nodes, self.initializers = [], {}
        for _ in range(self.rng.integers(3, 13)):
            self._grow()
        last = list(self.channels)[-1]
        self.nodes.append(helper.make_node("Identity", [last], ["y"]))
        shape = [1, self.channels["x"], "y_size", "x_size"] if self.flat else [1, self.channels["x"], "z", "y_size", "x_size"]
        self.model = model(self.nodes, self.initializers, shape)

    @property
    def input(self) -> np.ndarray:
        """An input of a size that fits."""
        size = (16, 24) if self.flat else (3, 16, 24)
        return self.rng.standard_normal((1, self.channels["x"], *size)).astype(np.float32)

    def _new(self, kind, inputs, channels, scale=None, **attributes):
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{kind}_{len(self.nodes)}", **attributes))
        self.channels[name] = channels
        self.scale[name] = self.scale[inputs[0]] if scale is None else scale
        return name

    def _constant(self, array) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers[name] = np.asarray(array)
        return name

    def _normal(self, *shape, fan=1):
        return (self.rng.standard_normal(shape) / max(1, fan) ** 0.5).astype(np.float32)

    def _axes(self, z, yx):
        return [yx, yx] if self.flat else [z, yx, yx]

    def _grow(self):
        rng = self.rng
        x = list(self.channels)[-1] if rng.random() < 0.8 else str(rng.choice(list(self.channels)))
        c = self.channels[x]
        peers = [n for n in self.channels if n != x and self.scale[n] == self.scale[x]]
        kinds = ["conv", "conv", "grouped", "norm", "act", "act", "join", "join", "pool", "up", "affine", "pad", "slice"]
        kind = str(rng.choice(kinds))
        if kind == "conv":
            k, out, dilation = int(rng.choice([1, 3])), int(rng.integers(1, 6)), int(rng.choice([1, 2]))
            half = (k - 1) // 2 * dilation
            pads = self._axes(0, half) * 2
            w = self._constant(self._normal(out, c, *self._axes(1, k), fan=c * k * k))
            inputs = [x, w] + ([self._constant(self._normal(out))] if rng.random() < 0.7 else [])
            self._new("Conv", inputs, out, pads=pads, dilations=self._axes(1, dilation), kernel_shape=self._axes(1, k))
        elif kind == "grouped":
            w = self._constant(self._normal(2 * c, 1, *self._axes(1, 3), fan=9))
            self._new("Conv", [x, w], 2 * c, pads=self._axes(0, 1) * 2, group=c, kernel_shape=self._axes(1, 3))
        elif kind == "norm":
            own = [self._constant(1 + self._normal(c) / 5), self._constant(self._normal(c))]
            if rng.random() < 0.5:
                own += [self._constant(self._normal(c)), self._constant(0.5 + rng.random(c).astype(np.float32))]
                self._new("BatchNormalization", [x, *own], c, epsilon=1e-3)
            else:
                self._new("InstanceNormalization", [x, *own], c, epsilon=1e-2)
        elif kind == "act":
            name = str(rng.choice(["Relu", "LeakyRelu", "Elu", "Tanh", "Sigmoid", "Clip", "PRelu"]))
            if name == "Clip":
                self._new(name, [x, self._constant(np.float32(-0.5)), self._constant(np.float32(2))], c)
            elif name == "PRelu":
                self._new(name, [x, self._constant(self._normal(c, *self._axes(1, 1)))], c)
            else:
                self._new(name, [x], c, **({"alpha": 0.3} if name in ("LeakyRelu", "Elu") else {}))
        elif kind == "affine":
            name = str(rng.choice(["Add", "Mul", "Sub", "Div"]))
            array = self._normal(c, *self._axes(1, 1)) if rng.random() < 0.7 else np.float32(1.5)
            self._new(name, [x, self._constant(np.abs(array) + np.float32(0.5) if name == "Div" else array)], c)
        elif kind == "join" and peers:
            y = str(rng.choice(peers))
            same = self.channels[y] == c
            name = str(rng.choice(["Add", "Mul", "Sub", "Concat"])) if same else "Concat"
            if name == "Concat":
                self._new(name, [x, y], c + self.channels[y], axis=1)
            else:
                self._new(name, [x, y], c)
        elif kind == "pool" and self.scale[x] < 2:
            name = str(rng.choice(["MaxPool", "AveragePool", "strided"]))
            if name == "strided":
                w = self._constant(self._normal(c + 1, c, *self._axes(1, 3), fan=9 * c))
                self._new(
                    "Conv", [x, w], c + 1, self.scale[x] + 1, pads=self._axes(0, 1) * 2, strides=self._axes(1, 2),
                    kernel_shape=self._axes(1, 3),
                )  # fmt: skip
            else:
                self._new(name, [x], c, self.scale[x] + 1, kernel_shape=self._axes(1, 2), strides=self._axes(1, 2))
        elif kind == "up" and self.scale[x] > 0:
            if rng.random() < 0.5:
                k = int(rng.choice([2, 4]))
                w = self._constant(self._normal(c, c, *self._axes(1, k), fan=c * k))
                self._new(
                    "ConvTranspose", [x, w], c, self.scale[x] - 1, strides=self._axes(1, 2), kernel_shape=self._axes(1, k),
                    pads=self._axes(0, k // 2 - 1) * 2,
                )  # fmt: skip
            else:
                scales = self._constant(np.array([1, 1, *self._axes(1, 2)], np.float32))
                mode, coordinates, rounding = [
                    ("nearest", "asymmetric", "floor"), ("nearest", "half_pixel", "round_prefer_ceil"),
                    ("linear", "half_pixel", "floor"), ("linear", "align_corners", "floor"),
                ][rng.integers(4)]  # fmt: skip
                self._new(
                    "Resize", [x, "", scales], c, self.scale[x] - 1, mode=mode, nearest_mode=rounding,
                    coordinate_transformation_mode=coordinates,
                )  # fmt: skip
        elif kind == "pad":
            pads = self._constant(np.array([0, 0, *self._axes(0, 1)] * 2, np.int64))
            name = self._new("Pad", [x, pads], c, mode=str(rng.choice(["constant", "edge", "reflect"])))
            starts = self._constant(np.array([1, 1], np.int64))
            ends = self._constant(np.array([-1, -1], np.int64))
            axes = self._constant(np.array([-2, -1], np.int64))
            self._new("Slice", [name, starts, ends, axes], c)
            del self.channels[name]  # it is larger than the others, and goes with none of them
        elif kind == "slice" and c > 1:
            first = int(rng.integers(0, c - 1))
            starts, ends, axes = (self._constant(np.array([n], np.int64)) for n in (first, c, 1))
            self._new("Slice", [x, starts, ends, axes], c - first)
