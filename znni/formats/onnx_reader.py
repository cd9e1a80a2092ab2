"""Networks from ONNX files: opened, checked, walked node by node, and folded.

Nodes are read for one size of the input. Where spatial axes are free they are read for a second size as well, and what
depends on the size (a crop to match, say) must come out the same; at sizes nearby, the nodes must either fit no more or be
what the file says there as well.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from znni.errors import FormatError, InvalidShape, ZnniError
from znni.folding import fold
from znni.formats.description import Description
from znni.formats.onnx_constants import FOLDED
from znni.formats.onnx_layers import OPERATORS, Operation, Tensor
from znni.layers import by_x
from znni.network import shapes_through
from znni.nodes import INPUT, Node

if TYPE_CHECKING:
    import onnx

#: Sizes that are tried along free axes; strides must divide one of them.
_SIZES = (32, 48, 64, 33, 65, 128, 160, 256, 129, 97, 200, 320)
#: Voxels more than a size that fits at which nodes are read again: paddings and sizes that go by remainders show there.
_NEARBY = (1, 2, 3, 5, 8, 16)
#: What a malformed operator can raise.
_MALFORMED = (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError, OverflowError, MemoryError)


def read_onnx(path: str) -> Description:
    """The network of an ONNX file.

    Raises
    ------
    FormatError
        Where it cannot be read, has several inputs or outputs, or an operator, or a setting of one, that is not supported.
    """
    model = _opened(path)
    graph = _Graph(path, model)
    if graph.fixed:
        size = tuple(graph.size)
        try:
            nodes, weights = graph.walk(size)
        except InvalidShape as error:
            raise FormatError(f"{path} does not fit its own input size {by_x(size)}: {error}") from error
    else:
        size, nodes, weights = _at_two_sizes(graph)
    nodes, weights = fold(nodes, weights)
    if not nodes:
        raise FormatError(f"{path} computes nothing: its output is its input")
    return Description(
        nodes, graph.in_channels, weights, sliding=False, patch=size if graph.fixed else None, fixed=graph.fixed
    )


def _opened(path: str) -> onnx.ModelProto:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise FormatError(f"reading {path} needs the package onnx: pip install 'znni[onnx]'") from error
    try:
        model = onnx.load(path)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}") from error
    except (DecodeError, onnx.checker.ValidationError, ValueError, TypeError) as error:
        raise FormatError(f"{path} is no complete ONNX model: {str(error).splitlines()[0]}") from error
    if not model.graph.node or not model.graph.output:
        raise FormatError(f"{path} is no ONNX model: it has no graph with nodes and an output")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise FormatError(f"{path} is not valid ONNX: {str(error).strip().splitlines()[0]}") from error
    return model


def _at_two_sizes(graph: _Graph) -> tuple[tuple[int, int, int], list[Node], dict]:
    """Nodes at the first size that fits, which must be those at the next."""
    read: list[tuple] = []
    failure: ZnniError | None = None
    axes = [_SIZES if n is None else (n,) for n in graph.size]
    sizes = [tuple(s[min(i, len(s) - 1)] for s in axes) for i in range(len(_SIZES))]
    # sizes that are not the same along all axes come after those that are
    sizes += [s for s in product(*(a[:4] for a in axes)) if s not in sizes]
    for size in sizes:
        try:
            nodes, weights = graph.walk(size)
        except InvalidShape as error:
            failure = failure or error
            continue
        if read:
            _check_same(graph.path, read[0], (size, nodes, weights))
        read.append((size, nodes, weights))
        if len(read) == 2:
            break
    if read:
        _check_nearby(graph, read[0])
        return read[0]
    raise FormatError(f"{graph.path} fits no input size that was tried: {failure}")


def _check_same(path: str, first: tuple, second: tuple) -> None:
    """`FormatError` unless nodes and weights that were read at two sizes are the same."""
    (size, nodes, weights), (other_size, others, other_weights) = first, second
    changed = next((a.name for a, b in zip(nodes, others, strict=False) if a != b), None)
    if changed is None and len(nodes) != len(others):
        changed = max(nodes, others, key=len)[-1].name
    for name, own in weights.items():
        if changed is None and any(not np.array_equal(array, other_weights[name][key]) for key, array in own.items()):
            changed = name
    if changed is not None:
        raise FormatError(
            f"{path}: {changed} is another layer for inputs of {by_x(size)} and of {by_x(other_size)} voxels; export the "
            "model with the size that you want"
        )


def _check_nearby(graph: _Graph, read: tuple) -> None:
    """`FormatError` where the nodes fit a size for which the file has others: they would give another result there."""
    size, nodes, _ = read
    free = [axis for axis, n in enumerate(graph.size) if n is None]
    for axis, more in product(free, _NEARBY):
        near = tuple(n + more if a == axis else n for a, n in enumerate(size))
        try:
            shapes_through(nodes, (1, graph.in_channels, *near))
        except InvalidShape:
            continue
        try:
            there = graph.walk(near)
        except InvalidShape as error:
            raise FormatError(
                f"{graph.path} fits inputs of {by_x(size)} but not of {by_x(near)} voxels ({error}); export the model with "
                "the size that you want"
            ) from error
        _check_same(graph.path, read, (near, *there))


class _Graph:
    """The one graph of a model, with its input."""

    def __init__(self, path: str, model: onnx.ModelProto):
        from onnx import numpy_helper

        self.path, self._graph = path, model.graph
        self._opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        try:
            self._constants = {
                t.name: numpy_helper.to_array(t, base_dir=str(Path(path).parent)) for t in model.graph.initializer
            }
        except (OSError, ValueError, TypeError) as error:
            raise FormatError(f"{path} has an initialiser that cannot be read: {error}") from error
        inputs = [i for i in model.graph.input if i.name not in self._constants]
        if len(inputs) != 1 or len(model.graph.output) != 1:
            named = ", ".join(i.name for i in inputs), ", ".join(o.name for o in model.graph.output)
            raise FormatError(
                f"{path} must have one input and one output, got inputs {named[0] or '(none)'} and outputs {named[1]}"
            )
        self._input = inputs[0].name
        self._nodes = _ancestors(model.graph)
        kind = inputs[0].type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim]
        if len(shape) not in (4, 5):
            raise FormatError(
                f"{path}: its input must be (batch, channels, z, y, x) or (batch, channels, y, x), "
                f"got {len(shape)} axes"
            )
        if kind.elem_type not in (1, 10, 11):
            raise FormatError(f"{path}: its input must be of floats, got ONNX element type {kind.elem_type}")
        if shape[1] is None:
            raise FormatError(f"{path}: the number of channels of its input is not given; export it with one")
        self.flat = len(shape) == 4
        self.in_channels = shape[1]
        self.size = [1, *shape[2:]] if self.flat else shape[2:]
        self.fixed = None not in self.size

    def walk(self, size: tuple[int, int, int]) -> tuple[list[Node], dict]:
        """Nodes and weights for an input of that size; `InvalidShape` where it does not fit."""
        values: dict[str, np.ndarray | Tensor] = dict(self._constants)
        values[self._input] = Tensor(INPUT, (1, self.in_channels, *size), 4 if self.flat else 5)
        nodes: list[Node] = []
        weights: dict[str, dict[str, np.ndarray]] = {}
        for number, proto in self._nodes:
            self._node(number, proto, values, nodes, weights)
        output = self._graph.output[0].name
        end = values.get(output)
        if not isinstance(end, Tensor):
            raise FormatError(f"{self.path}: its output {output} does not depend on its input")
        if end.name != INPUT and end.name != nodes[-1].name:
            nodes = _needed(nodes, end.name)
        return nodes, {node.name: weights[node.name] for node in nodes if node.name in weights}

    def _node(self, number: int, proto, values: dict, nodes: list[Node], weights: dict) -> None:
        said = f"{self.path}: node {proto.name or number} ({proto.op_type}, opset {self._opset})"
        if proto.domain not in ("", "ai.onnx"):
            raise FormatError(f"{said} is of the domain {proto.domain}, which is not supported")
        missing = [name for name in proto.input if name and name not in values]
        if missing:
            raise FormatError(f"{said} reads {missing[0]}, which nothing before it makes")
        inputs = [values[name] if name else None for name in proto.input]
        outputs = [name for name in proto.output if name]
        try:
            attributes = _attributes(proto)
            if proto.op_type == "Constant":
                values[outputs[0]] = _constant(attributes)
                return
            if proto.op_type == "Shape":
                values[outputs[0]] = _shape(inputs[0], attributes)
                return
            if not any(isinstance(i, Tensor) for i in inputs):
                if proto.op_type not in FOLDED:
                    raise FormatError(f"{said} of constants is not supported; supported are {', '.join(sorted(FOLDED))}")
                values[outputs[0]] = np.asarray(FOLDED[proto.op_type](attributes, *inputs))
                return
            if proto.op_type not in OPERATORS:
                raise FormatError(f"{said} is not supported; supported are {', '.join(sorted(OPERATORS))}")
            if len(outputs) > 1 and proto.op_type != "Dropout":
                raise FormatError(f"{said} gives {len(outputs)} outputs, and only the first is supported")
            operation = Operation(proto.op_type, attributes, inputs, self.flat, self._opset)
            values[outputs[0]] = self._add(proto, number, operation, nodes, weights)
        except FormatError as error:
            text = str(error)
            raise error if text.startswith(self.path) else FormatError(f"{said}: {text}") from error
        except InvalidShape as error:
            raise InvalidShape(f"{said}: {error}") from error
        except _MALFORMED as error:
            raise FormatError(f"{said} cannot be read: {error}") from error

    def _add(self, proto, number: int, operation: Operation, nodes: list[Node], weights: dict) -> Tensor:
        """Nodes for an operation, one after another; the tensor that the last of them gives."""
        made = OPERATORS[proto.op_type](operation)
        if isinstance(made, Tensor):
            return made
        taken = {node.name for node in nodes} | {INPUT}
        base = "".join(c if c.isalnum() else "_" for c in proto.name).strip("_") or f"{proto.op_type}_{number}"
        tensor: Tensor | None = None
        for step, (layer, own, reads) in enumerate(made):
            name = base if step == len(made) - 1 else f"{base}.{step}"
            while name in taken:
                name += "_"
            sources = [tensor if r is None else r for r in reads]
            shape = layer.output_shape(layer.joined_shape(tuple(s.shape for s in sources)))
            nodes.append(Node(name, layer, tuple(s.name for s in sources)))
            taken.add(name)
            if own:
                weights[name] = {key: _float32(array, key) for key, array in own.items()}
            tensor = Tensor(name, shape, operation.rank, operation.groups)
        return tensor


def _float32(array: np.ndarray, key: str) -> np.ndarray:
    array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise FormatError(f"its {key} holds NaN or infinite values")
    return array


def _attributes(proto) -> dict:
    from onnx import helper, numpy_helper

    found = {}
    for attribute in proto.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.type == attribute.TENSOR:
            value = numpy_helper.to_array(value)
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found


def _constant(attributes: dict) -> np.ndarray:
    ((name, value),) = attributes.items()
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if name != "value" and name not in kinds:
        raise FormatError(f"a constant by {name} is not supported")
    return np.asarray(value, kinds.get(name))


def _shape(value: np.ndarray | Tensor, attributes: dict) -> np.ndarray:
    shape = value.onnx_shape if isinstance(value, Tensor) else value.shape
    return np.array(shape[attributes.get("start", 0) : attributes.get("end", len(shape))], np.int64)


def _ancestors(graph) -> list[tuple[int, onnx.NodeProto]]:
    """The nodes, with their numbers, that the output of a graph depends on; others need not be supported."""
    wanted, kept = {output.name for output in graph.output}, []
    for number, node in reversed(list(enumerate(graph.node))):
        if wanted.intersection(node.output):
            kept.append((number, node))
            wanted.update(node.input)
    return kept[::-1]


def _needed(nodes: list[Node], last: str) -> list[Node]:
    """The nodes that `last` depends on, with it at the end."""
    wanted, kept = {last}, []
    for node in reversed(nodes):
        if node.name in wanted:
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]


