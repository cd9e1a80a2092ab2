"""Running a plan: on an array, or from file to file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from znni.errors import MemoryLimit
from znni.network import Network
from znni.plan import Plan
from znni.process_memory import available_bytes, resident_bytes
from znni.program import Choice, Program


def program(network: Network, plan: Plan, limit_bytes: int | None = None) -> Program:
    """The plan's program, its memory taken.

    Raises `MemoryLimit` where what it needs is not free, or would lift this process above `limit_bytes`.
    """
    need = plan.memory.get("arena_bytes", 0) + plan.memory.get("resident_bytes", 0)
    free = available_bytes()
    mib = 1 << 20
    if need > free:
        raise MemoryLimit(
            f"this plan needs {need / mib:.0f} MiB, but {free / mib:.0f} MiB are free here; tune with a lower --memory"
        )
    held = resident_bytes()
    if limit_bytes is not None and held + need > limit_bytes:
        raise MemoryLimit(
            f"this plan needs {need / mib:.0f} MiB beside the {held / mib:.0f} MiB that this process holds, which is more than "
            f"its limit of {limit_bytes / mib:.0f} MiB; tune with a lower --memory"
        )
    choices = [Choice(layer.primitive, layer.config) for layer in plan.layers]
    return Program(network, plan.pooling, plan.input_shape(network.in_channels), choices, plan.threads)
