"""The contract of `znni.primitives.base`, kept by every registered primitive: one is tested by being registered."""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import sys
import threading
import tracemalloc
from collections import Counter
from math import isfinite, prod

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from znni.errors import InvalidShape, Unsupported
from znni.layers import KINDS, MaxPool, Slice, Softmax
from znni.layouts import array_shape, packed, unpacked, with_layouts
from znni.primitives import config_key, get, registered
from znni.primitives.base import Memory
from znni.process_memory import peak_resident_bytes, reset_peak, resident_bytes

from .cases import LARGE, MISFITS, SMALL, Arrays, Case, cases, each
from .guarded import ALL_ONES, Canary, stay_within
from .truth import truth

NAMES = sorted(name for name, primitive in registered().items() if primitive.device == "cpu")
EXAMPLES = int(os.environ.get("ZNNI_EXAMPLES", "60"))
#: What a call may take beside what it announced: Python's and the OpenMP runtime's own.
SLACK_BYTES = 1 << 20

every_primitive = pytest.mark.parametrize("name", NAMES)
drawn = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_every_kind_of_layer_has_cases():
    for have in (SMALL, LARGE, MISFITS):
        assert set(have) == set(KINDS)


def case_values(case: Case) -> int:
    """Values that the layer reads."""
    return sum(map(prod, case.layer.input_shapes(case.shape)))


def packed_all(values: Arrays, layout: str) -> Arrays:
    """An array, or each of a tuple of them, in `layout`."""
    return each(lambda own: packed(own, layout), values)


def error_of(case: Case, out: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 error. Results of layers with weights, or of several tensors, are of about unit variance before
    activation, others of that of a mean over so many values: few, or small, ones are measured against that, since their own
    norm may be next to nothing by chance."""
    least = 1e-300
    if hasattr(case.layer, "weight_shapes") or case.layer.joins:
        least = out.size**0.5
    elif not isinstance(case.layer, Softmax):
        least = out.size**0.5 * min(1.0, out.size / case_values(case)) ** 0.5
    return float(np.linalg.norm(out - expected) / max(np.linalg.norm(expected), least))


def run(primitive, case: Case, config, threads: int, seed: int = 0, offset: int = 0) -> float:
    """The error of one operator, called twice, whose arrays lie between guard zones; checks all that a call can show."""
    values, weights = case.arrays(seed)
    originals = {name: array.copy() for name, array in weights.items()}
    operator = primitive.prepare(case.layer, weights, case.shape, config, threads)
    memory = primitive.memory(case.layer, case.shape, config, threads)
    assert operator.memory == memory
    assert operator.out_shape == case.layer.output_shape(case.shape)
    if not primitive.foreign:
        assert sum(array.nbytes for array in operator.resident_arrays) == memory.host_resident_bytes
    given = each(lambda own: packed(own, operator.takes), values if case.layer.joins else (values,))
    canaries = [Canary(own.shape, offset=offset, guard=ALL_ONES) for own in given]
    for canary, own in zip(canaries, given, strict=True):
        canary.array[:] = own
    x = tuple(canary.array for canary in canaries) if case.layer.joins else canaries[0].array
    results = []
    for again in (False, True):
        out = Canary(array_shape(operator.out_shape, operator.gives), offset=offset)
        workspace = Canary((memory.host_workspace_bytes,), np.uint8)
        if again:
            workspace.array[:] = 0x3F  # other garbage than NaN: as float32, 0.747
        operator(x, out.array, workspace.array)
        for canary, own in zip(canaries, given, strict=True):
            assert canary.intact and np.array_equal(canary.array, own), "x, or memory beside it, was written"
        assert out.intact, "memory beside out was written"
        assert workspace.intact, "memory beside the workspace was written"
        assert not np.isnan(out.array).any(), "out has elements that were not written, or come of memory that is not x"
        results.append(out.array)
    assert np.array_equal(*(r.view(np.uint32) for r in results)), "the same call gave other bits the second time"
    for key, array in weights.items():
        assert np.array_equal(array, originals[key]), f"{key} was written"
    result = unpacked(results[0], operator.out_shape[1], operator.gives)
    assert np.array_equal(packed(result, operator.gives), results[0]), "lanes beyond the last channel are not zero"
    return error_of(case, result, truth(case.layer, weights, values))


def all_configs(primitive, case: Case) -> list:
    """Every config, in every pair of layouts."""
    configs = primitive.configs(case.layer, case.shape)
    return [with_layouts(config, *pair) for config in configs for pair in primitive.layouts]


def check_figures(primitive, case: Case, config) -> None:
    """Memory and cost are sane, and the config is what can be stored."""
    assert json.loads(config_key(config)) == json.loads(json.dumps(dict(config)))
    assert config_key(json.loads(config_key(config))) == config_key(config)
    memory = primitive.memory(case.layer, case.shape, config, 2)
    assert isinstance(memory, Memory) and memory == primitive.memory(case.layer, case.shape, config, 2)
    assert all(isinstance(n, int) and n >= 0 for n in vars(memory).values()), memory
    assert primitive.memory(case.layer, case.shape, config, 1).host_workspace_bytes <= memory.host_workspace_bytes
    cost = primitive.cost(case.layer, case.shape, config)
    assert isfinite(cost.flop) and isfinite(cost.moved_bytes)
    assert cost.flop > 0 if hasattr(case.layer, "weight_shapes") else cost.flop >= 0
    result = prod(case.layer.output_shape(case.shape))
    read = result if isinstance(case.layer, Slice) else case_values(case)  # a slice leaves the rest alone
    assert cost.moved_bytes >= 4 * (read + result)


def refusal(primitive, case: Case) -> str | None:
    """Why the primitive does not support the case, where it does not: said alike by `supports` and by `prepare`."""
    reason = primitive.supports(case.layer, case.shape)
    if reason is None:
        return None
    assert isinstance(reason, str) and len(reason.split()) > 2, f"not a reason in words: {reason!r}"
    _, weights = case.arrays(0)
    with pytest.raises(Unsupported) as error:
        primitive.prepare(case.layer, weights, case.shape, {}, 1)
    assert reason in str(error.value) and primitive.name in str(error.value)
    return reason


@every_primitive
def test_computes_its_layers(name):
    primitive, tally = get(name), Counter()

    @drawn
    @given(
        case=cases(primitive.kind),
        pick=st.integers(0, 999),
        threads=st.integers(1, 3),
        seed=st.integers(0, 99),
        offset=st.sampled_from([0, 0, 4, 20]),
    )
    def check(case, pick, threads, seed, offset):
        if reason := refusal(primitive, case):
            tally["refused"] += 1
            event(f"refused: {reason}")
            return
        tally["computed"] += 1
        configs = all_configs(primitive, case)
        assert configs, "supported, but without a config"
        config = configs[pick % len(configs)]
        check_figures(primitive, case, config)
        assert run(primitive, case, config, threads, seed, offset) <= primitive.tolerance

    check()
    assert tally["computed"], f"{name} refused all of {tally['refused']} layers"


@every_primitive
def test_computes_with_every_config(name):
    primitive = get(name)
    supported = [case for case in SMALL[primitive.kind] if not refusal(primitive, case)]
    assert supported
    for case in supported:
        for config in all_configs(primitive, case):
            check_figures(primitive, case, config)
            assert run(primitive, case, config, threads=2) <= primitive.tolerance, (case, config)


@every_primitive
def test_threads_beyond_the_work_do_no_harm(name):
    primitive = get(name)
    for case in SMALL[primitive.kind]:
        if not primitive.supports(case.layer, case.shape):
            assert run(primitive, case, all_configs(primitive, case)[0], threads=7) <= primitive.tolerance


@every_primitive
def test_refuses_other_layers(name):
    primitive = get(name)
    other = Softmax() if primitive.kind != "softmax" else MaxPool((2, 2, 2), (2, 2, 2))
    with pytest.raises(Unsupported, match=f"{name} cannot compute this {other.kind}.*{primitive.kind}"):
        primitive.prepare(other, {}, (1, 2, 4, 4, 4), {}, 1)


@every_primitive
def test_refuses_shapes_that_do_not_fit(name):
    primitive = get(name)
    for case in MISFITS[primitive.kind]:
        assert refusal(primitive, case), f"it supports {case}"


def every_other_of_two(x: np.ndarray) -> np.ndarray:
    """As large as x, but not contiguous."""
    return np.asfortranarray(np.concatenate([x] * 2, axis=4))[:, :, :, :, ::2]


@every_primitive
def test_refuses_arrays_it_was_not_prepared_for(name):
    primitive = get(name)
    case = next(c for c in SMALL[primitive.kind] if not primitive.supports(c.layer, c.shape))
    values, weights = case.arrays(0)
    operator = primitive.prepare(case.layer, weights, case.shape, all_configs(primitive, case)[0], threads=2)
    need = operator.memory.host_workspace_bytes
    x = packed_all(values, operator.takes)
    out = Canary(array_shape(operator.out_shape, operator.gives)).array
    workspace = Canary((need,), np.uint8).array
    said = r"was prepared for \d+x.* got \d+x"
    with pytest.raises(InvalidShape, match=said):
        operator(each(lambda own: own[:, :, :, :, 1:].copy(), x), out, workspace)
    if isinstance(x, tuple):
        with pytest.raises(InvalidShape, match=said):
            operator((*x, x[0]), out, workspace)
    with pytest.raises(InvalidShape, match=said):
        operator(x, np.concatenate([out, out]), workspace)
    if need:
        with pytest.raises(InvalidShape, match=rf"needs a workspace of {need} bytes, got {need - 1}"):
            operator(x, out, workspace[: need - 1])
    with pytest.raises((ValueError, TypeError)):
        operator(each(lambda own: own.astype(np.float64), x), out, workspace)
    with pytest.raises((ValueError, TypeError)):
        operator(each(every_other_of_two, x), out, workspace)


@every_primitive
def test_stays_within_its_arrays(name):
    child = multiprocessing.get_context("spawn").Process(target=stay_within, args=(name, EXAMPLES))
    child.start()
    child.join()
    assert child.exitcode == 0, f"{name} touched memory outside of its arrays, or raised (exit code {child.exitcode})"


def large(name: str):
    """The primitive, and a large case with its input and weights."""
    primitive = get(name)
    if primitive.foreign:
        pytest.skip("its memory is a measured upper bound")
    case = next((c for c in LARGE[primitive.kind] if not primitive.supports(c.layer, c.shape)), None)
    assert case, "there is no large case that it supports: add one"
    values, weights = case.arrays(0)
    return primitive, case, values, weights


class Mallinfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names.split())


def live_bytes() -> int:
    """Bytes that ``malloc`` has given out and not got back."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("needs glibc 2.33's mallinfo2")
    libc.mallinfo2.restype = Mallinfo
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd


@every_primitive
def test_takes_no_memory_but_what_it_announced(name):
    primitive, case, values, weights = large(name)
    for config in all_configs(primitive, case):
        gc.collect()
        before = live_bytes()
        operator = primitive.prepare(case.layer, weights, case.shape, config, threads=2)
        held = live_bytes() - before
        assert held <= operator.memory.host_resident_bytes + SLACK_BYTES // 4, f"prepared, it holds more: {config}"

        x = packed_all(values, operator.takes)
        out = Canary(array_shape(operator.out_shape, operator.gives)).array
        workspace = Canary((operator.memory.host_workspace_bytes,), np.uint8).array
        operator(x, out, workspace)  # the OpenMP runtime starts its threads
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # so that memory freed before cannot be taken unseen
        tracemalloc.start()
        live, held = live_bytes(), resident_bytes()
        reset_peak()
        operator(x, out, workspace)
        peak, live = peak_resident_bytes(), live_bytes() - live
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak - held <= SLACK_BYTES, f"resident memory rose during a call: {config}"
        assert live <= SLACK_BYTES // 16, f"a call left memory behind: {config}"
        assert traced <= SLACK_BYTES // 16, f"Python or NumPy allocated during a call: {config}"


@every_primitive
def test_releases_the_interpreter_lock(name):
    primitive, case, values, weights = large(name)
    operator = primitive.prepare(case.layer, weights, case.shape, all_configs(primitive, case)[0], threads=1)
    x = packed_all(values, operator.takes)
    out = Canary(array_shape(operator.out_shape, operator.gives)).array
    workspace = Canary((operator.memory.host_workspace_bytes,), np.uint8).array
    inside = threading.Event()

    def call():
        inside.set()
        operator(x, out, workspace)
        inside.clear()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # seconds: a thread runs until it gives the lock up
    try:
        for _ in range(20):
            worker = threading.Thread(target=call)
            worker.start()
            seen = inside.is_set()
            worker.join()
            if seen:
                return
    finally:
        sys.setswitchinterval(interval)
    pytest.fail("no other thread ran during a call")
