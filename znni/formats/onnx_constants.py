"""Constants of an ONNX graph: what depends on initialisers and sizes alone is computed while reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Attributes = Mapping[str, object]


def _slice(attributes: Attributes, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    if "starts" not in attributes:
        starts, ends, axes, steps = (*given, *(None,) * (4 - len(given)))
    else:
        starts, ends, axes, steps = attributes["starts"], attributes["ends"], attributes.get("axes"), None
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[int(axis)] = slice(int(start), int(end), int(step))
    return data[tuple(index)]


def _axes(attributes: Attributes, given: Sequence[np.ndarray]) -> tuple[int, ...]:
    axes = given[0] if given and given[0] is not None else attributes["axes"]
    return tuple(int(a) for a in axes)


def _reshape(attributes: Attributes, data: np.ndarray, shape: np.ndarray) -> np.ndarray:
    kept = [data.shape[i] if n == 0 and not attributes.get("allowzero") else int(n) for i, n in enumerate(shape)]
    return data.reshape(kept)


def _cast(attributes: Attributes, data: np.ndarray) -> np.ndarray:
    from onnx import helper

    return data.astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind in "iu" and b.dtype.kind in "iu":
        return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)  # towards zero
    return a / b


def _squeeze(attributes: Attributes, data: np.ndarray, *axes: np.ndarray | None) -> np.ndarray:
    some = any(a is not None for a in axes) or "axes" in attributes
    return np.squeeze(data, _axes(attributes, axes) if some else None)


def _reduce_prod(attributes: Attributes, data: np.ndarray, *axes: np.ndarray | None) -> np.ndarray:
    every = not any(a is not None and len(a) for a in axes) and "axes" not in attributes
    if every and attributes.get("noop_with_empty_axes"):
        return data
    return np.prod(data, None if every else _axes(attributes, axes), keepdims=bool(attributes.get("keepdims", 1)))


def _full(shape: Sequence[int], value: np.generic) -> np.ndarray:
    """A view of one value, so that impossible sizes take no memory."""
    return np.broadcast_to(value, tuple(int(n) for n in shape))


#: Operators that are computed on constants, of (attributes, arrays).
FOLDED: dict[str, Callable[..., np.ndarray]] = {
    "Add": lambda _, a, b: a + b,
    "Cast": _cast,
    "Ceil": lambda _, a: np.ceil(a),
    "Concat": lambda at, *xs: np.concatenate([np.atleast_1d(x) for x in xs], at["axis"]),
    "ConstantOfShape": lambda at, shape: _full(shape, at.get("value", np.zeros(1, "f"))[0]),
    "Div": lambda _, a, b: _divide(a, b),
    "Equal": lambda _, a, b: a == b,
    "Expand": lambda _, a, shape: np.broadcast_to(a, np.broadcast_shapes(a.shape, tuple(int(n) for n in shape))),
    "Exp": lambda _, a: np.exp(a),
    "Floor": lambda _, a: np.floor(a),
    "Gather": lambda at, a, i: np.take(a, i.astype(int), at.get("axis", 0)),
    "Identity": lambda _, a: a,
    "Max": lambda _, *xs: np.maximum.reduce(xs),
    "Min": lambda _, *xs: np.minimum.reduce(xs),
    "Mod": lambda at, a, b: (np.fmod if at.get("fmod") else np.mod)(a, b),
    "Mul": lambda _, a, b: a * b,
    "Neg": lambda _, a: -a,
    "Pow": lambda _, a, b: a**b,
    "Range": lambda _, a, b, c: np.arange(a, b, c),
    "Reciprocal": lambda _, a: 1 / a,
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Slice": _slice,
    "Sqrt": lambda _, a: np.sqrt(a),
    "Squeeze": _squeeze,
    "Sub": lambda _, a, b: a - b,
    "Transpose": lambda at, a: np.transpose(a, at.get("perm")),
    "Unsqueeze": lambda at, a, *axes: np.expand_dims(a, _axes(at, axes)),
    "Where": lambda _, c, a, b: np.where(c, a, b),
}
