"""Published networks, one module a family. `znni.load` makes a `Network` of a name."""

from __future__ import annotations

from functools import cache

from znni.zoo import (
    flood_filling,
    pointnet,
    recursive,
    recursive_graphs,
    residual_unet,
    znn_benchmarks,
    znni_benchmarks,
)
from znni.zoo.graph import PublishedGraph
from znni.zoo.published import Published

_FAMILIES = (
    znni_benchmarks,
    znn_benchmarks,
    recursive,
    recursive_graphs,
    residual_unet,
    flood_filling,
    pointnet,
)


@cache
def _registry() -> dict[str, Published | PublishedGraph]:
    return {published.name: published for family in _FAMILIES for published in family.networks()}


def networks() -> dict[str, Published | PublishedGraph]:
    """Every network of the zoo by name, with its field of view, parameters and source."""
    return dict(_registry())
