"""HDF5 volumes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni import volume_hdf5
from znni.errors import FormatError
from znni.volume_files import open_volume

h5py = pytest.importorskip("h5py")

VOLUME = np.random.default_rng(0).integers(0, 120, (9, 20, 31)).astype(np.uint8)


def written(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, (array, options) in datasets.items():
            file.create_dataset(name.replace("__", "/"), data=array, **options)
    return path


def read(path, region=None):
    with open_volume(path) as reader:
        region = region or tuple(slice(0, n) for n in reader.shape[1:])
        out = np.full((reader.shape[0], *(s.stop - s.start for s in region)), np.nan, np.float32)
        reader.read(region, out)
        return out


@pytest.mark.parametrize("dtype", ["u1", "i2", ">u2", ">i4", "<u8", "f2", "f4", ">f4", "f8", "?"])
@pytest.mark.parametrize("options", [{}, {"chunks": (4, 8, 8)}, {"chunks": (4, 8, 8), "compression": "gzip"}], ids=str)
def test_types_and_layouts(tmp_path, dtype, options):
    array = VOLUME.astype(dtype)
    path = written(tmp_path / "in.h5", main=(array, options))
    np.testing.assert_array_equal(read(path)[0], array.astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([64, 512, 2048]), st.booleans(), st.data())
def test_any_region_into_any_view(tmp_path_factory, scratch_bytes, compressed, data):
    array = np.stack([VOLUME, VOLUME + 100]).astype("<u2")
    options = {"chunks": (1, 4, 8, 8), "compression": "gzip"} if compressed else {}
    path = written(tmp_path_factory.mktemp("hdf5") / "in.h5", main=(array, options))
    region = []
    for n in array.shape[1:]:
        start = data.draw(st.integers(0, n - 1))
        region.append(slice(start, data.draw(st.integers(start + 1, n))))
    expected = array[(slice(None), *region)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume_hdf5, "SCRATCH_BYTES", scratch_bytes)
        with open_volume(path) as reader:
            around = np.full([n + 2 for n in expected.shape], np.nan, np.float32)
            out = around[1:-1, 1:-1, 1:-1, 1:-1]
            reader.read(tuple(region), out)
    np.testing.assert_array_equal(out, expected)
    assert np.isnan(around).sum() == around.size - out.size


def test_which_dataset_is_read(tmp_path):
    one = written(tmp_path / "one.h5", volumes__raw=(VOLUME, {}))
    np.testing.assert_array_equal(read(one)[0], VOLUME)
    several = written(tmp_path / "two.h5", main=(VOLUME, {}), other=(VOLUME + 1, {}))
    np.testing.assert_array_equal(read(several)[0], VOLUME)
    np.testing.assert_array_equal(read(f"{several}:other")[0], VOLUME + 1)
    np.testing.assert_array_equal(read(f"{one}:volumes/raw")[0], VOLUME)


def test_a_colon_in_a_name_is_only_a_colon(tmp_path):
    np.testing.assert_array_equal(read(written(tmp_path / "a:b.h5", main=(VOLUME, {})))[0], VOLUME)


def test_which_dataset_is_not_guessed(tmp_path):
    path = written(tmp_path / "in.h5", a=(VOLUME, {}), b__c=(VOLUME, {}))
    with pytest.raises(FormatError, match="name one of a, b/c"):
        open_volume(path)
    with pytest.raises(FormatError, match="no dataset 'd'; it has a, b/c"):
        open_volume(f"{path}:d")
    with pytest.raises(FormatError, match="no dataset 'b'"):
        open_volume(f"{path}:b")
    with pytest.raises(FormatError, match="name one of none"):
        open_volume(written(tmp_path / "empty.h5"))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 5)), "2 axes"),
        (np.float32(3), "0 axes"),
        (np.zeros((4, 5, 6), "c8"), "complex64"),
        (np.zeros((4, 5, 6), [("r", "u1"), ("g", "u1")]), "'r'"),
        (np.zeros((4, 0, 6)), "empty"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, array, says):
    with pytest.raises(FormatError, match=says):
        open_volume(written(tmp_path / "in.h5", main=(array, {})))


def test_damaged_files_are_refused(tmp_path):
    path = written(tmp_path / "in.h5", main=(VOLUME, {}))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(FormatError, match=r"in\.h5 is not a readable HDF5 file"):
        open_volume(path)


def test_the_memory_held_counts_a_chunk_that_has_to_be_decoded_whole(tmp_path):
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file.create_dataset("main", (64, 512, 512), "u1", chunks=(64, 256, 256), compression="gzip")
        file.create_dataset("plain", (64, 512, 512), "u1")
    with open_volume(tmp_path / "in.h5") as reader:
        assert 12 * 2**20 < reader.buffer_bytes < 14 * 2**20
    with open_volume(f"{tmp_path / 'in.h5'}:plain") as reader:
        assert reader.buffer_bytes <= 2**20
