"""What is peculiar to pooling on the device: NaN, long strands along z, and fragments that go to the host."""

import numpy as np
import pytest
from primitives.cases import Case
from primitives.truth import truth

import znni.gpu
from znni.errors import Unsupported
from znni.layers import MaxFilter, MaxPool, MaxPoolFragments
from znni.layouts import DEVICE, tensor_bytes, with_layouts
from znni.primitives import gpu_pooling
from znni.primitives.gpu_pooling import MAX_FILTER, MAX_POOL, MPF

from .calls import Call, advance, deaf

PRIMITIVES = {"max_pool": MAX_POOL, "max_filter": MAX_FILTER, "mpf": MPF}
TO_HOST = {"takes": DEVICE}


def computed(device, layer, x, gives=DEVICE):
    config = with_layouts({}, DEVICE, gives)
    with Call(device, PRIMITIVES[layer.kind].prepare(layer, {}, x.shape, config, 1)) as call:
        return call.of(x)


@pytest.mark.parametrize(
    "layer",
    [
        MaxPool((2, 2, 2), (2, 2, 2)),
        MaxPool((3, 1, 2), (1, 2, 1)),
        MaxFilter((2, 2, 2), (2, 4, 1)),
        MaxPoolFragments((2, 2, 2), (2, 2, 2)),
    ],
)
def test_a_nan_makes_the_maxima_of_its_windows_nan(device, layer):
    """Among infinities too, whichever comes first in the window."""
    x, _ = Case(layer, (1, 2, 9, 9, 9)).arrays(0)
    x[0, 0, 4, 4, 4] = np.nan
    x[0, 1, 3:6, 3:6, 3:6] = np.inf
    x[0, 1, 4, 4, 4] = np.nan
    x[0, 1, 0, 0, :] = -np.inf
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(computed(device, layer, x), truth(layer, {}, x).astype(np.float32))


@pytest.mark.parametrize("dilation", [1, 3, 5])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_strands_along_z_of_any_length(device, dilation, window):
    """A thread goes from plane to plane of its window, a chunk of them at a time."""
    for results in (1, 7, 8, 9, 33):
        layer = MaxFilter((window, 1, 2), (dilation, 1, 1))
        x, _ = Case(layer, (1, 1, (window - 1) * dilation + results, 1, 3)).arrays(results)
        np.testing.assert_array_equal(computed(device, layer, x), truth(layer, {}, x))


def test_planes_of_many_blocks(device):
    layer = MaxPoolFragments((3, 2, 2), (1, 3, 2))
    x, _ = Case(layer, (2, 3, 4, 31, 65)).arrays(0)
    for gives in (DEVICE, "plain"):
        np.testing.assert_array_equal(computed(device, layer, x, gives), truth(layer, {}, x))


@pytest.fixture
def one_by_one(monkeypatch):
    """Fragments are large."""
    monkeypatch.setattr(gpu_pooling, "_TOGETHER_BYTES", 0)


@pytest.mark.parametrize("elements", [0, 1, 2, 3, 9])
def test_small_fragments_go_together(device, monkeypatch, elements):
    """All of so many batch elements, or one by one."""
    layer = MaxPoolFragments((2, 3, 2), (2, 1, 3))
    x, _ = Case(layer, (5, 2, 5, 6, 10)).arrays(0)
    one = tensor_bytes((6, *layer.output_shape(x.shape)[1:]))
    monkeypatch.setattr(gpu_pooling, "_TOGETHER_BYTES", elements * one + 1)
    operator = MPF.prepare(layer, {}, x.shape, TO_HOST, 1)
    held = {0: one // 3, 1: 2 * one, 2: 4 * one, 3: 6 * one, 9: 5 * one}[elements]
    assert held <= operator.memory.device_workspace_bytes <= held + 512
    with Call(device, operator) as call:
        for _ in range(3):
            np.testing.assert_array_equal(call.of(x), truth(layer, {}, x))
    assert device.launches.count("pool") == 3 * {0: 30, 1: 5, 2: 3, 3: 2, 9: 1}[elements]


def test_fragments_go_to_the_host_while_the_next_are_pooled(device, one_by_one):
    """The device holds two of them; the second is pooled before the first is copied out, the third not before it is."""
    layer = MaxPoolFragments((2, 2, 2), (2, 2, 2))
    x, _ = Case(layer, (1, 3, 9, 9, 9)).arrays(0)
    operator = MPF.prepare(layer, {}, x.shape, TO_HOST, 1)
    assert operator.memory.device_workspace_bytes <= 2 * (tensor_bytes((1, *operator.out_shape[1:])) + 255)
    with Call(device, operator) as call:
        call.give(x)
        call.enqueue()
        assert [advance(stream) for stream in (device.compute, device.downloads) * 5] == [2] * 8 + [0] * 2
        np.testing.assert_array_equal(call.result(), truth(layer, {}, x))


@pytest.mark.parametrize(("waiting", "recording"), [("compute", "downloads"), ("downloads", "compute")])
def test_without_an_event_fragments_get_lost(device, one_by_one, monkeypatch, waiting, recording):
    layer = MaxPoolFragments((2, 2, 2), (2, 2, 2))
    x, _ = Case(layer, (1, 1, 5, 5, 5)).arrays(0)
    expected = truth(layer, {}, x)
    with Call(device, MPF.prepare(layer, {}, x.shape, TO_HOST, 1)) as call:
        np.testing.assert_array_equal(call.of(x), expected)
        deaf(monkeypatch, getattr(device, waiting), getattr(device, recording))
        wrong = 0
        for _ in range(10):
            call.enqueue()
            device.synchronise()
            wrong += not np.array_equal(call.result(), expected)
    assert wrong


def test_the_copy_of_the_last_fragment_is_waited_for(device, one_by_one):
    """Whoever waits for `compute` has all of them, and what `compute` does next finds the workspace free."""
    layer = MaxPoolFragments((2, 2, 2), (2, 2, 2))
    x, _ = Case(layer, (1, 1, 5, 5, 5)).arrays(0)
    for _ in range(5):
        with Call(device, MPF.prepare(layer, {}, x.shape, TO_HOST, 1)) as call:
            call.give(x)
            call.enqueue()
            device.compute.zero(call.workspace)
            np.testing.assert_array_equal(call.result(), truth(layer, {}, x))


def test_settings_and_planes_beyond_reason_are_refused():
    with pytest.raises(Unsupported, match=r"gpu.mpf has no settings, .* got {'tile': 8}"):
        MPF.prepare(MaxPoolFragments((1, 1, 1), (1, 1, 1)), {}, (1, 1, 4, 4, 4), {"tile": 8}, 1)
    assert "may have" in MAX_POOL.supports(MaxPool((1, 1, 1), (1, 1, 1)), (1, 1, 1, 1 << 16, 1 << 15))
    assert not znni.gpu.is_open()
