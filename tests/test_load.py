"""From names and files to networks, and back again."""

import numpy as np
import pytest

from znni.errors import FormatError, InvalidShape, ZnniError
from znni.load import load
from znni.zoo import networks

SMALL = "INPUTS:2, LAYERS:3\nCONV 1,2,2 4\nPOOL 1,2,2\nCONV 1,1,1 3\n"


def again(network):
    return load(network.source, seed=network.seed, width=network.width)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.znni"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("name", networks())
def test_zoo_networks_load_and_load_again(name):
    network = load(name, seed=3, width=2)
    published = networks()[name]
    assert (network.name, network.source, network.seed, network.width) == (name, name, 3, 2)
    assert network.field_of_view == published.field_of_view
    if network.chain:  # of others batch norms are folded, which is fewer numbers than were trained
        assert network.parameters == published.narrowed(2).parameters
    assert again(network).digest == network.digest


def test_full_width_is_the_default():
    network = load("n337")
    assert network.parameters == 871_603
    assert (network.seed, network.width) == (0, None)
    assert load("n337", seed=None).digest == network.digest


def test_files_load_and_load_again_from_elsewhere(small, monkeypatch):
    monkeypatch.chdir(small.parent)
    network = load("small.znni", seed=4)
    monkeypatch.chdir("/")
    assert (network.name, network.in_channels, network.out_channels) == ("small", 2, 3)
    assert network.field_of_view == (1, 3, 3)
    assert again(network).digest == network.digest
    assert load(small, seed=5).digest != network.digest


def test_a_suffix_in_capitals(small):
    path = small.rename(small.with_suffix(".ZNNI"))
    assert load(path).out_channels == 3


def test_sums_after_convolutions_stay_unbiased(tmp_path):
    path = tmp_path / "net.znn"
    path.write_text(
        "nodes input\ntype input\nsize 1\n"
        "edges c\ntype conv\nsize 1,3,3\ninput input\noutput n\n"
        "nodes n\ntype sum\nsize 2\n"
    )
    network = load(path)
    assert not network.weights["c"]["bias"].any()
    assert again(network).digest == network.digest


def test_given_weights(small, tmp_path):
    original = load(small, seed=9)
    np.savez(tmp_path / "w.npz", **{f"{n}/{k}": a for n, own in original.weights.items() for k, a in own.items()})
    for weights in (original.weights, tmp_path / "w.npz"):
        network = load(small, weights=weights)
        assert network.digest == original.digest
        assert network.seed is None
    zoo = load("n4", seed=1, width=4)
    assert load("n4", weights=zoo.weights, width=4).digest == zoo.digest


def test_given_weights_that_do_not_fit():
    weights = load("n337", width=2).weights
    with pytest.raises(FormatError, match="n337: weight of layer 1_conv must be 4x1x2x2x2, got 2x1x2x2x2"):
        load("n337", weights=weights, width=4)
    with pytest.raises(FormatError, match="layer 1_conv has no bias"):
        load("n337", weights={"1_conv": {"weight": weights["1_conv"]["weight"]}}, width=2)


def test_trained_weights_for_the_zoo_s_n4(shared):
    path = shared / "data/trained/n4_trained.h5"
    trained, n4 = load(path), load("n4", weights=path)
    assert again(trained).digest == trained.digest
    np.testing.assert_array_equal(n4.weights["9_conv"]["weight"], trained.weights["conv5"]["weight"])
    assert n4.layers[:-1] == trained.layers
    with pytest.raises(FormatError, match="holds 6 convolutions, the network has 11"):
        load("vd2d", weights=path)
    with pytest.raises(FormatError, match="holds its own weights"):
        load(path, weights={})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("n33", "no network is named 'n33'; did you mean n337"),
        ("znn3d_k4", "did you mean znn3d_k"),
        ("unet", "no network is named 'unet'.*n337"),
        ("", "no network is named ''; there are n337"),
        ("net.onnx", "cannot read net.onnx: No such file"),
        ("net.pt", "cannot read net.pt: expected a name of the zoo or a file that ends in .znni, .znn, .h5"),
        ("folder/net", "cannot read folder/net: expected a name"),
        ("none.znni", "cannot read none.znni: No such file"),
        ("none.znn", "cannot read none.znn: No such file"),
        ("none.h5", "cannot read none.h5: No such file"),
    ],
)
def test_names_that_are_none(name, says):
    with pytest.raises(FormatError, match=says):
        load(name)


def test_widths_and_seeds_that_cannot_be(small):
    with pytest.raises(FormatError, match="width narrows networks of the zoo"):
        load(small, width=3)
    with pytest.raises(InvalidShape, match="width must be a positive integer, got 0"):
        load("n337", width=0)
    for source in ("n337", small):
        with pytest.raises(ZnniError, match="non-negative integer, got -1"):
            load(source, seed=-1)


def test_files_of_impossible_size_are_named(tmp_path):
    path = tmp_path / "huge.znni"
    path.write_text("INPUTS:1, LAYERS:1\nCONV 9999,9999,9999 999999")
    with pytest.raises(FormatError, match=r"huge.znni: layer 1_conv would have \d+ weights"):
        load(path)
