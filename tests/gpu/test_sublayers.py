"""Cutting a convolution: which part of the host's arrays each step takes and makes, and which cuts are worth timing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni.errors import Unsupported
from znni.gpu.cuts import SHARES, copied_bytes, cuts
from znni.gpu.sublayers import Cut, Sublayers, layer_bytes
from znni.layers import Conv

counts = st.integers(1, 9)


@st.composite
def cut_layers(draw) -> Sublayers:
    kernel, stride = draw(st.tuples(*[st.integers(1, 3)] * 3)), (draw(st.integers(1, 3)), 1, 2)
    layer = Conv(draw(counts), kernel, stride, dilation=(draw(st.integers(1, 2)), 1, 1))
    size = (e + s * draw(st.integers(0, 5)) for e, s in zip(layer.extent, stride, strict=True))
    return Sublayers(layer, (draw(st.integers(1, 4)), draw(counts), *size), Cut(*(draw(counts) for _ in range(4))))


def taken(array: np.ndarray, runs, shape) -> np.ndarray:
    """What the runs copy to the device."""
    flat, device = array.reshape(-1), np.full(shape, -1).reshape(-1)
    for run in runs:
        for row in range(run.rows):
            start, at = run.host + row * run.pitch, run.device + row * run.length
            device[at : at + run.length] = flat[start : start + run.length]
    return device.reshape(shape)


@settings(max_examples=60, deadline=None)
@given(cut_layers())
def test_steps_take_and_make_what_they_should(sub):
    x = np.arange(np.prod(sub.shape)).reshape(sub.shape)
    results = np.arange(np.prod(sub.out_shape)).reshape(sub.out_shape)
    made = np.zeros(sub.out_shape, int)
    buffers: dict[int, tuple] = {}
    seen: set[int] = set()
    last_buffer = None
    for number, step in enumerate(sub.steps()):
        batch, channels, planes = slice(*step.batch), slice(*sub.ins[step.into]), slice(*sub.taken(step.planes))
        np.testing.assert_array_equal(
            taken(x, sub.x_runs(step), sub.x_shape(step.into)), x[batch, channels, planes], strict=True
        )
        own = (slice(*step.batch), slice(*sub.outs[step.out]), slice(*step.planes))
        shape = sub.result_shape(step.out)
        np.testing.assert_array_equal(taken(results, sub.result_runs(step), shape), results[own], strict=True)
        assert sub.conv(step.out).output_shape(sub.x_shape(step.into)) == shape
        assert (step.out, step.into) == sub.pairs[step.turn] and step.turn == number % len(sub.pairs)

        wanted = (step.batch, step.planes, step.into)
        if step.upload:  # never over what the step before it reads, so that it can be copied in meanwhile
            assert last_buffer is None or step.buffer != last_buffer
            buffers[step.buffer] = wanted
        assert buffers[step.buffer] == wanted and step.buffer < sub.x_buffers and step.result < sub.result_buffers
        last_buffer = step.buffer
        seen = seen | {step.into} if not step.first else {step.into}
        if step.last:
            assert len(seen) == len(sub.ins), "a result lacks input channels"
            made[own] += 1
    assert made.all(), "some voxels of the result are not computed"


def test_inputs_are_not_copied_twice_where_buffers_hold_them():
    layer, shape = Conv(8, (3, 3, 3)), (1, 8, 9, 9, 9)
    plain = copied_bytes(Sublayers(layer, shape, Cut()))
    for cut in (Cut(out=4), Cut(out=4, into=2)):
        assert copied_bytes(Sublayers(layer, shape, cut)) == plain
    # of four pieces to and fro, the two last ones are still there
    assert copied_bytes(Sublayers(layer, shape, Cut(out=4, into=4)))[0] == plain[0] * (4 + 3 * 2) / 4


def held_bytes(layer, shape, option) -> float:
    """Of buffers and weights, as the weights are."""
    sub = Sublayers(layer, shape, option.cut)
    weights = 4 * np.prod(layer.weight_shapes(shape[1])["weight"])
    return sum(sub.buffer_bytes) + weights * (1 if option.resident else min(1, 2 / len(sub.pairs)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv(80, (7, 7, 7)), (8, 80, 60, 60, 60)),  # a middle layer, after one pooling
        (Conv(80, (3, 3, 3)), (1, 1, 500, 500, 500)),  # a first one: a channel is large
        (Conv(3, (3, 3, 3)), (64, 80, 100, 100, 100)),  # a last one
        (Conv(8, (3, 3, 3)), (1, 8, 99, 20, 20)),
    ],
)
def test_cuts_keep_to_smaller_and_smaller_shares(layer, shape):
    options = cuts(layer, shape)
    assert options[0].cut == Cut() and options[0].resident and len(options) > 2
    shares = [layer_bytes(layer, shape) * share for share in SHARES]
    assert {option.most_bytes for option in options[1:]} <= set(shares)
    assert held_bytes(layer, shape, options[-1]) <= shares[-1]
    for option in options[1:]:
        assert held_bytes(layer, shape, option) <= option.most_bytes
    copied = [sum(copied_bytes(Sublayers(layer, shape, option.cut))) for option in options]
    assert copied == sorted(copied), "more memory, and yet more bytes copied"


def test_where_weights_are_most_of_a_layer_they_are_streamed():
    layer, shape = Conv(256, (3, 3, 3)), (1, 256, 12, 12, 12)
    first, *others = cuts(layer, shape)
    assert first.resident and not any(option.resident for option in others)
    held = [held_bytes(layer, shape, option) for option in (first, *others)]
    assert held == sorted(held, reverse=True) and held[-1] < held[0] / 20


def test_what_is_padded_along_z_is_not_cut_along_z():
    layer, shape = Conv(4, (3, 3, 3), padding=(1, 0, 0)), (1, 64, 40, 40, 40)
    assert all(option.cut.z == 1 for option in cuts(layer, shape))
    with pytest.raises(Unsupported, match="padded along z cannot be cut along z"):
        Sublayers(layer, shape, Cut(z=2))
