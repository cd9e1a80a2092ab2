"""TIFF stacks, as their many writers make them."""

import numpy as np
import pytest

from znni.errors import FormatError, RunFailed
from znni.volume_files import open_volume
from znni.volume_raw import RawVolume
from znni.volume_tiff import SegmentedTiff

tifffile = pytest.importorskip("tifffile")

STACK = np.random.default_rng(0).integers(0, 200, (5, 40, 50)).astype(np.uint8)


def read(path, region=None):
    with open_volume(path) as reader:
        region = region or tuple(slice(0, n) for n in reader.shape[1:])
        out = np.full((reader.shape[0], *(s.stop - s.start for s in region)), np.nan, np.float32)
        reader.read(region, out)
        return out


def written(path, array, **options):
    tifffile.imwrite(path, array, **options)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metadata": None},
        {"imagej": True},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"imagej": True, "metadata": {"axes": "TYX"}},
        {"ome": True},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"rowsperstrip": 7},
    ],
    ids=str,
)
def test_uncompressed_stacks_are_read_by_offset(tmp_path, options):
    path = written(tmp_path / "in.tif", STACK, **options)
    with open_volume(path) as reader:
        assert isinstance(reader, RawVolume)
        assert reader.shape == (1, 5, 40, 50)
    np.testing.assert_array_equal(read(path)[0], STACK)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"compression": "zlib", "rowsperstrip": 7},
        {"compression": "zlib", "predictor": True, "rowsperstrip": 16},
        {"compression": "zlib", "byteorder": ">"},
        {"compression": "lzma"},
        {"tile": (16, 32)},
        {"tile": (16, 16), "compression": "zlib"},
        {"compression": "zlib", "metadata": None},
        {"compression": "zlib", "imagej": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_compressed_and_tiled_stacks_are_decoded_in_parts(tmp_path, options, dtype):
    if options.get("predictor") and dtype == "f4":
        options = {**options, "predictor": False}
    if options.get("imagej"):
        options = {**options, "byteorder": ">"}
    array = STACK.astype(dtype)
    path = written(tmp_path / "in.tif", array, **options)
    with open_volume(path) as reader:
        assert isinstance(reader, SegmentedTiff)
        assert reader.buffer_bytes < 100_000
    np.testing.assert_array_equal(read(path)[0], array)
    region = (slice(1, 4), slice(5, 37), slice(13, 34))
    np.testing.assert_array_equal(read(path, region)[0], array[region])


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">i4", "<f2", ">f4", "<f8"])
def test_types_and_byte_orders(tmp_path, dtype):
    path = written(tmp_path / "in.tif", STACK.astype(dtype), byteorder=dtype[0])
    np.testing.assert_array_equal(read(path)[0], STACK.astype(np.float32))


def test_bilevel_stacks(tmp_path):
    path = written(tmp_path / "in.tif", STACK > 100)
    np.testing.assert_array_equal(read(path)[0], STACK > 100)


@pytest.mark.parametrize("options", [{}, {"metadata": None}, {"compression": "zlib"}], ids=str)
def test_pages_written_one_by_one(tmp_path, options):
    with tifffile.TiffWriter(tmp_path / "in.tif") as writer:
        for page in STACK:
            writer.write(page, contiguous=False, **options)
    np.testing.assert_array_equal(read(tmp_path / "in.tif")[0], STACK)


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ("ZCYX", {"imagej": True}),
        ("CZYX", {"ome": True}),
        ("ZCYX", {"ome": True}),
        ("ZCYX", {"imagej": True, "compression": "zlib"}),
        (None, {}),
        (None, {"compression": "zlib"}),
    ],
    ids=str,
)
def test_channels(tmp_path, axes, options):
    array = np.stack([STACK, 255 - STACK])
    if axes == "ZCYX":
        array = array.transpose(1, 0, 2, 3)
    if axes:
        options = {**options, "metadata": {"axes": axes}}
    path = written(tmp_path / "in.tif", np.ascontiguousarray(array), **options)
    np.testing.assert_array_equal(read(path), np.stack([STACK, 255 - STACK]))


def test_a_single_slice_that_is_said_to_be_one(tmp_path):
    np.testing.assert_array_equal(read(written(tmp_path / "in.tif", STACK[:1]))[0], STACK[:1])


def test_strips_that_the_file_leaves_out_are_its_background(tmp_path):
    def tiles():
        for i in range(2):
            yield None if i else np.full((16, 16), 7, np.uint8)

    tifffile.imwrite(tmp_path / "in.tif", tiles(), shape=(2, 16, 16), dtype=np.uint8, tile=(16, 16), compression="zlib")
    assert read(tmp_path / "in.tif")[0].mean(axis=(1, 2)).tolist() == [7, 0]


@pytest.mark.parametrize(
    ("array", "options", "says"),
    [
        (STACK[0], {}, "two-dimensional image .40x50."),
        (STACK[0], {"imagej": True}, "two-dimensional"),
        (np.zeros((40, 50, 3), np.uint8), {"photometric": "rgb"}, "colour"),
        (np.zeros((5, 40, 50, 3), np.uint8), {"photometric": "rgb"}, "colour"),
        (np.zeros((3, 40, 50), np.uint8), {"photometric": "rgb", "planarconfig": "separate"}, "colour"),
        (np.zeros((2, 3, 4, 40, 50), np.uint8), {"photometric": "minisblack"}, "axes QQQYX"),
        (np.zeros((2, 5, 40, 50), np.uint8), {"imagej": True, "metadata": {"axes": "TZYX"}}, "axes TZYX"),
        (STACK.astype(np.complex64), {}, "complex64"),
        (np.zeros((16, 64, 64), np.uint8), {"tile": (2, 16, 16)}, "page for each"),
    ],
)
def test_what_is_no_stack_of_grey_slices_is_refused(tmp_path, array, options, says):
    with pytest.raises(FormatError, match=says):
        open_volume(written(tmp_path / "in.tif", array, **options))


def test_pages_of_several_sizes_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "in.tif") as writer:
        writer.write(STACK[0], metadata=None)
        writer.write(STACK[0, :20], metadata=None)
    with pytest.raises(FormatError, match=r"2 images \(20x50, 40x50\)"):
        open_volume(tmp_path / "in.tif")


def test_pages_stored_in_several_ways_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "in.tif") as writer:
        writer.write(STACK[0], compression="zlib")
        writer.write(STACK[1], compression="lzma")
    with pytest.raises(FormatError, match="several ways"):
        open_volume(tmp_path / "in.tif")


def test_a_compression_that_cannot_be_decoded_is_refused_when_opened(tmp_path):
    path = written(tmp_path / "in.tif", STACK, compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in file.pages:
            page.tags["Compression"].overwrite(34926)  # ZSTD by an old number, which nothing decodes
    with pytest.raises(FormatError, match="cannot be decoded"):
        open_volume(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_file_cut_short_is_refused_when_opened(tmp_path, compression):
    path = written(tmp_path / "in.tif", STACK, compression=compression, metadata=None)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(FormatError, match=r"in\.tif"):
        open_volume(path)


def test_a_damaged_page_is_a_failed_run_that_names_the_file(tmp_path):
    path = written(tmp_path / "in.tif", STACK, compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[3].dataoffsets[0], file.pages[3].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)
    with pytest.raises(RunFailed, match=r"could not read .*in\.tif.*damaged"):
        read(path)


def test_rubbish_behind_the_first_bytes_is_refused(tmp_path):
    good = written(tmp_path / "good.tif", STACK, compression="zlib", metadata=None).read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / "in.tif"
    for _ in range(100):
        data = bytearray(good)
        for at in rng.integers(4, len(data), 40):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            read(path)
        except (FormatError, RunFailed) as error:
            assert str(path) in str(error)


def test_a_real_stack(shared):
    path = shared / "data" / "isbi2012-test-volume.tif"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    region = (slice(3, 15), slice(100, 230), slice(400, 512))
    np.testing.assert_array_equal(read(path, region)[0], tifffile.imread(path)[region])
