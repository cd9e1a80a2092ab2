"""What a worker process runs in tests: the tuner's tasks, on a simulated device that can be told to fail."""

from __future__ import annotations

import json
import os
from pathlib import Path

from simulated import SimulatedDevice

import znni.gpu
from tuner.tasks import TASKS as OWN
from znni import errors

DEVICE = SimulatedDevice(int(os.environ.get("SIMULATED_BYTES", 1 << 30)))
_opened = znni.gpu.use(DEVICE)
_opened.__enter__()


def fail_next(payload: dict, on_sample: object) -> dict:
    """Make a call fail, as `SimulatedDevice.fail_next`."""
    own = dict(payload)
    DEVICE.fail_next(own.pop("what"), getattr(errors, own.pop("error")), **own)
    return {}


def used_bytes(payload: dict, on_sample: object) -> dict:
    """What is allocated."""
    return {"bytes": DEVICE.memory.used_bytes}


if "SIMULATED_FAULT" in os.environ:  # of the first few processes
    _fault = json.loads(os.environ["SIMULATED_FAULT"])
    _number, _few = len(os.listdir(_fault["folder"])), _fault.pop("processes")
    Path(_fault.pop("folder"), str(_number)).touch()
    if _number < _few:
        fail_next(_fault, None)

TASKS = OWN | {"fail_next": fail_next, "used_bytes": used_bytes}
