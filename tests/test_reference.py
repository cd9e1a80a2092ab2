"""The reference against the definition: the network as it is, strides and all, at every offset."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from znni.errors import FormatError, InvalidShape, Unsupported
from znni.layers import Activation, Conv, MaxFilter, Maxout, MaxPool, Softmax
from znni.lowering import lower
from znni.network import Network
from znni.nodes import INPUT, Node, chain
from znni.reference import reference, reference_flop

ACTIVATIONS = (
    Activation(),
    Activation("relu"),
    Activation("leaky_relu", 0.1),
    Activation("elu", 0.7),
    Activation("tanh", 1.7, 0.6),
    Activation("sigmoid"),
)


def network_of(nodes, in_channels=1, seed=0):
    """With random weights that keep the size of what goes through, and filters of mean zero that keep it varied."""
    rng, weights, channels = np.random.default_rng(seed), {}, {INPUT: in_channels}
    for node in nodes:
        c = channels[node.inputs[0]]
        if isinstance(node.layer, Conv):
            shapes = node.layer.weight_shapes(c)
            scale = np.prod(shapes["weight"][1:]) ** -0.5
            weight = rng.standard_normal(shapes["weight"]) * scale
            if weight[0].size > 4:
                weight -= weight.mean(axis=(1, 2, 3, 4), keepdims=True)
            weights[node.name] = {"weight": weight, "bias": rng.uniform(0, 0.5, shapes["bias"])}
            c = node.layer.out_channels
        channels[node.name] = c // getattr(node.layer, "group", 1)
    return Network("test", nodes, in_channels, weights)


def activated(x, activation):
    a, b = activation.a, activation.b
    return {
        "linear": lambda: x,
        "relu": lambda: np.where(x > 0, x, 0),
        "leaky_relu": lambda: np.where(x > 0, x, a * x),
        "elu": lambda: np.where(x > 0, x, a * (np.exp(x) - 1)),
        "tanh": lambda: a * np.tanh(b * x),
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
    }[activation.name]()


def windows(x, size, dilation, stride):
    """(batch, channel, z, y, x, wz, wy, wx): every window, dilated, at the stride."""
    extent = tuple((n - 1) * d + 1 for n, d in zip(size, dilation, strict=True))
    seen = sliding_window_view(x, extent, axis=(2, 3, 4))
    return seen[(slice(None), slice(None), *(slice(None, None, s) for s in (*stride, *dilation)))]


def literal(network, x):
    """The network as its layers say, poolings at their strides, in float64."""
    for node in network.nodes:
        layer, ones = node.layer, (1, 1, 1)
        if isinstance(layer, Conv):
            own = {key: value.astype(np.float64) for key, value in network.weights[node.name].items()}
            seen = windows(x, layer.kernel, layer.dilation, layer.stride)
            x = np.einsum("bizyxklm,oiklm->bozyx", seen, own["weight"]) + own["bias"][:, None, None, None]
            x = activated(x, layer.activation)
        elif isinstance(layer, MaxPool):
            x = windows(x, layer.window, ones, layer.stride).max((5, 6, 7))
        elif isinstance(layer, MaxFilter):
            x = windows(x, layer.window, layer.dilation, ones).max((5, 6, 7))
        elif isinstance(layer, Softmax):
            x = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        else:
            x = np.stack([group.max(axis=1) for group in np.split(x, x.shape[1] // layer.group, axis=1)], axis=1)
    return x


def sliding(network, x):
    """The definition: the network on the field of view of every output voxel."""
    fov = network.field_of_view
    out = np.empty((len(x), network.out_channels, *(n - f + 1 for n, f in zip(x.shape[2:], fov, strict=True))))
    for at in itertools.product(*map(range, out.shape[2:])):
        view = x[(..., *(slice(a, a + f) for a, f in zip(at, fov, strict=True)))]
        out[(..., *at)] = literal(network, view)[..., 0, 0, 0]
    return out


def random_input(network, output, batch=1, seed=1):
    size = (n + f - 1 for n, f in zip(output, network.field_of_view, strict=True))
    return np.random.default_rng(seed).standard_normal((batch, network.in_channels, *size), np.float32)


def triples(most):
    return st.tuples(*[st.integers(1, most)] * 3)


small = st.integers(1, 3)
convs = st.builds(
    Conv, small, triples(3), stride=triples(2), dilation=triples(2), activation=st.sampled_from(ACTIVATIONS)
)
pools = st.builds(MaxPool, triples(3), triples(3))
layers = st.lists(st.one_of(convs, pools, st.builds(MaxFilter, triples(2), triples(2))), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(layers, st.tuples(st.integers(1, 2), *[st.integers(1, 3)] * 3), small, st.integers(0, 2**32))
def test_equals_the_definition(layers, size, in_channels, seed):
    """Windows larger and smaller than their strides, dilations, strided convolutions, every activation."""
    network = network_of(chain(layers), in_channels, seed)
    x = random_input(network, size[1:], size[0])
    np.testing.assert_allclose(reference(network, x), sliding(network, x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("head", [Softmax(), Maxout(2), Maxout(3)], ids=str)
def test_heads_over_channels(head):
    nodes = chain([Conv(4, (2, 2, 2)), MaxPool((2, 2, 2), (2, 2, 2)), Conv(6, (1, 2, 2)), head])
    network = network_of(nodes, 2)
    x = random_input(network, (2, 3, 4), 2)
    np.testing.assert_allclose(reference(network, x), sliding(network, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
@pytest.mark.filterwarnings("error")
def test_activations_do_not_overflow(activation):
    nodes = chain([Conv(1, (1, 1, 1), activation=activation)])
    weights = {"1_conv": {"weight": np.ones((1, 1, 1, 1, 1)), "bias": np.zeros(1)}}
    x = np.array([-1e4, -30, -1e-3, 0, 1e-3, 30, 1e4]).reshape(1, 1, 1, 1, -1)
    with np.errstate(over="ignore"):
        expected = activated(x, activation)
    np.testing.assert_allclose(reference(Network("test", nodes, 1, weights), x), expected, rtol=1e-13)


@pytest.mark.filterwarnings("error")
def test_softmax_does_not_overflow():
    network = Network("test", chain([Softmax()]), 3, {})
    out = reference(network, np.array([1e4, 1e4, -1e4]).reshape(1, 3, 1, 1, 1))
    np.testing.assert_allclose(out.ravel(), [0.5, 0.5, 0])


def test_a_result_read_twice_is_kept():
    """A filter works in place, but not on what a later node reads."""
    nodes = (
        Node("a", Conv(2, (1, 1, 1))),
        Node("filter", MaxFilter((1, 1, 2)), ("a",)),
        Node("softmax", Softmax(), ("a",)),
    )
    network = network_of(nodes)
    x = random_input(network, (2, 2, 2))
    alone = Network("test", (nodes[0], nodes[2]), 1, network.weights)
    np.testing.assert_array_equal(reference(network, x), reference(alone, x))


def test_input_is_left_alone_and_threads_do_not_matter():
    network = network_of(chain([MaxPool((2, 2, 2), (2, 2, 2)), Conv(3, (3, 3, 3)), MaxFilter((2, 1, 2))]), 2)
    x = random_input(network, (3, 4, 5), 2).astype(np.float64)
    before = x.copy()
    out = reference(network, x, threads=1)
    assert out.dtype == np.float64
    assert out.flags.c_contiguous
    np.testing.assert_allclose(reference(network, x, threads=3), out, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(x, before)


def dilated_by_torch(network, x):
    """Max-filters and dilated convolutions of PyTorch, in float64."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    x, step = torch.from_numpy(x).double(), (1, 1, 1)
    for node in network.nodes:
        layer = node.layer
        if isinstance(layer, Conv):
            weight, bias = (torch.from_numpy(network.weights[node.name][key]).double() for key in ("weight", "bias"))
            x = torch.relu(torch.conv3d(x, weight, bias, dilation=step))
        else:
            x = torch.max_pool3d(x, layer.window, stride=1, dilation=step)
            step = tuple(a * s for a, s in zip(step, layer.stride, strict=True))
    return x.numpy()


def relu(channels, kernel):
    return Conv(channels, kernel, activation=Activation("relu"))


def n337_like(width):
    cubes = [relu(width, (k,) * 3) for k in (2, 3, 3, 3, 3, 3)]
    pool = MaxPool((2, 2, 2), (2, 2, 2))
    return chain([cubes[0], pool, cubes[1], pool, cubes[2], pool, *cubes[3:], relu(3, (3, 3, 3))])


def five_cubes(width):
    cubes = [relu(width, (k,) * 3) for k in (4, 5, 5)]
    pool = MaxPool((2, 2, 2), (2, 2, 2))
    return chain([cubes[0], pool, cubes[1], pool, cubes[2], relu(3, (5, 5, 5))])


def n4_like(width):
    squares = [relu(width, (1, k, k)) for k in (4, 5, 4, 4)]
    pool = MaxPool((1, 2, 2), (1, 2, 2))
    body = [layer for square in squares for layer in (square, pool)]
    return chain([*body, relu(2 * width, (1, 3, 3)), relu(2, (1, 1, 1))])


@pytest.mark.parametrize(
    ("nodes", "fov", "output"),
    [
        pytest.param(n337_like(4), (85, 85, 85), (2, 8, 9), id="n337"),
        pytest.param(five_cubes(4), (47, 47, 47), (8, 5, 6), id="five-cubes"),
        pytest.param(n4_like(10), (1, 95, 95), (3, 16, 21), id="n4"),
    ],
)
def test_equals_torch(nodes, fov, output):
    network = network_of(nodes)
    assert network.field_of_view == fov
    x = random_input(network, output)
    expected = dilated_by_torch(network, x)
    assert expected.std(axis=(0, 2, 3, 4)).max() > 0.01, "alive"
    assert np.abs(reference(network, x) - expected).max() < 1e-12 * np.abs(expected).max()


def test_flop_grows_with_the_patch_and_the_batch():
    network = network_of(n337_like(8))
    one, larger = reference_flop(network, (92, 92, 92)), reference_flop(network, (92, 92, 100))
    assert network.flop_per_voxel < one < larger < 2 * one
    assert one < reference_flop(network, (92, 92, 92), 2) <= 2 * one


def test_what_is_refused():
    network = network_of(chain([Conv(2, (3, 3, 3)), MaxPool((2, 2, 2), (2, 2, 2))]))
    with pytest.raises(InvalidShape, match="takes"):
        reference(network, np.zeros((1, 2, 9, 9, 9)))
    with pytest.raises(InvalidShape, match="smaller than the field of view 4x4x4"):
        reference(network, np.zeros((1, 1, 9, 3, 9)))
    with pytest.raises(FormatError, match="NaN"):
        reference(network, np.full((1, 1, 9, 9, 9), np.nan))
    padded = network_of(chain([Conv(2, (3, 3, 3), padding=(1, 1, 1))]))
    with pytest.raises(Unsupported, match="1_conv pads"):
        reference(padded, np.zeros((1, 1, 9, 9, 9)))
    lowered = Network("lowered", lower(network.nodes, "fragments"), 1, network.weights)
    with pytest.raises(Unsupported, match="mpf"):
        reference(lowered, np.zeros((1, 1, 9, 9, 9)))
