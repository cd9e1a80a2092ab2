"""Every candidate for one layer timed here and now, the hopeless ones for one call only, and what was found stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from znni.arena import aligned_empty
from znni.layers import Layer, Shape
from znni.machine import this_machine
from znni.predict import Measured, Predictor
from znni.prepared_conv import Option
from znni.primitives import Operator
from znni.store import OpenMeasurement, Store, measured_here
from znni.store_rows import MeasurementKey
from znni.timing import HOPELESS, interleave, time_callable

#: Seconds for which each candidate is timed at first.
SCREEN_S = 0.1
#: Candidates within this of the best go on to turns with each other, so many of them, and so many turns.
CLOSE, MOST_FINALISTS, ROUNDS = 1.25, 4, 7


def fastest(
    layer: Layer,
    weights: Mapping[str, np.ndarray],
    shape: Shape,
    options: Sequence[Option],
    threads: int,
    memory_bytes: int | None = None,
) -> Option:
    """The fastest of `options`, each timed within this process.

    Parameters
    ----------
    layer : Layer
    weights : mapping of arrays
    shape : (batch, channels, z, y, x)
    options : sequence of Option
    threads : int
    memory_bytes : int, optional
        What operators and workspace may take together while they are timed in turn; without room for two of them the
        first timing decides.

    Notes
    -----
    Likely ones come first. A config is skipped where a config of the same primitive that was timed before it makes it
    out to be `znni.timing.HOPELESS` times slower than the best; "auto" then predicts it from the same measurement. Those
    close to the best are then timed in turn. All samples go to the store, which is made where there is none yet.
    """
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    out = np.zeros(layer.output_shape(shape), np.float32)
    workspace = aligned_empty(max(option.memory.host_workspace_bytes for option in options))
    workspace[:] = 0  # no page is touched for the first time while the clock runs

    def prepared(option: Option) -> Callable[[], None]:
        operator = option.primitive.prepare(layer, weights, shape, option.config, threads)
        return _call(operator, x, out, workspace)

    likely = Predictor(threads, measured=measured_here(layer, threads))
    here = Predictor(threads)  # knows what is timed now, and nothing else
    order = sorted(options, key=lambda o: likely.seconds(o.primitive, layer, shape, o.config)[0])
    times: list[tuple[float, Option]] = []
    with Store() as store:
        for option in order:
            best_s = min((seconds for seconds, _ in times), default=None)
            if any(timed.primitive is option.primitive for _, timed in times):
                expected_s, _ = here.seconds(option.primitive, layer, shape, option.config)
                if expected_s > HOPELESS * best_s:
                    continue
            row = _row(store, layer, shape, option, threads)
            timing = time_callable(prepared(option), cap_s=SCREEN_S, best_s=best_s, on_sample=row.add_sample)
            row.finish(timing)
            times.append((timing.median_s, option))
            here.add(Measured(layer, shape, option.primitive.name, option.config, timing.median_s))
        finalists = _finalists(times, memory_bytes)
        if len(finalists) == 1:
            return finalists[0]
        rows = [_row(store, layer, shape, option, threads) for option in finalists]
        calls = [prepared(option) for option in finalists]
        timings = interleave(calls, ROUNDS, on_sample=lambda i, seconds: rows[i].add_sample(seconds))
        for row, timing in zip(rows, timings, strict=True):
            row.finish(timing)
        return min(zip(timings, finalists, strict=True), key=lambda pair: pair[0].median_s)[1]


def _call(operator: Operator, x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> Callable[[], None]:
    return lambda: operator(x, out, workspace)


def _finalists(times: Sequence[tuple[float, Option]], memory_bytes: int | None) -> list[Option]:
    """Those close to the best, best first, as many as fit beside each other."""
    ranked = sorted(times, key=lambda pair: pair[0])
    found = [option for seconds, option in ranked if seconds <= CLOSE * ranked[0][0]][:MOST_FINALISTS]
    while memory_bytes is not None and len(found) > 1:
        together = sum(o.memory.host_resident_bytes for o in found) + max(o.memory.host_workspace_bytes for o in found)
        if together <= memory_bytes:
            break
        found.pop()
    return found


def _row(store: Store, layer: Layer, shape: Shape, option: Option, threads: int) -> OpenMeasurement:
    machine = this_machine()
    key = MeasurementKey(
        layer, shape, option.primitive.name, option.config, threads, machine.fingerprint, machine.kernels
    )
    return store.open_measurement(key, predicted_bytes=option.held_bytes)
