"""Graphs of the zoo: parameters as published, and the result of PyTorch and of the reference."""

from __future__ import annotations

import numpy as np
import pytest

from znni import load
from znni.zoo import networks
from znni.zoo.graph import PublishedGraph

GRAPHS = {name: published for name, published in networks().items() if isinstance(published, PublishedGraph)}

#: As `znni.zoo` counts them from the papers' code.
PARAMETERS = {
    "superhuman": 1_443_291,
    "superhuman_12": 1_449_600,
    "superhuman_torms3": 2_215_876,
    "rsunet_caffe_pznet": 1_307_419,
    "rsunet_deepem": 2_655_363,
    "devoem24": 2_663_784,
    "avan": 887_530,
    "synapse_unet": 408_433,
    "neurotorch_2019": 3_150_497,
    "neurotorch_2018": 1_441_889,
}


def relative_error(found, expected) -> float:
    several = expected[0, 0].size > 1
    deviation = expected - expected.mean((0, 2, 3, 4), keepdims=True) if several else expected
    return float(np.linalg.norm(found - expected) / np.linalg.norm(deviation))


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_are_those_published(name, count):
    assert GRAPHS[name].parameters == count
    assert GRAPHS[f"{name}_dynamic"].parameters == count


@pytest.mark.parametrize("name", GRAPHS)
def test_the_published_patch_fits(name):
    network, patch = load(name, width=1), GRAPHS[name].patch
    if patch is None:
        pytest.skip("the larger the better")
    network.check_patch(patch)
    assert network.output_patch(patch) == ((1, 1, 1) if network.fixed else patch)


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("name", GRAPHS)
def test_gives_what_the_reference_and_pytorch_give(name, more):
    torch = pytest.importorskip("torch")
    from znni.torch_module import to_torch

    network = load(name, width=3)
    patch = network.patch
    if not network.fixed:
        least = network.input_patch(network.least_output)
        patch = tuple(n + (more + 1) * s for n, s in zip(least, network.strides, strict=True))
    if name.endswith("_dynamic"):  # statistics of few voxels amplify what rounding leaves
        patch = tuple(n + 2 * s for n, s in zip(patch, network.strides, strict=True))
    x = np.random.default_rng(more).standard_normal((1, network.in_channels, *patch), np.float32)
    expected = network.reference(x)
    assert np.isfinite(expected).all() and 0.02 < expected.std() < 10
    tolerance = 1e-4 if name.endswith("_dynamic") else 2e-5
    assert relative_error(network.run(x), expected) <= tolerance
    with torch.no_grad():
        assert relative_error(to_torch(network)(torch.from_numpy(x)).numpy(), expected) <= tolerance


def test_fields_of_view_of_the_recursive_graphs():
    assert load("vd2d3d", width=1).field_of_view == (5, 85, 85)
    assert load("vd2d3d_ms", width=1).field_of_view == (9, 109, 109)
    assert load("vd2d3d", width=1).forms == ("fragments", "filter")
    assert load("vd2d3d_ms", width=1).forms == ("filter",)


def test_widths_that_are_none_are_refused():
    from znni.errors import InvalidShape

    with pytest.raises(InvalidShape, match="width must be a positive integer"):
        load("superhuman", width=0)
