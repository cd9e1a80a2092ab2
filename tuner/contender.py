"""What a contender of a benchmark does in its worker process (`tuner.worker`): prepare once, then take turns.

    prepare  spec -> {"predicted_bytes", "measured_bytes", "first_s", ..}
    time     {"fill_s"} -> {"seconds", "wall_s", "peak_bytes"}
    check    {} -> {"relative_l2"}

A spec names a layer and what computes it (`layer_spec`), a plan file (`plan_spec`), or a network (`network_spec`).
Inputs and weights follow from a seed, so that every contender computes the same. On the GPU seconds are those of the
device's clock, and ``wall_s`` those of the host's, until all is done; elsewhere ``wall_s`` is empty.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tuner.sampled_truth import relative_l2, truth_at, written_points
from tuner.seeded_layer import CHECKED_VOXELS, laid_out, seeded_layer
from znni.arena import aligned_empty
from znni.errors import RunFailed, ZnniError
from znni.layers import Layer, Shape, describe, layer_of
from znni.layouts import PLAIN, array_shape, layouts_of
from znni.process_memory import peak_resident_bytes, reset_peak, resident_bytes

if TYPE_CHECKING:
    from znni.primitives import Primitive

#: Calls of one turn at most.
MOST_CALLS = 100
_SEED = 20160611


def layer_spec(layer: Layer, shape: Shape, threads: int, *, primitive: str = "", config: dict | None = None,
               peer: str = "") -> dict:  # fmt: skip
    """What a contender is told to run: `layer` on an input of `shape`, by a primitive or a peer."""
    by = {"peer": peer} if peer else {"primitive": primitive, "config": dict(config or {})}
    return {"layer": describe(layer), "shape": list(shape), "threads": threads, **by}


def plan_spec(path: str) -> dict:
    """What a contender is told to run a plan end to end."""
    return {"plan": path}


def network_spec(network: dict, peer: str, device_bytes: int | None, cap_s: float) -> dict:
    """What a contender is told to run a whole network by PyTorch on the GPU, at its best patch: ``output``, once known."""
    return {"network": network, "peer": peer, "device_bytes": device_bytes, "cap_s": cap_s}


def network_patch_spec(network: dict, peer: str, shape: Shape, threads: int, voxels: int) -> dict:
    """What a contender is told to run a whole network by a library on the CPU, on inputs of `shape`."""
    return {"network": network, "peer": peer, "shape": list(shape), "threads": threads, "voxels": voxels}


@dataclass
class _Contender:
    #: Takes one sample or a few: seconds of a call, and those by the host's clock where the first are not.
    sample: Callable[[], tuple[list[float], list[float]]]
    check: Callable[[], float | None]
    facts: dict
    #: Seconds that a sample takes.
    last_s: float = 0.0
    close: Callable[[], object] = lambda: None


@lru_cache(maxsize=1)
def _inputs(layer: Layer, shape: Shape, layout: str) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """The seeded input, the weights, and the input in that layout; kept, since configs are tried one after another."""
    x, weights = seeded_layer(layer, shape, _SEED)
    return x, weights, laid_out(x, layout)


def _prepare_layer(spec: dict) -> _Contender:
    layer, shape = layer_of(spec["layer"]), tuple(spec["shape"])
    if "peer" in spec:
        return _prepare_peer(spec, layer, shape)
    from znni.primitives import get

    primitive, config = get(spec["primitive"]), spec["config"]
    primitive.refuse(layer, shape)
    if primitive.device == "gpu":
        return _prepare_on_device(primitive, layer, shape, config)
    points = written_points(layer, shape, CHECKED_VOXELS)
    takes, gives = layouts_of(config)
    x, weights, given = _inputs(layer, shape, takes)
    out_shape = layer.output_shape(shape)
    out = np.full(array_shape(out_shape, gives), np.nan, np.float32)
    if primitive.foreign:
        primitive.load(spec["threads"])
    held = _mark()
    operator = primitive.prepare(layer, weights, shape, config, spec["threads"])
    workspace = aligned_empty(operator.memory.host_workspace_bytes)

    def run() -> None:
        operator(given, out, workspace)

    _mark()  # what preparing took for a moment is not what it holds and wants
    first_s = _seconds(run)
    measured = None if held is None else max(0, peak_resident_bytes() - held)
    facts = {
        "predicted_bytes": operator.memory.host_workspace_bytes + operator.memory.host_resident_bytes,
        "measured_bytes": measured,
        "first_s": first_s,
    }

    def error() -> float:
        found = out[points[:, 0], :, points[:, 1], points[:, 2], points[:, 3]]
        return relative_l2(found.reshape(len(points), -1)[:, : out_shape[1]], truth_at(layer, weights, x, points))

    return _Contender(lambda: ([_seconds(run)], []), error, facts, first_s)


def _prepare_peer(spec: dict, layer: Layer, shape: Shape) -> _Contender:
    from tuner.peers import prepare_peer

    points = written_points(layer, shape, CHECKED_VOXELS)
    x, weights, _ = _inputs(layer, shape, PLAIN)
    prepared = prepare_peer(spec["peer"], layer, weights, x, spec["threads"])
    held = _mark()
    cold_s = _seconds(prepared.run)
    # It allocates its own result, which no primitive counts as its own.
    tensor = 4 * int(np.prod(layer.output_shape(shape)))
    facts = {"predicted_bytes": None, "measured_bytes": None, "first_s": cold_s}

    def error() -> float:
        found = prepared.result()[points[:, 0], :, points[:, 1], points[:, 2], points[:, 3]]
        return relative_l2(found, truth_at(layer, weights, x, points))

    if prepared.timed is None:
        facts["measured_bytes"] = None if held is None else max(0, peak_resident_bytes() - held - tensor)
        return _Contender(lambda: ([_seconds(prepared.run)], []), error, facts, cold_s)
    facts |= {"cold_s": cold_s, "measured_device_bytes": max(0, prepared.device_bytes() - x.nbytes - tensor)}
    return _on_device(prepared.timed, error, facts)


def _prepare_on_device(primitive: Primitive, layer: Layer, shape: Shape, config: dict) -> _Contender:
    from tuner.device_layer import DeviceLayer, the_device

    points = written_points(layer, shape, CHECKED_VOXELS)
    x, weights, _ = _inputs(layer, shape, PLAIN)
    device = the_device()
    device.reset_peak()
    held = device.peak_bytes
    prepared = DeviceLayer(device, primitive, layer, weights, x, config)
    try:
        cold_s = prepared.prepare_s + _seconds(prepared.place) + _seconds(prepared.run)
        memory = prepared.operator.memory
        facts = {
            "predicted_bytes": memory.host_workspace_bytes + memory.host_resident_bytes,
            "measured_bytes": None,
            "predicted_device_bytes": memory.device_workspace_bytes + memory.device_resident_bytes,
            "measured_device_bytes": device.peak_bytes - held - prepared.tensor_bytes,
            "cold_s": cold_s,
            "simulated": device.simulated,
        }

        def error() -> float:
            found = prepared.result()[points[:, 0], :, points[:, 1], points[:, 2], points[:, 3]]
            return relative_l2(found, truth_at(layer, weights, x, points))

        return _on_device(prepared.sample, error, facts, prepared.close)
    except BaseException:
        prepared.close()
        raise


def _on_device(
    timed: Callable[[int], tuple[float, float]],
    error: Callable[[], float],
    facts: dict,
    close: Callable[[], object] = lambda: None,
) -> _Contender:
    """Samples of so many calls in a row that each is long enough; the first call was the cold one."""
    from tuner.device_layer import calls_for

    seconds, first_s = timed(1)
    calls = calls_for(seconds)

    def sample() -> tuple[list[float], list[float]]:
        device_s, wall_s = timed(calls)
        return [device_s], [wall_s]

    return _Contender(sample, error, facts | {"first_s": first_s}, calls * first_s, close)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _mark() -> int | None:
    """Bytes held now, from which on the peak counts; None where this system cannot tell."""
    try:
        reset_peak()
    except ZnniError:
        return None
    return resident_bytes()


def _prepare_plan(spec: dict) -> _Contender:
    from tuner.plan_device import opened_for
    from tuner.plan_runs import NOISE_VOXELS, PlanRuns
    from znni.plan import Plan

    plan = Plan.load(spec["plan"])
    opened = opened_for(plan)
    device = opened.__enter__()
    if device:
        device.reset_peak()
    program = plan.program(plan.limits["host_bytes"])
    noise = np.random.default_rng(_SEED).random(NOISE_VOXELS, dtype=np.float32)
    runs = PlanRuns(plan, program, noise)
    voxels = plan.batch * int(np.prod(plan.output_patch))
    facts = {"voxels": voxels}
    if device:
        facts |= {"peak_device_bytes": device.peak_bytes, "simulated": device.simulated}
    return _Contender(
        lambda: (runs.sample(1), []), lambda: None, facts, close=lambda: opened.__exit__(None, None, None)
    )


def _prepare_network(spec: dict) -> _Contender:
    from tuner.torch_network import prepare_network_on_cuda
    from znni.load import load

    source = spec["network"]
    network = load(source["source"], source.get("weights"), source.get("seed"), source.get("width"))
    given = tuple(spec["output"]) if "output" in spec else None
    found = prepare_network_on_cuda(spec["peer"], network, spec["device_bytes"], spec["cap_s"], given)
    if found is None:
        raise RunFailed(f"no patch of {network.name} fits by {spec['peer']}")
    prepared, output = found
    cold_s = _seconds(prepared.run)
    facts = {
        "voxels": int(np.prod(output)), "output": list(output), "cold_s": cold_s, "peak_device_bytes": prepared.device_bytes()
    }  # fmt: skip
    return _on_device(prepared.timed, lambda: None, facts)


def _prepare_network_here(spec: dict) -> _Contender:
    from tuner.network_peers import prepare_network
    from znni.load import load

    source = spec["network"]
    network = load(source["source"], source.get("weights"), source.get("seed"), source.get("width"))
    prepared = prepare_network(spec["peer"], network, source, tuple(spec["shape"]), spec["threads"])
    cold_s = _seconds(prepared.run)
    facts = {"voxels": spec["voxels"], "output": list(prepared.result().shape[2:]), "cold_s": cold_s}
    return _Contender(lambda: ([_seconds(prepared.run)], []), lambda: None, facts, cold_s)


def _timed(contender: _Contender, fill_s: float) -> tuple[list[float], list[float]]:
    """Seconds of as many calls as fill `fill_s`, at least one. Short ones warm up first: others have had the caches."""
    if contender.last_s < fill_s:
        contender.sample()
    seconds, walls, spent_s = [], [], 0.0
    while len(seconds) < MOST_CALLS and (not seconds or spent_s < fill_s):
        own, wall = contender.sample()
        seconds += own
        walls += wall
        # a sample on a device is of many calls
        spent_s += max(sum(wall or own), contender.last_s if wall else 0.0)
    contender.last_s = contender.last_s if walls else seconds[-1]
    return seconds, walls


#: The one thing that this process has prepared.
_prepared: list[_Contender] = []


def _preparing(payload: dict) -> Callable[[dict], _Contender]:
    if "plan" in payload:
        return _prepare_plan
    if "network" in payload:
        return _prepare_network_here if "shape" in payload else _prepare_network
    return _prepare_layer


def _prepare(payload: dict, on_sample: Callable) -> dict:
    while _prepared:  # let go of the one before
        _prepared.pop().close()
    _prepared.append(_preparing(payload)(payload))
    return _prepared[0].facts


def _time(payload: dict, on_sample: Callable) -> dict:
    seconds, walls = _timed(_prepared[0], payload["fill_s"])
    return {"seconds": seconds, "wall_s": walls, "peak_bytes": peak_resident_bytes()}


def _check(payload: dict, on_sample: Callable) -> dict:
    return {"relative_l2": _prepared[0].check()}


TASKS = {"prepare": _prepare, "time": _time, "check": _check}
