"""ZNNi's ``.znni``: a header and one layer a line.

``INPUTS:<n>, LAYERS:<m>``, then ``CONV z,y,x <outputs>``, ``POOL z,y,x`` (max-pooling, meant densely), ``FOOL z,y,x``
(max-filter) or ``MAXOUT d``. 2D files write ``y,x``. The format names no activation: ReLU after every convolution, by
the paper (ZNNi, SC'16). It holds no weights.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from znni.errors import FormatError
from znni.formats.description import Description
from znni.formats.text import numbered_lines, positive, positive_triple
from znni.layers import Activation, Conv, Layer, MaxFilter, Maxout, MaxPool
from znni.nodes import chain

_HEADER = re.compile(r"INPUTS\s*:\s*(\d+)\s*,\s*LAYERS\s*:\s*(\d+)")
_FORMS = {"CONV": "CONV z,y,x outputs", "POOL": "POOL z,y,x", "FOOL": "FOOL z,y,x", "MAXOUT": "MAXOUT d"}


def read_znni(path: str | os.PathLike) -> Description:
    """The network of a ``.znni`` file, without weights.

    Raises
    ------
    FormatError
        Naming the file and the line.
    """
    path = Path(path)
    lines = numbered_lines(path)
    if not lines:
        raise FormatError(f"{path} is empty; a .znni file begins with INPUTS:<n>, LAYERS:<m>")
    number, header = lines[0]
    match = _HEADER.fullmatch(header)
    if not match:
        raise FormatError(f"{path}, line {number}: expected INPUTS:<n>, LAYERS:<m>, got {header!r}")
    in_channels = positive(match[1], f"{path}, line {number}: INPUTS")
    promised = positive(match[2], f"{path}, line {number}: LAYERS")
    if len(lines) - 1 != promised:
        raise FormatError(f"{path}: the header promises {promised} layers, but the file holds {len(lines) - 1}")
    layers, channels = [], in_channels
    for number, line in lines[1:]:
        layer = _layer(line, f"{path}, line {number}")
        if isinstance(layer, Conv):
            channels = layer.out_channels
        elif isinstance(layer, Maxout):
            if channels % layer.group:
                raise FormatError(f"{path}, line {number}: MAXOUT {layer.group} does not divide {channels} channels")
            channels //= layer.group
        layers.append(layer)
    return Description(chain(layers), in_channels)


def _layer(line: str, where: str) -> Layer:
    word, *arguments = line.split()
    if word not in _FORMS:
        raise FormatError(f"{where}: unknown layer {word!r}; known are {', '.join(_FORMS)}")
    if len(arguments) != len(_FORMS[word].split()) - 1:
        raise FormatError(f"{where}: expected {_FORMS[word]}, got {line!r}")
    if word == "MAXOUT":
        return Maxout(positive(arguments[0], f"{where}: the group of MAXOUT"))
    size = positive_triple(arguments[0], f"{where}: the size of {word}")
    if word == "CONV":
        outputs = positive(arguments[1], f"{where}: the outputs of CONV")
        return Conv(outputs, size, activation=Activation.of("relu"))
    return MaxPool(size, size) if word == "POOL" else MaxFilter(size)
