"""The contract of `znni.primitives.base`, kept by every registered primitive on the device: one is tested by being registered.

Layers, shapes and tolerances are those of the CPU's (`primitives.cases`). All runs on the simulated device, and, marked gpu,
on the machine's own.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from primitives.cases import LARGE, MISFITS, Case, cases
from primitives.test_contract import all_configs, check_figures, error_of, refusal
from primitives.truth import truth

import znni.gpu
from znni.errors import InvalidShape, Unsupported
from znni.gpu import Device
from znni.layers import Conv, ConvMaxPoolFragments, MaxPool, MaxPoolFragments, Recombine, Softmax
from znni.layouts import DEVICE, array_shape
from znni.primitives import get, registered
from znni.primitives.base import Operator, Primitive

from .small_cases import SMALL
from .zones import Zone

NAMES = sorted(name for name, primitive in registered().items() if primitive.device == "gpu")
EXAMPLES = int(os.environ.get("ZNNI_EXAMPLES", "20"))

#: Layers that can be cut into parts, and shapes of their inputs.
IN_PARTS = {
    "recombine": (Recombine(((1, 2, 3), (2, 1, 2))), (24, 2, 2, 3, 5)),
    "conv_mpf": (ConvMaxPoolFragments(Conv(5, (3, 3, 3)), MaxPoolFragments((2, 2, 2), (2, 2, 2))), (1, 3, 19, 13, 23)),
}

every_primitive = pytest.mark.parametrize("name", NAMES)
drawn = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def any_device(request):
    """Either device, the current one while the test runs."""
    device = request.getfixturevalue("device" if request.param == "simulated" else "real_device")
    with znni.gpu.use(device):
        yield device


class Prepared:
    """An operator in its place, with all its arrays between guard zones."""

    def __init__(self, device: Device, primitive: Primitive, case: Case, config, seed: int = 0):
        self.device, self.primitive, self.case = device, primitive, case
        self.values, self.weights = case.arrays(seed)
        self._originals = {name: array.copy() for name, array in self.weights.items()}
        held = device.free_bytes() if device.simulated else None
        self.operator: Operator = primitive.prepare(case.layer, self.weights, case.shape, config, 2)
        if device.simulated:
            assert device.free_bytes() == held, "prepared, it holds device memory that it was not given"
        self.memory = self.operator.memory
        assert self.memory == primitive.memory(case.layer, case.shape, config, 2)
        assert self.operator.out_shape == case.layer.output_shape(case.shape)
        if not primitive.foreign:
            assert sum(array.nbytes for array in self.operator.resident_arrays) == self.memory.host_resident_bytes
        self._stack = ExitStack()
        self._stack.callback(self.operator.release)
        self.resident = self._zone((self.memory.device_resident_bytes,), np.uint8)
        self.workspace = self._zone((self.memory.device_workspace_bytes,), np.uint8)
        self.x = self._zone(array_shape(case.shape, self.operator.takes), np.float32, self.operator.takes)
        self.out = self._zone(array_shape(self.operator.out_shape, self.operator.gives), np.float32, self.operator.gives)
        self.x.fill(self.values)

    def _zone(self, *arguments) -> Zone:
        return self._stack.enter_context(Zone(self.device, *arguments))

    def place(self) -> None:
        """What comes before the first call."""
        self.operator.place(self.resident.array, self.workspace.array)

    def called(self, garbage: int) -> np.ndarray:
        """The result of a call with a workspace full of `garbage`; checks that no memory but its own was touched."""
        self.workspace.fill(np.full(self.workspace.nbytes, garbage, np.uint8))
        self.out.fill(np.full(self.out.nbytes, 0xFF, np.uint8))
        self.device.reset_peak()
        before = self.device.peak_bytes
        self.operator(self.x.array, self.out.array, self.workspace.array)
        self.device.compute.synchronise()
        assert self.device.peak_bytes == before, "device memory was allocated during a call"
        assert self.x.intact and np.array_equal(self.x.contents(), self.values), "x, or memory beside it, was written"
        for zone, what in ((self.out, "out"), (self.workspace, "the workspace"), (self.resident, "what stays")):
            assert zone.intact, f"memory beside {what} was written"
        for name, array in self.weights.items():
            assert np.array_equal(array, self._originals[name]), f"{name} was written"
        return self.out.contents()

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def run(device: Device, primitive: Primitive, case: Case, config, seed: int = 0) -> float:
    """The error of one operator, called twice; checks all that a call can show."""
    if device.simulated:
        device.reseed(seed)
    with Prepared(device, primitive, case, config, seed) as prepared:
        prepared.place()
        results = [prepared.called(garbage) for garbage in (0xFF, 0x3F)]
        for result in results:
            assert not np.isnan(result).any(), "out has elements that were not written, or come of memory that is not x"
        assert np.array_equal(*(r.view(np.uint32) for r in results)), "the same call gave other bits the second time"
        expected = truth(case.layer, prepared.weights, prepared.values)
    if device.simulated:
        assert not device.ffts, "released, it keeps tables of transforms"
    return error_of(case, results[0], expected)


def supported(primitive: Primitive, kind_cases: dict) -> list[Case]:
    return [case for case in kind_cases[primitive.kind] if not refusal(primitive, case)]


def test_there_are_primitives():
    assert {get(name).kind for name in NAMES} >= {"conv", "max_pool", "max_filter", "mpf", "recombine", "softmax", "maxout"}


@every_primitive
def test_computes_its_layers(name, any_device):
    primitive, tally = get(name), Counter()

    @drawn
    @given(case=cases(primitive.kind), pick=st.integers(0, 999), seed=st.integers(0, 99))
    def check(case, pick, seed):
        if reason := refusal(primitive, case):
            tally["refused"] += 1
            event(f"refused: {reason}")
            return
        tally["computed"] += 1
        configs = all_configs(primitive, case)
        assert configs, "supported, but without a config"
        config = configs[pick % len(configs)]
        check_figures(primitive, case, config)
        assert run(any_device, primitive, case, config, seed) <= primitive.tolerance_of(config)

    check()
    assert tally["computed"], f"{name} refused all of {tally['refused']} layers"


@every_primitive
def test_computes_with_every_config(name, any_device):
    primitive = get(name)
    found = supported(primitive, SMALL)
    assert found
    for case in found:
        for seed, config in enumerate(all_configs(primitive, case)):
            check_figures(primitive, case, config)
            error = run(any_device, primitive, case, config, seed)
            assert error <= primitive.tolerance_of(config), (case, config)


@pytest.mark.gpu
@every_primitive
def test_computes_large_layers(name, real_device):
    with znni.gpu.use(real_device):
        primitive = get(name)
        for case in supported(primitive, LARGE):
            for config in all_configs(primitive, case):
                assert run(real_device, primitive, case, config) <= primitive.tolerance_of(config), (case, config)


@every_primitive
def test_memory_of_a_call_is_what_it_was_given(name, any_device):
    """One byte less is refused, of what stays and of the workspace; and so is a call before there is any."""
    primitive = get(name)
    case = supported(primitive, SMALL)[0]
    config = all_configs(primitive, case)[0]
    with Prepared(any_device, primitive, case, config) as prepared:
        operator, x, out = prepared.operator, prepared.x.array, prepared.out.array
        resident, workspace = prepared.resident.array, prepared.workspace.array
        with pytest.raises(InvalidShape, match="before it was given its device memory"):
            operator(x, out, workspace)
        if resident.nbytes:
            with pytest.raises(InvalidShape, match=rf"needs {resident.nbytes} bytes on the device, got"):
                operator.place(resident[: resident.nbytes - 1], workspace)
        if workspace.nbytes:
            with pytest.raises(InvalidShape, match=rf"needs {workspace.nbytes} bytes on the device, got"):
                operator.place(resident, workspace[: workspace.nbytes - 1])
        prepared.place()
        if workspace.nbytes:
            with pytest.raises(InvalidShape, match=rf"needs a workspace of {workspace.nbytes} bytes, got"):
                operator(x, out, workspace[: workspace.nbytes - 1])
        operator(x, out, workspace)
        any_device.compute.synchronise()
        operator.release()
        with pytest.raises(InvalidShape, match="before it was given its device memory"):
            operator(x, out, workspace)


@every_primitive
def test_refuses_other_layers(name, device):
    primitive = get(name)
    other = Softmax() if primitive.kind != "softmax" else MaxPool((2, 2, 2), (2, 2, 2))
    with pytest.raises(Unsupported, match=f"{name} cannot compute this {other.kind}.*{primitive.kind}"):
        primitive.prepare(other, {}, (1, 2, 4, 4, 4), {}, 1)


@every_primitive
def test_refuses_shapes_that_do_not_fit(name, device):
    primitive = get(name)
    for case in MISFITS[primitive.kind]:
        assert refusal(primitive, case), f"it supports {case}"


@every_primitive
def test_refuses_arrays_it_was_not_prepared_for(name, device):
    primitive = get(name)
    case = supported(primitive, SMALL)[0]
    with Prepared(device, primitive, case, all_configs(primitive, case)[0]) as prepared:
        prepared.place()
        operator, workspace = prepared.operator, prepared.workspace.array
        x, out = prepared.x.array, prepared.out.array
        said = r"was prepared for \d+x.* got \d+x"
        with Zone(device, (7, *x.shape[1:]), np.float32, operator.takes) as other, pytest.raises(InvalidShape, match=said):
            operator(other.array, out, workspace)
        with Zone(device, (7, *out.shape[1:]), np.float32, operator.gives) as other, pytest.raises(InvalidShape, match=said):
            operator(x, other.array, workspace)
        with Zone(device, x.shape, np.float64, operator.takes) as other, pytest.raises(TypeError, match="float64"):
            operator(other.array, out, workspace)
        elsewhere = "plain" if operator.takes == DEVICE else DEVICE
        with Zone(device, x.shape, np.float32, elsewhere) as other, pytest.raises(TypeError, match="wants a"):
            operator(other.array, out, workspace)
        elsewhere = "plain" if operator.gives == DEVICE else DEVICE
        with Zone(device, out.shape, np.float32, elsewhere) as other, pytest.raises(TypeError, match="wants a"):
            operator(x, other.array, workspace)


@pytest.mark.parametrize("name", [name for name in NAMES if get(name).kind in IN_PARTS])
def test_computes_parts(name, any_device):
    """Of a recombination each part writes its own voxels and no others; of a fused pooling each makes a slice."""
    primitive = get(name)
    layer, shape = IN_PARTS[primitive.kind]
    values, weights = Case(layer, shape).arrays(0)
    expected = truth(layer, weights, values)
    for parts in (2, 4):
        cut = replace(layer, parts=parts)
        own = (shape[0] // parts, *shape[1:]) if isinstance(layer, Recombine) else shape
        for config in all_configs(primitive, Case(cut, own)):
            found = parts_of(any_device, primitive, cut, own, weights, values, config)
            assert np.linalg.norm(found - expected) <= primitive.tolerance_of(config) * np.linalg.norm(expected)


def parts_of(device, primitive, layer, shape, weights, values, config) -> np.ndarray:
    """What all parts of a layer make together."""
    operator = primitive.prepare(layer, weights, shape, config, 2)
    with ExitStack() as stack:

        def zone(*arguments) -> Zone:
            return stack.enter_context(Zone(device, *arguments))

        stack.callback(operator.release)
        resident = zone((operator.memory.device_resident_bytes,), np.uint8)
        workspace = zone((operator.memory.device_workspace_bytes,), np.uint8)
        x, out = zone(shape, np.float32, operator.takes), zone(operator.out_shape, np.float32, operator.gives)
        operator.place(resident.array, workspace.array)
        slices = []
        for operator.part in range(layer.parts):
            recombines = isinstance(layer, Recombine)
            x.fill(values[operator.part * shape[0] :][: shape[0]] if recombines else values)
            before = out.contents()
            operator(x.array, out.array, workspace.array)
            device.compute.synchronise()
            after = out.contents()
            if recombines:
                written = ~np.isnan(after) & np.isnan(before)
                assert np.count_nonzero(written) == prod(shape)
                assert np.array_equal(after[~written], before[~written], equal_nan=True)
            slices.append(after)
        assert out.intact and workspace.intact and resident.intact
        return slices[-1] if recombines else np.concatenate(slices)
