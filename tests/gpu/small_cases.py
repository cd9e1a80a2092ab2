"""Small cases on which every config is tried: the CPU's, and what the device has a way of its own for."""

from __future__ import annotations

from primitives import cases
from primitives.cases import Case

from znni.layers import Activation, Conv

#: A network's first layer: one channel in, many out.
_FIRST = Case(Conv(70, (2, 3, 3), activation=Activation("relu")), (1, 1, 7, 12, 37))

SMALL = cases.SMALL | {"conv": [*cases.SMALL["conv"], _FIRST]}
