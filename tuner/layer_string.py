"""Layers as one line of text: ``80>80 k9 in56``, ``28>28 k1,3,3 in20,132,132 pad same``, ``80 mpf2 in57 n8``.

A convolution is ``IN>OUT kK inN`` with, in any order, ``pad P|same|valid``, ``dD`` (dilation), ``sS`` (stride), ``nB``
(batch) and an activation: ``relu``, ``tanh:1.7159:0.6667``. Other layers are ``CHANNELS KIND inN``: ``poolW``, ``mpfW``
(stride ``sS``, else the window), ``filterW`` (with ``dD``), ``maxoutG``, ``softmax``, ``relayout``, ``recombineS/S/..``
(strides of the poolings, first one first). A convolution with ``mpfW`` (``mpfW/S`` where the stride is not the window)
is one fused with the fragments of its result. ``partsP`` cuts such a layer, or a recombination, into parts. Triples: one
number or ``z,y,x``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields

from tuner.units import BadQuantity, parse_triple
from znni.errors import InvalidShape, ZnniError
from znni.layers import (
    ONES,
    ZEROS,
    Activation,
    Conv,
    ConvMaxPoolFragments,
    Layer,
    MaxFilter,
    Maxout,
    MaxPool,
    MaxPoolFragments,
    Recombine,
    Relayout,
    Shape,
    Softmax,
    Triple,
)
from znni.nodes import INPUT, Node, channels_through
from znni.prepared_conv import named_padding

_EXAMPLES = '"80>80 k9 in56" or "28>28 k1,3,3 in20,132,132 pad same"'
_TOKEN = re.compile(r"(maxout|recombine|relayout|softmax|filter|parts|pool|mpf|pad|in|k|d|s|n)=?([\d,/]+|same|valid)?")
#: Tokens that say what a layer is, and those of them that need no value.
_KINDS = ("k", "pool", "mpf", "filter", "maxout", "softmax", "relayout", "recombine")
_BARE = ("softmax", "relayout")


class BadLayer(ZnniError, ValueError):
    """A layer string that cannot be read."""


def looks_like_layer(text: str) -> bool:
    """Whether `text` can only be meant as a layer string (and not as a network's name or a file)."""
    return bool(re.match(r"\s*\d+\s*(>|\s(mpf|pool|filter|maxout|softmax|relayout|recombine))", text))


def parse_layer(text: str) -> tuple[Layer, Shape]:
    """The layer and the input shape (batch, channels, z, y, x) that `text` describes.

    Raises
    ------
    BadLayer
        Where it describes none, naming the part that is wrong.
    InvalidShape
        Where the layer does not fit its input.
    """
    head = re.match(r"\s*(\d+)\s*(?:>\s*(\d+))?\s+(?=\S)", text)
    if not head:
        raise BadLayer(f"layer {text!r} must start with its channels: expected something like {_EXAMPLES}")
    channels, out_channels = int(head[1]), head[2] and int(head[2])
    if channels < 1 or out_channels == 0:
        raise BadLayer(f"layer {text!r}: expected at least one channel on each side")
    given = _tokens(text, text[head.end() :])
    if "in" not in given:
        raise BadLayer(f"layer {text!r} does not say its input size: add in56 or in20,132,132")
    size = _triple(text, given, "in")
    batch = _count(text, given, "n", "1")
    layer = _layer(text, given, out_channels and int(out_channels))
    if given:
        raise BadLayer(f"layer {text!r}: {', '.join(sorted(given))} has no meaning for a {layer.kind} layer")
    shape = (batch, channels, *size)
    layer.output_shape(shape)
    return layer, shape


def _tokens(text: str, rest: str) -> dict[str, str]:
    given: dict[str, str] = {}
    words = re.sub(r"\bpad[\s=]+", "pad", rest).split()
    for word in words:
        match = _TOKEN.fullmatch(word)
        if match:
            key, value = match[1], match[2] or ""
            if not value and key not in _BARE:
                raise BadLayer(f"layer {text!r}: {word!r} lacks its value; expected something like {_EXAMPLES}")
        elif word.split(":")[0] in Activation.CODES:
            key, value = "activation", word
        else:
            raise BadLayer(f"layer {text!r}: {word!r} is not understood; expected something like {_EXAMPLES}")
        if key in given:
            raise BadLayer(f"layer {text!r} gives {key} twice")
        given[key] = value
    return given


def _layer(text: str, given: dict[str, str], out_channels: int | None) -> Layer:
    kinds = [key for key in _KINDS if key in given]
    fused = kinds == ["k", "mpf"]
    if len(kinds) != 1 and not fused:
        raise BadLayer(f"layer {text!r} must say what it is by one of {', '.join(_KINDS)}, or by k and mpf together")
    kind = kinds[0]
    if (kind == "k") != (out_channels is not None):
        raise BadLayer(f"layer {text!r}: IN>OUT goes with a kernel k, and a kernel with IN>OUT, as in {_EXAMPLES}")
    if kind == "k":
        conv = _conv(text, given, out_channels)
        return (
            ConvMaxPoolFragments(conv, _fused_pool(text, given), _count(text, given, "parts", "1")) if fused else conv
        )
    if kind in ("pool", "mpf"):
        window = given[kind]
        stride = _triple(text, given, "s", window)
        return (MaxPool if kind == "pool" else MaxPoolFragments)(_triple(text, given, kind), stride)
    if kind == "filter":
        return MaxFilter(_triple(text, given, kind), _triple(text, given, "d", "1"))
    if kind == "maxout":
        return Maxout(_count(text, given, kind, ""))
    value = given.pop(kind)
    if kind in _BARE:
        return Softmax() if kind == "softmax" else Relayout()
    strides = tuple(_read(text, kind, part) for part in value.split("/"))
    return Recombine(strides, _count(text, given, "parts", "1"))


def _conv(text: str, given: dict[str, str], out_channels: int) -> Conv:
    kernel = _triple(text, given, "k")
    dilation = _triple(text, given, "d", "1")
    stride = _triple(text, given, "s", "1")
    padding = _padding(text, given.pop("pad", "valid"), kernel, dilation)
    return Conv(out_channels, kernel, stride, padding, dilation, _activation(text, given.pop("activation", "linear")))


def _fused_pool(text: str, given: dict[str, str]) -> MaxPoolFragments:
    window, slash, stride = given.pop("mpf").partition("/")
    return MaxPoolFragments(_read(text, "mpf", window), _read(text, "mpf", stride if slash else window))


def _read(text: str, key: str, value: str, least: int = 1) -> Triple:
    try:
        return parse_triple(value, least)
    except BadQuantity as error:
        raise BadLayer(f"layer {text!r}: {key} {error}") from error


def _triple(text: str, given: dict[str, str], key: str, default: str = "") -> Triple:
    return _read(text, key, given.pop(key, default))


def _count(text: str, given: dict[str, str], key: str, default: str) -> int:
    value = given.pop(key, default)
    if not value.isdigit() or int(value) < 1:
        raise BadLayer(f"layer {text!r}: {key} expected an integer of at least 1, got {value!r}")
    return int(value)


def _padding(text: str, value: str, kernel: Triple, dilation: Triple) -> Triple:
    if value not in ("same", "valid"):
        return _read(text, "pad", value, least=0)
    try:
        return named_padding(value, kernel, dilation)
    except InvalidShape as error:
        raise BadLayer(f"layer {text!r}: {error}") from error


def _activation(text: str, value: str) -> Activation:
    name, *parameters = value.split(":")
    try:
        return Activation.of((name, *map(float, parameters)) if parameters else name)
    except (TypeError, ValueError) as error:
        raise BadLayer(
            f"layer {text!r}: expected an activation such as relu or tanh:1.7159:0.6667, got {value!r}"
        ) from error


def _text(triple: Triple) -> str:
    return str(triple[0]) if len(set(triple)) == 1 else ",".join(map(str, triple))


def _words(layer: Layer, channels: int) -> list[str]:
    """What `layer_text` says of a layer but for its input's size and batch; its kind first."""
    if isinstance(layer, Conv):
        words = [f"{channels}>{layer.out_channels} k{_text(layer.kernel)}"]
        if layer.padding != ZEROS:
            words.append(f"pad {_text(layer.padding)}")
        words += [
            f"{key}{_text(value)}" for key, value in (("d", layer.dilation), ("s", layer.stride)) if value != ONES
        ]
        activation = layer.activation
        if activation != Activation.of(activation.name):
            words.append(f"{activation.name}:{activation.a:g}:{activation.b:g}")
        elif activation.name != "linear":
            words.append(activation.name)
        return words
    if isinstance(layer, (MaxPool, MaxPoolFragments)):
        words = [f"{'mpf' if isinstance(layer, MaxPoolFragments) else 'pool'}{_text(layer.window)}"]
        return words + ([f"s{_text(layer.stride)}"] if layer.stride != layer.window else [])
    if isinstance(layer, ConvMaxPoolFragments):
        window, stride = _text(layer.pool.window), _text(layer.pool.stride)
        pool = f"mpf{window}" + (f"/{stride}" if stride != window else "")
        return [*_words(layer.conv, channels), pool, *_parts(layer)]
    if isinstance(layer, MaxFilter):
        return [f"filter{_text(layer.window)}"] + ([f"d{_text(layer.dilation)}"] if layer.dilation != ONES else [])
    if isinstance(layer, Maxout):
        return [f"maxout{layer.group}"]
    if isinstance(layer, Recombine):
        return [f"recombine{'/'.join(map(_text, layer.strides))}", *_parts(layer)]
    return _field_words(layer, channels)


def _field_words(layer: Layer, channels: int) -> list[str]:
    """Of a layer that has no string of its own: its kind, and the fields that are not at their defaults."""
    made = f"{channels}>{layer.out_channels} " if hasattr(layer, "out_channels") else ""
    words = [made + layer.kind]
    for field in fields(layer):
        value = getattr(layer, field.name)
        if field.name == "out_channels" or value == field.default:
            continue
        if isinstance(value, Activation):
            words.append(value.name)
        else:
            words.append(f"{field.name} {_text(value) if isinstance(value, tuple) and len(value) == 3 else value}")
    return words


def _parts(layer: ConvMaxPoolFragments | Recombine) -> list[str]:
    return [f"parts{layer.parts}"] if layer.parts > 1 else []


def layer_text(layer: Layer, shape: Shape) -> str:
    """The string that `parse_layer` reads as `layer` on an input of `shape`."""
    kind, *rest = _words(layer, shape[1])
    head = kind if isinstance(layer, Conv | ConvMaxPoolFragments) else f"{shape[1]} {kind}"
    batch = [f"n{shape[0]}"] if shape[0] > 1 else []
    return " ".join([head, f"in{_text(shape[2:])}", *rest, *batch])


def node_words(nodes: Sequence[Node], in_channels: int) -> list[str]:
    """Layers of a network, each in short: ``1>80 k2 relu``, ``pool2``; some with what they read."""
    channels, before, found = channels_through(nodes, in_channels), INPUT, []
    for node in nodes:
        words = " ".join(_words(node.layer, channels[node.inputs[0]]))
        found.append(words if node.inputs == (before,) else f"{words} of {' and '.join(node.inputs)}")
        before = node.name
    return found
