"""What a contender of a benchmark does in its worker process (`tuner.worker`): prepare once, then take turns.

    prepare  spec -> {"predicted_bytes", "measured_bytes", "first_s", ..}
    time     {"fill_s"} -> {"seconds", "peak_bytes"}
    check    {} -> {"relative_l2"}

A spec names a layer and what computes it (`layer_spec`), or a plan file (`plan_spec`). Inputs and weights follow from a
seed, so that every contender computes the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tuner.sampled_truth import relative_l2, truth_at, written_points
from tuner.tasks import CHECKED_VOXELS, seeded_layer
from znni.arena import aligned_empty
from znni.errors import ZnniError
from znni.layers import Layer, Shape, describe, layer_of
from znni.layouts import PLAIN, array_shape, layouts_of, packed
from znni.process_memory import peak_resident_bytes, reset_peak, resident_bytes

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


@dataclass
class _Contender:
    run: Callable[[], object]
    check: Callable[[], float | None]
    facts: dict
    #: What must be done before each run, and is not timed.
    refill: Callable[[], object] = lambda: None
    last_s: float = 0.0


@lru_cache(maxsize=1)
def _inputs(layer: Layer, shape: Shape, layout: str) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """The seeded input, the weights, and the input in that layout; kept, since configs are tried one after another."""
    x, weights = seeded_layer(layer, shape, _SEED)
    return x, weights, x if layout == PLAIN else packed(x, layout)


def _prepare_layer(spec: dict) -> _Contender:
    layer, shape = layer_of(spec["layer"]), tuple(spec["shape"])
    out_shape = layer.output_shape(shape)
    points = written_points(layer, shape, CHECKED_VOXELS)
    if "peer" in spec:
        from tuner.peers import prepare_peer

        x, weights, _ = _inputs(layer, shape, PLAIN)
        prepared = prepare_peer(spec["peer"], layer, weights, x, spec["threads"])
        held = _mark()
        first_s = _seconds(prepared.run)
        # It allocates its own result, which no primitive counts as its own.
        measured = None if held is None else peak_resident_bytes() - held - 4 * int(np.prod(out_shape))
        run, predicted = prepared.run, None

        def found() -> np.ndarray:
            return prepared.result()[points[:, 0], :, points[:, 1], points[:, 2], points[:, 3]]

    else:
        from znni.primitives import get

        takes, gives = layouts_of(spec["config"])
        x, weights, given = _inputs(layer, shape, takes)
        out = np.full(array_shape(out_shape, gives), np.nan, np.float32)
        primitive = get(spec["primitive"])
        primitive.refuse(layer, shape)
        if primitive.foreign:
            primitive.load(spec["threads"])
        held = _mark()
        operator = primitive.prepare(layer, weights, shape, spec["config"], spec["threads"])
        workspace = aligned_empty(operator.memory.host_workspace_bytes)
        predicted = operator.memory.host_workspace_bytes + operator.memory.host_resident_bytes

        def run() -> None:
            operator(given, out, workspace)

        _mark()  # what preparing took for a moment is not what it holds and wants
        first_s = _seconds(run)
        measured = None if held is None else peak_resident_bytes() - held

        def found() -> np.ndarray:
            sampled = out[points[:, 0], :, points[:, 1], points[:, 2], points[:, 3]]
            return sampled.reshape(len(points), -1)[:, : out_shape[1]]

    facts = {
        "predicted_bytes": predicted,
        "measured_bytes": None if measured is None else max(0, measured),
        "first_s": first_s,
    }
    return _Contender(run, lambda: relative_l2(found(), truth_at(layer, weights, x, points)), facts, last_s=first_s)


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
    from znni.plan import Plan

    plan = Plan.load(spec["plan"])
    program = plan.program(plan.limits["host_bytes"])
    rng = np.random.default_rng(_SEED)
    voxels = plan.batch * int(np.prod(plan.output_patch))

    def refill() -> None:
        rng.random(out=program.input, dtype=np.float32)

    return _Contender(program.run, lambda: None, {"voxels": voxels}, refill)


def _timed(contender: _Contender, fill_s: float) -> list[float]:
    """Seconds of as many calls as fill `fill_s`, at least one. Short ones warm up first: others have had the caches."""
    if contender.last_s < fill_s:
        contender.refill()
        contender.run()
    seconds = []
    while len(seconds) < MOST_CALLS and (not seconds or sum(seconds) < fill_s):
        contender.refill()
        seconds.append(_seconds(contender.run))
    contender.last_s = seconds[-1]
    return seconds


#: The one thing that this process has prepared.
_prepared: list[_Contender] = []


def _prepare(payload: dict, on_sample: Callable) -> dict:
    _prepared.clear()  # let go of the one before
    _prepared.append(_prepare_plan(payload) if "plan" in payload else _prepare_layer(payload))
    return _prepared[0].facts


def _time(payload: dict, on_sample: Callable) -> dict:
    return {"seconds": _timed(_prepared[0], payload["fill_s"]), "peak_bytes": peak_resident_bytes()}


def _check(payload: dict, on_sample: Callable) -> dict:
    return {"relative_l2": _prepared[0].check()}


TASKS = {"prepare": _prepare, "time": _time, "check": _check}
