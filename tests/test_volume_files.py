"""Which reader opens a path."""

import numpy as np
import pytest

from znni.errors import FormatError
from znni.volume_files import create_volume, open_volume

VOLUME = np.arange(3 * 8 * 9, dtype=np.uint8).reshape(3, 8, 9)


def test_the_content_tells_the_format_not_the_name(tmp_path):
    tifffile, h5py = pytest.importorskip("tifffile"), pytest.importorskip("h5py")
    np.save(tmp_path / "a.npy", VOLUME)
    tifffile.imwrite(tmp_path / "b.tif", VOLUME, photometric="minisblack")
    tifffile.imwrite(tmp_path / "c.tif", VOLUME, photometric="minisblack", bigtiff=True, byteorder=">")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["main"] = VOLUME
    for name in ("a.npy", "b.tif", "c.tif", "d.h5"):
        (tmp_path / name).rename(tmp_path / "volume.dat")
        with open_volume(tmp_path / "volume.dat") as reader:
            out = np.empty(reader.shape, np.float32)
            reader.read((slice(0, 3), slice(0, 8), slice(0, 9)), out)
        np.testing.assert_array_equal(out[0], VOLUME)


def test_what_cannot_be_opened_is_said(tmp_path):
    (tmp_path / "text.tif").write_text("no image at all")
    (tmp_path / "nothing.npy").write_bytes(b"")
    np.save(tmp_path / "in.npy", VOLUME)
    for name, says in [
        ("missing.tif", "cannot read the input .*missing.tif: No such file"),
        ("missing.h5:main", "No such file"),
        ("", "is a folder"),
        ("text.tif", "neither a TIFF, an NPY nor an HDF5 file"),
        ("nothing.npy", "neither"),
        ("in.npy:main", "no HDF5 file"),
        ("in.npy/deeper.npy", "Not a directory"),
    ]:
        with pytest.raises(FormatError, match=says):
            open_volume(tmp_path / name)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "in.tif").write_bytes(b"II*\0\0\0\0\0")
    (tmp_path / "in.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    for name, library in (("in.tif", "tifffile"), ("in.h5", "h5py")):
        monkeypatch.setitem(__import__("sys").modules, library, None)
        with pytest.raises(FormatError, match=rf"needs {library}; install it with pip"):
            open_volume(tmp_path / name)
    with pytest.raises(FormatError, match="needs h5py"):
        create_volume(tmp_path / "out.h5", (1, 2, 3, 4))
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".znni*"))


def test_a_written_volume_can_be_read(tmp_path):
    block = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    region = (slice(0, 3), slice(0, 4), slice(0, 5))
    for name in ("out.npy", "out.h5"):
        if name.endswith("h5"):
            pytest.importorskip("h5py")
        with create_volume(tmp_path / name, block.shape) as writer:
            writer.write(region, block)
            writer.commit()
        with open_volume(tmp_path / name) as reader:
            out = np.empty(reader.shape, np.float32)
            reader.read(region, out)
        np.testing.assert_array_equal(out, block)
