"""Results as files: complete or not there at all."""

import errno
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni import volume_writer
from znni.errors import InvalidShape, RunFailed, ZnniError
from znni.volume_writer import VolumeWriter

SHAPE = (2, 4, 5, 6)
WHOLE = (slice(0, 4), slice(0, 5), slice(0, 6))
BLOCK = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def load(path):
    if path.suffix == ".npy":
        return np.load(path)
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        assert list(file) == ["main"]
        assert file["main"].dtype == np.float32
        return file["main"][:]


@pytest.fixture(params=["out.npy", "out.h5", "out.hdf5"])
def target(request, tmp_path):
    if not request.param.endswith("npy"):
        pytest.importorskip("h5py")
    return tmp_path / request.param


def put(path, block=BLOCK, **options):
    with VolumeWriter(path, SHAPE, **options) as writer:
        writer.write(WHOLE, block)
        writer.commit()


def test_a_file_appears_when_it_is_committed(target):
    with VolumeWriter(target, SHAPE) as writer:
        writer.write(WHOLE, BLOCK)
        assert not target.exists()
        writer.commit()
        assert os.listdir(target.parent) == [target.name]
    np.testing.assert_array_equal(load(target), BLOCK)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_regions_land_where_they_belong(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("writer") / "out.npy"
    expected = np.zeros(SHAPE, np.float32)
    with pytest.MonkeyPatch.context() as patch, VolumeWriter(path, SHAPE) as writer:
        patch.setattr(volume_writer, "GATHER_BYTES", data.draw(st.sampled_from([4, 8, 1 << 20])))
        for fill in range(1, 6):
            region = []
            for n in SHAPE[1:]:
                start = data.draw(st.integers(0, n - 1))
                region.append(slice(start, data.draw(st.integers(start + 1, n))))
            block = BLOCK[(slice(None), *region)] * fill
            writer.write(tuple(region), block.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0))
            expected[(slice(None), *region)] = block
        writer.commit()
    np.testing.assert_array_equal(np.load(path), expected)


def test_what_is_not_committed_leaves_nothing(target):
    with VolumeWriter(target, SHAPE) as writer:
        writer.write(WHOLE, BLOCK)
    assert os.listdir(target.parent) == []
    with pytest.raises(KeyboardInterrupt), VolumeWriter(target, SHAPE):
        raise KeyboardInterrupt
    assert os.listdir(target.parent) == []


def test_an_existing_file_is_refused_and_replaced_only_by_a_complete_one(target):
    put(target)
    before = target.read_bytes()
    with pytest.raises(ZnniError, match="exists; give another name, or --overwrite"):
        VolumeWriter(target, SHAPE)
    with VolumeWriter(target, SHAPE, overwrite=True) as writer:
        writer.write(WHOLE, BLOCK + 1)
    assert target.read_bytes() == before
    put(target, BLOCK + 1, overwrite=True)
    np.testing.assert_array_equal(load(target), BLOCK + 1)
    assert os.listdir(target.parent) == [target.name]


def test_links_are_followed(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link.npy").symlink_to(tmp_path / "deep" / "real.npy")
    put(tmp_path / "link.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "deep" / "real.npy"), BLOCK)
    with pytest.raises(ZnniError, match="exists"):
        put(tmp_path / "link.npy")
    put(tmp_path / "link.npy", BLOCK * 2, overwrite=True)
    assert (tmp_path / "link.npy").is_symlink()
    np.testing.assert_array_equal(np.load(tmp_path / "deep" / "real.npy"), BLOCK * 2)


def test_the_result_has_the_permissions_of_any_new_file(target):
    put(target)
    (target.parent / "other").touch()
    assert target.stat().st_mode == (target.parent / "other").stat().st_mode


def test_a_file_that_appears_meanwhile_is_left_alone_and_the_result_kept(tmp_path):
    target = tmp_path / "out.npy"
    with VolumeWriter(target, SHAPE) as writer:
        writer.write(WHOLE, BLOCK)
        target.write_text("of another program")
        with pytest.raises(RunFailed, match="appeared during the run") as caught:
            writer.commit()
    assert target.read_text() == "of another program"
    np.testing.assert_array_equal(np.load(str(caught.value).split(" is in ")[1]), BLOCK)


def test_without_hard_links_the_file_is_renamed(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    put(tmp_path / "out.npy")
    assert os.listdir(tmp_path) == ["out.npy"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("out.tif", r"expected a name that ends in .npy or .h5"),
        ("out", "expected a name"),
        ("out.h5:main", "expected a name"),
        ("missing/out.npy", "folder .*missing of the output .* does not exist; make it first"),
        ("file/out.npy", "does not exist"),
        ("folder.npy", "is a folder"),
        ("pipe.npy", "no ordinary file"),
        ("x" * 300 + ".npy", "File name too long"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_cannot_be_created_is_said_at_once(tmp_path, name, says, overwrite):
    (tmp_path / "file").touch()
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ZnniError, match=says) as caught:
        VolumeWriter(tmp_path / name, SHAPE, overwrite=overwrite)
    assert not isinstance(caught.value, RunFailed)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ZnniError, match=f"cannot create the output .*out.npy: {os.strerror(number)}"):
        VolumeWriter(tmp_path / "out.npy", SHAPE)


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 0, 5, 6)])
def test_shapes_that_are_no_volume_are_refused(tmp_path, shape):
    with pytest.raises(InvalidShape, match="channel, z, y, x"):
        VolumeWriter(tmp_path / "out.npy", shape)


@pytest.mark.parametrize(
    ("region", "block"),
    [
        (WHOLE, BLOCK.astype(np.float64)),
        (WHOLE, BLOCK[:1]),
        ((slice(1, 5), slice(0, 5), slice(0, 6)), BLOCK),
        ((slice(0, 4), slice(0, 5), slice(0, 5)), BLOCK),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path, region, block):
    with VolumeWriter(tmp_path / "out.npy", SHAPE) as writer, pytest.raises(InvalidShape, match="cannot write"):
        writer.write(region, block)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync", "replace"])
def test_a_full_or_failing_disk_is_a_failed_run_that_leaves_the_old_file(target, monkeypatch, call, number):
    put(target)
    before = target.read_bytes()

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(
        RunFailed, match=f"could not write the output .*{os.strerror(number)}.*needs 960 bytes"
    ) as caught:
        put(target, BLOCK + 1, overwrite=True)
    assert ("free there" in str(caught.value)) == (number != errno.EIO)
    monkeypatch.undo()
    assert os.listdir(target.parent) == [target.name]
    assert target.read_bytes() == before


def test_writes_that_are_cut_short_go_on(target, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, memoryview(data).cast("B")[:7], offset))
    put(target)
    np.testing.assert_array_equal(load(target), BLOCK)


def test_a_file_system_that_cannot_set_space_aside_is_written_all_the_same(target, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    put(target)
    np.testing.assert_array_equal(load(target), BLOCK)


def test_hdf5_s_own_failures_are_failed_runs_too(tmp_path, monkeypatch):
    pytest.importorskip("h5py")

    def fail(*arguments):
        raise RuntimeError("Can't decrement id ref count")

    monkeypatch.setattr(volume_writer, "lay_out_hdf5", fail)
    with pytest.raises(RunFailed, match="decrement"):
        VolumeWriter(tmp_path / "out.h5", SHAPE)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_that_is_full_for_real(tmp_path):
    with VolumeWriter(tmp_path / "out.npy", SHAPE) as writer:
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, writer._fd)
        os.close(full)
        with pytest.raises(RunFailed, match="No space left on device"):
            writer.write(WHOLE, BLOCK)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("allocate", [True, False])
def test_a_file_that_the_system_will_not_let_grow(target, allocate):
    program = """
        import errno, os, resource, sys
        import numpy as np
        from znni.errors import RunFailed
        from znni.volume_writer import VolumeWriter

        def unsupported(*arguments):
            raise OSError(errno.EOPNOTSUPP, "not here")

        if sys.argv[2] == "False":
            os.posix_fallocate = unsupported
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            with VolumeWriter(sys.argv[1], (1, 16, 256, 256)) as writer:
                for z in range(16):
                    block = np.ones((1, 1, 256, 256), np.float32)
                    writer.write((slice(z, z + 1), slice(0, 256), slice(0, 256)), block)
                writer.commit()
        except RunFailed as error:
            print(error)
            sys.exit(1)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(target), str(allocate)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "needs 4194304 bytes" in done.stdout
    assert done.stderr == ""
    assert os.listdir(target.parent) == []
