"""A layer seen along one axis alone."""

from __future__ import annotations

from dataclasses import fields, replace

from znni.layers.base import Layer

#: What each spatial field is where it does nothing.
_NEUTRAL = {"kernel": 1, "window": 1, "stride": 1, "dilation": 1, "step": 1, "factor": 1}
_NEUTRAL |= {"padding": 0, "low": 0, "high": 0, "extra": 0}


def projected(layer: Layer, axis: int) -> Layer:
    """`layer` with kernels, strides, paddings and the like of the other axes made to do nothing.

    Every layer works on each axis apart, so that sizes along `axis` follow from it with one voxel along the others. A
    `DepthToSpace` then takes fewer channels for one of its result; channels are nobody's affair here.
    """
    changed = {}
    for field in fields(layer):
        if field.name in _NEUTRAL:
            value = getattr(layer, field.name)
            changed[field.name] = tuple(v if i == axis else _NEUTRAL[field.name] for i, v in enumerate(value))
    return replace(layer, **changed) if changed else layer
