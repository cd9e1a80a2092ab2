"""NPY volumes and reading by offset."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni import volume_raw
from znni.errors import FormatError, InvalidShape, RunFailed
from znni.volume_files import open_volume

DTYPES = ["u1", "i1", "<u2", ">u2", "<i2", ">i4", "<u4", "<i8", ">u8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "?"]


def volume(dtype, shape=(5, 6, 7), seed=0):
    values = np.random.default_rng(seed).integers(0, 120, shape)
    return values.astype(dtype)


def read_all(reader):
    out = np.empty(reader.shape, np.float32)
    reader.read(tuple(slice(0, n) for n in reader.shape[1:]), out)
    return out


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_npy_of_any_real_type_and_byte_order(tmp_path, dtype, order):
    array = volume(dtype)
    np.save(tmp_path / "in.npy", np.asarray(array, order=order))
    with open_volume(tmp_path / "in.npy") as reader:
        assert reader.shape == (1, 5, 6, 7)
        assert reader.dtype == array.dtype
        np.testing.assert_array_equal(read_all(reader)[0], array.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(1, 40)),
    st.sampled_from(["C", "F"]),
    st.sampled_from([8, 24, 64, 1024]),
    st.sampled_from([0, 16, 8192]),
    st.data(),
)
def test_any_region_into_any_view(tmp_path_factory, shape, order, scratch_bytes, gap_bytes, data):
    array = np.asarray(volume("<u2", shape), order=order)
    path = tmp_path_factory.mktemp("raw") / "in.npy"
    np.save(path, array)
    region = []
    for n in shape[1:]:
        start = data.draw(st.integers(0, n - 1))
        region.append(slice(start, data.draw(st.integers(start + 1, n))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume_raw, "SCRATCH_BYTES", scratch_bytes)
        patch.setattr(volume_raw, "GAP_BYTES", gap_bytes)
        with open_volume(path) as reader:
            around = np.full([n + 2 for n in array[(slice(None), *region)].shape], np.nan, np.float32)
            out = around[1:-1, 1:-1, 1:-1, 1:-1]
            reader.read(tuple(region), out)
    np.testing.assert_array_equal(out, array[(slice(None), *region)])
    assert np.isnan(around).sum() == around.size - out.size


def test_the_buffer_is_small_whatever_the_volume(tmp_path):
    path = tmp_path / "in.npy"
    np.lib.format.open_memmap(path, "w+", np.float64, (64, 512, 512))  # 128 MiB, sparse
    with open_volume(path) as reader:
        assert reader.buffer_bytes < 1.1 * 2**20


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 5), "f4"), "2 axes"),
        (np.zeros((1, 1, 4, 5, 6), "f4"), "5 axes"),
        (np.zeros((4, 5, 6), "c8"), "complex64"),
        (np.zeros((4, 5, 6), "S3"), r"\|S3"),
        (np.zeros((4, 5, 6), np.longdouble), "float128|longdouble"),
        (np.zeros((4, 0, 6), "f4"), "empty"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, array, says):
    np.save(tmp_path / "in.npy", array)
    with pytest.raises(FormatError, match=says):
        open_volume(tmp_path / "in.npy")


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "in.npy", np.array([[[{}]]]), allow_pickle=True)
    with pytest.raises(FormatError, match="object"):
        open_volume(tmp_path / "in.npy")


def test_a_file_cut_short_is_refused_when_it_is_opened(tmp_path):
    path = tmp_path / "in.npy"
    np.save(path, volume("f4"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="cut short"):
        open_volume(path)


@pytest.mark.parametrize("header", [b"\x93NUMPY", b"\x93NUMPY\1\0\x10\0{'descr': '<f4', ", b"\x93NUMPY\7\0\x02\0{}"])
def test_a_broken_header_is_refused(tmp_path, header):
    (tmp_path / "in.npy").write_bytes(header)
    with pytest.raises(FormatError, match=r"in\.npy"):
        open_volume(tmp_path / "in.npy")


def test_a_header_that_lies_about_its_size_is_refused_before_anything_is_allocated(tmp_path):
    path = tmp_path / "in.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 1, 1)})
    with pytest.raises(FormatError, match="cut short"):
        open_volume(path)


def test_a_file_that_shrinks_while_it_is_read_is_a_failed_run(tmp_path):
    path = tmp_path / "in.npy"
    np.save(path, volume("f4"))
    with open_volume(path) as reader:
        with open(path, "r+b") as file:
            file.truncate(200)
        with pytest.raises(RunFailed, match=r"could not read .*in\.npy"):
            read_all(reader)


@pytest.mark.parametrize("region", [(slice(0, 6), slice(0, 6), slice(0, 7)), (slice(2, 2), slice(0, 6), slice(0, 7))])
def test_regions_outside_the_volume_are_refused(tmp_path, region):
    np.save(tmp_path / "in.npy", volume("f4"))
    with open_volume(tmp_path / "in.npy") as reader, pytest.raises(InvalidShape, match="cannot read"):
        reader.read(region, np.empty((1, *(s.stop - s.start for s in region)), np.float32))


def test_only_float32_of_the_region_s_size_is_filled(tmp_path):
    np.save(tmp_path / "in.npy", volume("f4"))
    region = (slice(0, 2), slice(0, 2), slice(0, 2))
    with open_volume(tmp_path / "in.npy") as reader:
        for out in (np.empty((1, 2, 2, 2)), np.empty((1, 2, 2, 3), np.float32), np.empty((2, 2, 2), np.float32)):
            with pytest.raises(InvalidShape, match="float32"):
                reader.read(region, out)
