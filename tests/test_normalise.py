"""Normalisation by the statistics of whole slices and volumes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni import normalise
from znni.errors import FormatError, ZnniError
from znni.normalise import MODES, Normaliser, Statistics
from znni.volume_files import open_volume


@pytest.fixture
def opened(tmp_path):
    readers = []

    def open_array(array):
        np.save(tmp_path / "in.npy", array)
        readers.append(open_volume(tmp_path / "in.npy"))
        return readers[-1]

    yield open_array
    for reader in readers:
        reader.close()


def normalised(reader, mode, region=None):
    region = region or tuple(slice(0, n) for n in reader.shape[1:])
    out = np.empty((reader.shape[0], *(s.stop - s.start for s in region)), np.float32)
    reader.read(region, out)
    Normaliser(mode, reader).apply(region, out)
    return out


def expected(array, mode):
    array = array.astype(np.float32).astype(np.float64)
    axes = {"slice": (-2, -1), "volume": (-3, -2, -1)}[mode]
    return (array - array.mean(axes, keepdims=True)) / array.std(axes, keepdims=True)


@pytest.mark.parametrize("mode", ["slice", "volume"])
@pytest.mark.parametrize("dtype", ["u1", ">i2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(5, 17, 23), (2, 5, 17, 23)])
def test_against_the_definition(opened, mode, dtype, shape):
    rng = np.random.default_rng(0)
    array = (rng.normal(size=shape) * 10 + 100 + 5 * np.arange(5)[:, None, None]).astype(dtype)
    truth = expected(array, mode).reshape(-1, *shape[-3:])
    got = normalised(opened(array), mode)
    np.testing.assert_allclose(got, truth, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["slice", "volume"]),
    st.sampled_from([1, 7, 50, 1000]),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.integers(1, 2),
    st.integers(0, 100),
)
def test_statistics_do_not_depend_on_how_the_volume_is_read(tmp_path_factory, mode, most, shape, channels, seed):
    array = np.random.default_rng(seed).normal(3, 2, (channels, *shape)).astype(np.float32)
    path = tmp_path_factory.mktemp("normalise") / "in.npy"
    np.save(path, array)
    with pytest.MonkeyPatch.context() as patch, open_volume(path) as reader:
        patch.setattr(normalise, "SCAN_VOXELS", max(most, channels))
        found = Statistics(reader)
    double = array.astype(np.float64)
    np.testing.assert_allclose(found.slice_mean, double.mean((2, 3)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.slice_deviation, double.std((2, 3)), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.volume_mean, double.mean((1, 2, 3)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.volume_deviation, double.std((1, 2, 3)), rtol=1e-10, atol=1e-12)


def test_a_large_mean_costs_no_precision(opened):
    array = (np.random.default_rng(0).normal(size=(3, 64, 64)) + 10_000).astype(np.float32)
    for mode in ("slice", "volume"):
        np.testing.assert_allclose(normalised(opened(array), mode)[0], expected(array, mode), rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("mode", ["slice", "volume"])
def test_part_of_a_volume_is_normalised_by_the_whole(opened, mode):
    array = np.random.default_rng(0).integers(0, 255, (6, 20, 30)).astype(np.uint8)
    region = (slice(2, 5), slice(3, 9), slice(10, 30))
    got = normalised(opened(array), mode, region)[0]
    np.testing.assert_allclose(got, expected(array, mode)[region], rtol=1e-6, atol=1e-6)


def test_constant_slices_become_zero(opened, recwarn):
    array = np.random.default_rng(0).normal(size=(4, 300, 500)).astype(np.float32)
    array[1], array[2] = 0.1, 0
    got = normalised(opened(array), "slice")[0]
    assert not got[1:3].any()
    np.testing.assert_allclose(got[[0, 3]], expected(array[[0, 3]], "slice"), rtol=1e-6, atol=1e-6)
    assert not normalised(opened(np.full((40, 50, 70), 0.1, np.float32)), "volume").any()
    assert not recwarn.list


def test_uint8_is_divided_by_255_and_none_is_left_alone(opened):
    array = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    np.testing.assert_array_equal(normalised(opened(array), "uint8")[0], array.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(normalised(opened(array), "none")[0], array)


@pytest.mark.parametrize("dtype", ["i1", "u2", "f4", "?"])
def test_uint8_takes_nothing_else(opened, dtype):
    with pytest.raises(FormatError, match=f"holds {np.dtype(dtype)}; use slice, volume or none"):
        Normaliser("uint8", opened(np.zeros((2, 3, 4), dtype)))


@pytest.mark.parametrize("mode", ["none", "slice", "volume"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_is_not_finite_is_refused_with_its_first_slice(opened, mode, bad, order, recwarn):
    array = np.asarray(np.ones((6, 400, 500)), order=order)
    array[4, 0, 0] = array[2, 399, 499] = bad
    with pytest.raises(FormatError, match=r"first in z-slice 2 .*in 2 of 6 slices"):
        Normaliser(mode, opened(array))
    assert not recwarn.list


def test_an_infinite_value_of_each_sign_in_one_slice(opened):
    array = np.ones((2, 3, 4), np.float32)
    array[1, 0, :2] = np.inf, -np.inf
    with pytest.raises(FormatError, match="z-slice 1"):
        Normaliser("none", opened(array))


def test_integers_are_not_read_without_need(opened, monkeypatch):
    reader = opened(np.zeros((2, 3, 4), np.uint8))
    monkeypatch.setattr(reader, "read", lambda *_: pytest.fail("read"))
    for mode in ("none", "uint8"):
        Normaliser(mode, reader)


def test_modes_are_named(opened):
    assert MODES == ("none", "slice", "volume", "uint8")
    with pytest.raises(ZnniError, match="unknown normalisation 'min'; expected one of none, slice, volume, uint8"):
        Normaliser("min", opened(np.zeros((2, 3, 4), np.uint8)))
