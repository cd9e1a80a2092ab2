"""The device of a command: opened where it needs one, released when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tuner.units import ALL, bytes_text
from znni.errors import MemoryLimit

if TYPE_CHECKING:
    from znni.gpu.device import Device
    from znni.plan import Plan

#: A process's context on the device is taken for what is not free beside it, but for no more than this.
_MOST_CONTEXT_BYTES = 1 << 30
_UNIT_BYTES = 1 << 28


def device_of(plan: Plan) -> str:
    """Where a plan computes: "cpu", "gpu", or "split" between both."""
    if plan.split is not None:
        return "split"
    return "gpu" if any(layer.primitive.startswith("gpu.") for layer in plan.layers) else "cpu"


def planned_device_bytes(plan: Plan) -> int:
    """What the plan takes on the device."""
    return plan.memory.get("device_arena_bytes", 0) + plan.memory.get("device_resident_bytes", 0)


@contextmanager
def opened_device() -> Iterator[Device]:
    """The device of this process, opened now and released afterwards; one that is open already is left open.

    Raises
    ------
    NoDevice
        Where there is none that can be used.
    """
    from znni.gpu.current import close_device, current, is_open, open_device

    if is_open():
        yield current()
        return
    device = open_device()
    try:
        yield device
    finally:
        close_device()


@contextmanager
def opened_for(plan: Plan) -> Iterator[Device | None]:
    """`opened_device` while a plan runs that computes on one; None for others."""
    if device_of(plan) == "cpu":
        yield None
        return
    with opened_device() as device:
        yield device


@contextmanager
def opened_within(wanted: int | str | None) -> Iterator[int | None]:
    """The limit on the device's memory that `wanted` comes to, the device being open meanwhile; None where it is None.

    ``"all"`` is what is free, less the contexts of two more processes, which measure layers beside the one that runs plans, in
    whole quarters of a GiB.

    Raises
    ------
    NoDevice
        Where a limit is given, and there is no device that can be used.
    MemoryLimit
        Where less is free than was asked for.
    """
    if wanted is None:
        yield None
        return
    with opened_device() as device:
        free_bytes = device.free_bytes()
        context_bytes = min(device.total_bytes - free_bytes, _MOST_CONTEXT_BYTES)
        most = max(1, free_bytes - 2 * context_bytes)
        if wanted == ALL:
            yield max(1, most // _UNIT_BYTES) * _UNIT_BYTES
            return
        if wanted > most:
            raise MemoryLimit(
                f"{bytes_text(wanted)} of GPU memory were asked for, but {bytes_text(most)} of {device.name} are free for a "
                "plan; use a lower --gpu-memory, or all"
            )
        yield wanted
