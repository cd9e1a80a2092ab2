"""What a worker process runs for the tuner on the GPU (`tuner.tasks` lists it with the rest)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from tuner.device_layer import DeviceClock, DeviceLayer, device_facts, the_device
from tuner.seeded_layer import sampled_error, seeded_layer
from znni.errors import RunFailed
from znni.gpu.device import DEVICE_ALIGNMENT_BYTES
from znni.gpu.operator import carved_bytes
from znni.layers import layer_of
from znni.primitives import get
from znni.timing import time_callable

OnSample = Callable[[float], object]

#: Of the seconds for samples, the share for those on the host's clock.
_SHARE_OF_WALL = 0.25
_MIB = 1 << 20


def device(payload: dict, on_sample: OnSample) -> dict:
    """What the device of this process is, which is opened where none is: ``name``, ``architecture``, ``driver``,
    ``total_bytes``, ``free_bytes``, ``simulated``."""
    return dict(device_facts(the_device()))


def device_ceilings(payload: dict, on_sample: OnSample) -> dict:
    """Peak rates of the device (`znni.gpu.ceilings.DeviceCeilings`)."""
    from znni.gpu.ceilings import measure_device_ceilings

    return asdict(measure_device_ceilings(the_device()))


def measure_device_layer(payload: dict, on_sample: OnSample) -> dict:
    """Time one GPU primitive on one layer, and see that it keeps its word on memory and computes what it should.

    Payload: as `tuner.tasks.measure_layer` has it.

    Result: ``timing`` (by the device's clock, calls in a row), ``clock`` ("device"), ``wall_s`` (median of one call by the
    host's clock, until it is done), ``cold_s`` (preparing, placing and the first call, which compile kernels and make
    tables), ``prepare_s``, ``predicted_bytes`` (of the host), ``predicted_device_bytes`` and ``measured_device_bytes``
    (resident and workspace; the latter is what was allocated at most beside input and output), ``beside_bytes`` (what the
    device had less free afterwards than that accounts for: modules, tables of libraries), ``relative_l2`` (None unless
    checked), ``simulated``.

    Raises
    ------
    DeviceMemory
        Where the device has too little free.
    DeviceError
        Where work on it failed.
    RunFailed
        Where it took more bytes than it said, left elements of the output unwritten or not finite, or missed the
        tolerance.
    """
    layer, shape = layer_of(payload["layer"]), tuple(payload["shape"])
    primitive, config = get(payload["primitive"]), payload["config"]
    primitive.refuse(layer, shape)
    x, weights = seeded_layer(layer, shape, payload.get("seed", 0))
    own = the_device()
    own.synchronise()
    own.reset_peak()
    held_bytes, free_bytes = own.peak_bytes, own.free_bytes()
    with DeviceLayer(own, primitive, layer, weights, x, config) as prepared:
        start = time.perf_counter()
        prepared.place()
        prepared.run()
        cold_s = prepared.prepare_s + time.perf_counter() - start
        cap_s = payload["cap_s"]
        timing = time_callable(
            prepared.call,
            cap_s=cap_s * (1 - _SHARE_OF_WALL),
            best_s=payload.get("best_s"),
            clock=DeviceClock(own),
            on_sample=on_sample,
        )
        wall = time_callable(prepared.run, cap_s=cap_s * _SHARE_OF_WALL)
        out = prepared.result()
        memory = prepared.operator.memory
        measured_bytes = own.peak_bytes - held_bytes - prepared.tensor_bytes
        beside_bytes = free_bytes - own.free_bytes() - (own.peak_bytes - held_bytes)
        error = None
        if not np.isfinite(out.sum(dtype=np.float64)):  # one value that is not makes the sum so
            raise RunFailed(f"{primitive.name} left values unwritten or not finite")
        own_bytes = memory.device_resident_bytes, memory.device_workspace_bytes
        predicted_bytes = sum(own_bytes)
        if measured_bytes > max(DEVICE_ALIGNMENT_BYTES, carved_bytes(own_bytes)):
            raise RunFailed(
                f"{primitive.name} took {measured_bytes / _MIB:.1f} MiB on the device, more than the "
                f"{predicted_bytes / _MIB:.1f} MiB that it said it would"
            )
        if payload.get("check"):
            error = sampled_error(layer, weights, x, out)
    tolerance = payload.get("tolerance", primitive.tolerance_of(config))
    if error is not None and not error <= tolerance:
        raise RunFailed(
            f"{primitive.name} computed something else: relative L2 error {error:.1e}, allowed {tolerance:.0e}"
        )
    return {
        "timing": timing.to_dict(),
        "clock": "device",
        "wall_s": wall.median_s,
        "cold_s": cold_s,
        "prepare_s": prepared.prepare_s,
        "predicted_bytes": memory.host_resident_bytes + memory.host_workspace_bytes,
        "measured_bytes": None,
        "predicted_device_bytes": predicted_bytes,
        "measured_device_bytes": max(0, measured_bytes),
        "beside_bytes": max(0, beside_bytes),
        "relative_l2": error,
        "simulated": own.simulated,
    }
