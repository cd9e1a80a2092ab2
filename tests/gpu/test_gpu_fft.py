"""`gpu.fft`, `gpu.fft_pruned`, `gpu.fft_tiled`: what the contract test does not show."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from primitives.cases import Case
from primitives.test_contract import error_of
from primitives.truth import truth
from simulated.transforms import SimulatedFft

from znni.errors import Unsupported
from znni.gpu import fft_convolution
from znni.gpu.fft_tiling import Tiling
from znni.gpu.operator import TF32_TOLERANCE
from znni.gpu.spectra import sums_of
from znni.gpu.transforms import runs
from znni.layers import Activation, Conv
from znni.layouts import DEVICE, with_layouts
from znni.primitives import get

from .test_contract import Prepared, run

NAMES = ("gpu.fft", "gpu.fft_pruned", "gpu.fft_tiled")
CASE = Case(Conv(5, (3, 2, 4), padding=(0, 1, 0), activation=Activation("relu")), (3, 4, 9, 8, 11))

every_primitive = pytest.mark.parametrize("name", NAMES)
every_product = pytest.mark.parametrize("product", ["cgemm", "lines"])


def config(name: str, **settings) -> dict:
    """A config with all that is not given at some default."""
    made = {"block": 99, "outputs": 99, "spectra": "recomputed", "product": "cgemm"} | settings
    if name == "gpu.fft_tiled":
        made = {"tile": [6, 5, 8]} | made
    return with_layouts(made, DEVICE, DEVICE)


@pytest.fixture
def transformed(monkeypatch) -> list:
    """The specs of all transforms that are run."""
    specs, original = [], SimulatedFft.run

    def recorded(self, *arguments, **named):
        specs.append(self.spec)
        original(self, *arguments, **named)

    monkeypatch.setattr(SimulatedFft, "run", recorded)
    return specs


def lines_of(specs) -> int:
    """Lines along any axis that they transform."""
    total = 0
    for spec in specs:
        sizes = (*spec.n[:-1], spec.n[-1] if spec.kind == "c2c" else spec.n[-1] // 2 + 1)
        along_others = sum(prod(sizes) // n for n in sizes[:-1])
        total += spec.batch * (along_others + prod(sizes[:-1]))
    return total


def result(device, name: str, case: Case, made: dict) -> np.ndarray:
    """What a call gives."""
    with Prepared(device, get(name), case, made) as prepared:
        prepared.place()
        return prepared.called(0xFF)


def test_pruned_transforms_fewer_lines(device, transformed):
    case = Case(Conv(3, (3, 3, 3)), (1, 2, 21, 21, 20))
    counts = {}
    for name in NAMES[:2]:
        transformed.clear()
        result(device, name, case, config(name))
        counts[name] = lines_of(transformed)
    items = 2 + 6 + 3
    assert counts["gpu.fft"] == items * (21 * 11 + 21 * 11 + 21 * 21)
    inputs = 2 * (21 * 21 + 21 * 11 + 21 * 11)
    kernels = 6 * (3 * 3 + 3 * 11)  # along z they are sums
    results = 3 * (21 * 11 + 19 * 11 + 19 * 19)
    assert counts["gpu.fft_pruned"] == inputs + kernels + results < counts["gpu.fft"] / 2
    primitives = [get(name) for name in NAMES[:2]]
    whole, pruned = (p.cost(case.layer, case.shape, config(p.name)).flop for p in primitives)
    assert pruned < whole


@pytest.mark.parametrize(
    "case",
    [
        Case(Conv(2, (17, 2, 3)), (1, 2, 21, 4, 6)),  # more taps than are summed
        Case(Conv(2, (17, 2, 3), dilation=(2, 1, 1)), (1, 2, 36, 4, 6)),
        Case(Conv(3, (4, 1, 2), dilation=(3, 2, 2), padding=(2, 0, 0)), (1, 1, 290, 1, 5)),  # more points than threads
        Case(Conv(2, (5, 3, 2), dilation=(2, 3, 1), padding=(3, 0, 1)), (2, 1, 9, 8, 70)),
        Case(Conv(2, (1, 1, 3), padding=(1, 1, 1)), (2, 2, 3, 4, 9)),  # nothing to transform but rows
    ],
)
@every_primitive
def test_long_short_flat_and_dilated_kernels(device, name, case):
    primitive = get(name)
    for made in primitive.configs(case.layer, case.shape):
        made = with_layouts(made, DEVICE, DEVICE)
        assert run(device, primitive, case, made) <= primitive.tolerance_of(made)


@every_product
@every_primitive
def test_blocks_change_memory_and_not_the_result(device, monkeypatch, name, product):
    monkeypatch.setattr(fft_convolution, "_GROUP", 3000)  # so that blocks are transformed in several groups
    monkeypatch.setattr(fft_convolution, "_LEAST_TRANSPOSED", 2)
    primitive, held = get(name), []
    values, weights = CASE.arrays(0)
    expected = truth(CASE.layer, weights, values)
    for block, outputs in ((99, 99), (99, 2), (2, 2), (1, 1)):
        made = config(name, product=product, block=block, outputs=outputs)
        assert error_of(CASE, result(device, name, CASE, made), expected) <= primitive.tolerance
        held.append(primitive.memory(CASE.layer, CASE.shape, made, 1).device_workspace_bytes)
        kept = made | {"spectra": "resident"}
        assert error_of(CASE, result(device, name, CASE, kept), expected) <= primitive.tolerance
        of_kept = primitive.memory(CASE.layer, CASE.shape, kept, 1)
        assert of_kept.device_workspace_bytes < held[-1] and of_kept.device_resident_bytes > 8 * 5 * 4 * 100
    assert held == sorted(held, reverse=True) and len(set(held)) == len(held), held


@every_product
@every_primitive
def test_kept_spectra_are_made_once(device, transformed, name, product):
    forward = {}
    for kind in ("resident", "recomputed"):
        with Prepared(device, get(name), CASE, config(name, product=product, spectra=kind)) as prepared:
            transformed.clear()
            prepared.place()
            device.synchronise()
            assert bool(transformed) == (kind == "resident")
            transformed.clear()
            first = prepared.called(0xFF)
            forward[kind] = sum(spec.batch for spec in transformed if spec.kind == "r2c")
            assert np.array_equal(prepared.called(0x3F), first)
    assert forward["resident"] < forward["recomputed"]


@pytest.mark.parametrize(("block", "outputs", "inputs", "kernels"), [(3, 1, 12, 20), (1, 5, 12, 20), (2, 3, 24, 20)])
def test_what_is_there_is_not_transformed_again(device, transformed, block, outputs, inputs, kernels):
    """3 images of 4 channels, 20 kernels: all images or all kernels at once, or else images again for other kernels."""
    result(device, "gpu.fft", CASE, config("gpu.fft", block=block, outputs=outputs))
    assert sum(spec.batch for spec in transformed if spec.kind == "r2c") == inputs + kernels
    assert sum(spec.batch for spec in transformed if spec.kind == "c2r") == 3 * 5


@every_primitive
def test_tf32_is_a_config_with_its_own_tolerance(device, name):
    primitive = get(name)
    offered = [c for c in primitive.configs(CASE.layer, CASE.shape) if c.get("tf32")]
    assert offered and all(c["product"] == "cgemm" for c in offered)
    exact, rounded = config(name), config(name, tf32=True)
    values, weights = CASE.arrays(0)
    expected = truth(CASE.layer, weights, values)
    errors = [error_of(CASE, result(device, name, CASE, made), expected) for made in (exact, rounded)]
    assert errors[0] <= primitive.tolerance < errors[1] <= primitive.tolerance_of(rounded) == TF32_TOLERANCE
    with pytest.raises(Unsupported, match="tf32"):
        primitive.memory(CASE.layer, CASE.shape, config(name, product="lines", tf32=True), 1)


@pytest.mark.parametrize(
    "wrong",
    [{"block": 0}, {"outputs": 1.5}, {"spectra": "lost"}, {"product": "dft"}, {"block": None}, {"points": 3}],
)
@every_primitive
def test_refuses_configs_that_are_none(device, name, wrong):
    with pytest.raises(Unsupported, match=rf"a config of {name} has .*see configs"):
        get(name).prepare(CASE.layer, CASE.arrays(0)[1], CASE.shape, config(name, **wrong), 1)


@pytest.mark.parametrize("tile", [[2, 5, 8], [6, 11, 8], [6, 5], 8, [6, 5, 3], [6.0, 5, 8]])
def test_refuses_tiles_that_do_not_fit(device, tile):
    with pytest.raises(Unsupported, match=r"a tile of gpu.fft_tiled has three sizes .*at least 3x2x4"):
        get("gpu.fft_tiled").memory(CASE.layer, CASE.shape, config("gpu.fft_tiled", tile=tile), 1)


def test_says_what_it_does_not_support(device):
    vast = (1, 1, 1400, 1400, 1400)
    for name in NAMES[:2]:
        assert "one batch of cuFFT at most 2147483647; use a smaller patch" in get(name).supports(
            Conv(1, (3, 3, 3)), vast
        )
    tiled = get("gpu.fft_tiled")
    assert tiled.supports(Conv(1, (3, 3, 3)), vast) is None
    assert "smaller patch" in tiled.supports(Conv(1, (1400, 1400, 1400)), vast)
    for name in NAMES:
        assert "stride 1 only, got 2x1x1" in get(name).supports(Conv(1, (3, 3, 3), stride=(2, 1, 1)), CASE.shape)
        assert "nothing to save" in get(name).supports(Conv(1, (1, 1, 1)), CASE.shape)


def test_large_images_want_no_more_than_the_budgets(device):
    """Spectra beside the least that there must be: those of one image, or of one output's kernels."""
    layer, shape = Conv(80, (5, 5, 5)), (4, 80, 100, 100, 100)
    frequencies = Tiling.whole(layer, shape).frequencies
    for name in NAMES[:2]:
        primitive = get(name)
        held = [primitive.memory(layer, shape, c, 1) for c in primitive.configs(layer, shape) if "tf32" not in c]
        workspaces = [m.device_workspace_bytes for m in held]
        assert max(workspaces) < (1 << 33) + (1 << 30)
        assert min(workspaces) < 8 * frequencies * (80 + 80 + 1) + (1 << 29)


@given(st.integers(1, 200), st.integers(1, 300))
def test_runs_are_as_few_as_can_be(count, most):
    made = list(runs(count, most))
    assert [i for first, length in made for i in range(first, first + length)] == list(range(count))
    assert max(length for _, length in made) <= most and len(made) == -(-count // most)


@given(st.integers(1, 40), st.integers(0, 5), st.integers(1, 6), st.integers(1, 3), st.integers(0, 20))
def test_tiles_reach_every_output_and_no_further(size, padding, kernel, dilation, more):
    extent = (kernel - 1) * dilation + 1
    layer = Conv(1, (kernel, 1, 1), padding=(padding, 0, 0), dilation=(dilation, 1, 1))
    if size + 2 * padding < extent:
        return
    axis = Tiling.of(layer, (1, 1, size, 1, 1), (extent + more, 1, 1)).axes[0]
    assert axis.step == more + 1 and (axis.tiles - 1) * axis.step < axis.outputs <= axis.tiles * axis.step
    assert axis.kept <= axis.step and axis.first + axis.loaded <= axis.points
    if axis.tiles == 1:  # no voxel that an output depends on is left out
        assert axis.first + axis.loaded >= min(axis.outputs + extent - 1, padding + size)


@given(st.integers(1, 99), st.integers(1, 99))
def test_sums_of_a_thread_fit_its_registers(items, outputs):
    rows, columns = sums_of(items, outputs)
    assert rows * columns <= 16 and (rows < 2 * items) and (columns < 2 * outputs)
