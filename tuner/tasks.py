"""What a worker process runs for the tuner (`tuner.worker`): functions of a JSON payload and of ``on_sample``."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import math
import time
from collections.abc import Callable

import numpy as np

from tuner.device_layer import load_libraries, the_device
from tuner.device_tasks import device, device_ceilings, measure_device_layer
from tuner.plan_device import opened_for
from tuner.plan_runs import NOISE_VOXELS, PlanRuns
from tuner.seeded_layer import laid_out, sampled_error, seeded_layer
from znni.arena import aligned_empty
from znni.ceilings import measure_ceilings
from znni.errors import RunFailed
from znni.layers import layer_of
from znni.layouts import array_shape, layouts_of, unpacked
from znni.primitives import get
from znni.process_memory import peak_resident_bytes, reset_peak, resident_bytes
from znni.timing import summarise, time_callable

OnSample = Callable[[float], object]

#: What a measured peak may exceed a prediction by: the kernels' own code and the threads' stacks, where this is their
#: first use (3.3 MiB were seen), and rounding to huge pages.
MEMORY_SLACK_BYTES = 8 << 20
_MIB = 1 << 20


def ping(payload: dict, on_sample: OnSample) -> dict:
    """The payload itself."""
    return payload


def ceilings(payload: dict, on_sample: OnSample) -> dict:
    """Peak FLOP/s and bytes/s of ``threads`` threads; ``l3_bytes`` sizes the arrays (`znni.ceilings`)."""
    found = measure_ceilings(payload["threads"], payload.get("l3_bytes", 0))
    return {"flop_per_s": found.flop_per_s, "bytes_per_s": found.bytes_per_s, "disturbed": found.disturbed}


def measure_layer(payload: dict, on_sample: OnSample) -> dict:
    """Time one primitive on one layer, and see that it keeps its word on memory and computes what it should.

    One on the GPU is measured by `tuner.device_tasks.measure_device_layer`, whose result says more.

    Payload: ``layer`` (as `znni.layers.describe`), ``shape`` (of its input), ``primitive``, ``config``, ``threads``,
    ``cap_s``, and optionally ``best_s`` (`znni.timing.time_callable`), ``seed`` (0), ``check`` (false: compare sampled
    output voxels with float64) and ``tolerance`` of that comparison (the primitive's own).

    Result: ``timing`` (`Timing.to_dict`), ``prepare_s``, ``prepare_peak_bytes`` (what preparing took at most),
    ``predicted_bytes`` and ``measured_bytes`` (resident and workspace; the latter is what the process grew by at most
    during the first call), ``relative_l2`` (None unless checked).

    Raises
    ------
    RunFailed
        Where it took more bytes than it said, left elements of the output unwritten or not finite, or missed the
        tolerance.
    """
    layer, shape = layer_of(payload["layer"]), tuple(payload["shape"])
    primitive = get(payload["primitive"])
    if primitive.device == "gpu":
        return measure_device_layer(payload, on_sample)
    primitive.refuse(layer, shape)
    x, weights = seeded_layer(layer, shape, payload.get("seed", 0))
    takes, gives = layouts_of(payload["config"])
    given = laid_out(x, takes)
    out = np.full(array_shape(layer.output_shape(shape), gives), np.nan, np.float32)

    _give_back_freed_memory()
    before = resident_bytes()
    reset_peak()
    start = time.perf_counter()
    operator = primitive.prepare(layer, weights, shape, payload["config"], payload["threads"])
    prepare_s = time.perf_counter() - start
    prepare_peak_bytes = max(0, peak_resident_bytes() - before)
    predicted_bytes = operator.memory.host_resident_bytes + operator.memory.host_workspace_bytes
    workspace = aligned_empty(operator.memory.host_workspace_bytes)

    reset_peak()
    peaks: list[int] = []

    def call() -> None:
        operator(given, out, workspace)
        if not peaks:  # the first call touches all it ever will, and statistics have not begun to take memory
            peaks.append(peak_resident_bytes())

    timing = time_callable(call, cap_s=payload["cap_s"], best_s=payload.get("best_s"), on_sample=on_sample)
    measured_bytes = max(0, peaks[0] - before)

    if not np.isfinite(out.sum(dtype=np.float64)):  # one value that is not makes the sum so
        raise RunFailed(f"{primitive.name} left values unwritten or not finite")
    if measured_bytes > predicted_bytes + MEMORY_SLACK_BYTES and not primitive.foreign:
        raise RunFailed(
            f"{primitive.name} took {measured_bytes / _MIB:.1f} MiB, more than the {predicted_bytes / _MIB:.1f} MiB "
            "that it said it would"
        )
    error = None
    if payload.get("check"):
        error = sampled_error(layer, weights, x, unpacked(out, layer.output_shape(shape)[1], gives))
    tolerance = payload.get("tolerance", primitive.tolerance_of(payload["config"]))
    if error is not None and not error <= tolerance:
        raise RunFailed(
            f"{primitive.name} computed something else: relative L2 error {error:.1e}, allowed {tolerance:.0e}"
        )
    return {
        "timing": timing.to_dict(),
        "prepare_s": prepare_s,
        "prepare_peak_bytes": prepare_peak_bytes,
        "predicted_bytes": predicted_bytes,
        "measured_bytes": measured_bytes,
        "relative_l2": error,
    }


def _give_back_freed_memory() -> None:
    """What earlier tasks freed, but malloc still holds, would hide what this one takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim:
        trim(0)


def run_plan(payload: dict, on_sample: OnSample) -> dict:
    """Run a plan end to end on patches of noise, in a process that ran nothing else, so that the peak is its own.

    Payload: ``plan`` (a path, or the plan's JSON data), ``rounds`` (samples wanted), and optionally ``cap_s`` (seconds
    after which none is begun), ``network`` (``source``, ``weights``, ``seed``, ``width`` of `znni.load.load`; what
    the plan names), ``limit_bytes`` (of this process), ``seed`` (0), ``as_run`` (false: first import all that
    ``znni-tune run`` may need) and ``outer`` (rounds of the plan's outermost loop to run, whose rounds are alike; seconds are
    then what all would take).

    Result: ``seconds`` (of each run, filling the input not timed; of a split plan, from one patch's result to the next
    one's in a stream of patches), ``median_s``, ``iqr_s``, ``interval_s``, ``single`` (only one sample, because the plan
    takes seconds or the cap allowed no more), ``share`` (of all rounds that was run), ``voxels`` (output voxels of one
    run), ``steps`` ({name: median seconds}), ``baseline_bytes`` (resident before the program was made), ``peak_bytes``
    (of the process, from its start), ``peak_device_bytes`` (what it allocated there at most).

    Raises
    ------
    MemoryLimit
        Where the plan needs more than is free, or than ``limit_bytes``; on the device, too.
    NoDevice
        Where it needs one, and there is none.
    PlanMismatch
        Where it belongs to another network, or cannot run here.
    RunFailed
        Where its output is not finite.
    """
    from znni.plan import Plan

    if payload.get("as_run"):
        _import_what_running_needs()
    given = payload["plan"]
    plan = Plan.read(given) if isinstance(given, str) else Plan.from_dict(given)
    plan.bind(_network(payload.get("network") or plan.network))
    with opened_for(plan) as own_device:
        if own_device:
            load_libraries(own_device)
            own_device.reset_peak()
        baseline_bytes = resident_bytes()
        program = plan.program(payload.get("limit_bytes"))
        noise = np.random.default_rng(payload.get("seed", 0)).standard_normal(NOISE_VOXELS, dtype=np.float32)
        runs = PlanRuns(plan, program, noise)
        runs.take(payload["rounds"], payload.get("cap_s", math.inf), payload.get("outer"), on_sample)
        peak_bytes = peak_resident_bytes()
        peak_device_bytes = own_device.peak_bytes if own_device else 0
        finite = bool(np.isfinite(program.output.sum(dtype=np.float64)))
        steps = {call.node.name: seconds for call, seconds in zip(program.calls, runs.step_seconds(), strict=True)}
    if not finite:
        raise RunFailed("the plan's output holds values that are not finite")
    summary = summarise(runs.seconds)
    return {
        "seconds": runs.seconds,
        "median_s": summary.median_s,
        "iqr_s": summary.iqr_s,
        "interval_s": summary.interval_s,
        "single": len(runs.seconds) == 1,
        "share": runs.share,
        "voxels": plan.batch * int(np.prod(plan.output_patch)),
        "steps": steps,
        "baseline_bytes": baseline_bytes,
        "peak_bytes": peak_bytes,
        "peak_device_bytes": peak_device_bytes,
    }


def baseline(payload: dict, on_sample: OnSample) -> dict:
    """What ``znni-tune run`` takes before a plan's program: interpreter, modules and the ``network`` of the payload; with
    ``gpu``, the device's context and libraries as well.

    Result: ``resident_bytes``, and ``peak_bytes``, which loading the network may have made larger for a moment.
    """
    _import_what_running_needs()
    network = _network(payload["network"])
    if payload.get("gpu"):
        load_libraries(the_device())
    found = {"resident_bytes": resident_bytes(), "peak_bytes": peak_resident_bytes()}
    return found | {"weight_bytes": network.weight_bytes}


def _network(source: dict):
    from znni.load import load

    return load(source["source"], weights=source.get("weights"), seed=source.get("seed"), width=source.get("width"))


def _import_what_running_needs() -> None:
    for module in ("tuner.cli", "tuner.commands", "znni.volume", "znni.volume_files", "znni.execute", "znni.machine"):
        importlib.import_module(module)
    for module in ("h5py", "tifffile"):
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)


run_plan.needs_fresh_process = True
baseline.needs_fresh_process = True

TASKS = {task.__name__: task for task in (ping, ceilings, device, device_ceilings, measure_layer, run_plan, baseline)}
