"""Running a program over a volume: the grid covers it once, and the result is that of the whole volume at once."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znni.errors import FormatError, InvalidShape, RunFailed
from znni.normalise import SCAN_BYTES, Normaliser
from znni.program import Program
from znni.volume import Grid, cut_axis, output_shape, run_volume
from znni.volume_files import create_volume, open_volume


class WeightedSum:
    """A program: sums of the field of view with weights of their own; input and output share memory, as in an arena."""

    def __init__(self, patch, fov, batch=1, in_channels=1, out_channels=2):
        self.fov = fov
        output = tuple(n - f + 1 for n, f in zip(patch, fov, strict=True))
        shapes = (batch, in_channels, *patch), (batch, out_channels, *output)
        arena = np.full(max(map(np.prod, shapes)), np.nan, np.float32)
        self.input, self.output = (arena[: np.prod(shape)].reshape(shape) for shape in shapes)
        self.weights = np.random.default_rng(7).normal(size=(out_channels, in_channels, *fov)).astype(np.float32)
        self.runs, self._arena = 0, arena

    def whole(self, x):
        """The result on (batch, channels, z, y, x), each voxel summed in one order wherever it lies."""
        size = tuple(n - f + 1 for n, f in zip(x.shape[2:], self.fov, strict=True))
        out = np.zeros((x.shape[0], len(self.weights), *size), np.float32)
        for channel in range(x.shape[1]):
            for at in itertools.product(*map(range, self.fov)):
                part = x[(slice(None), channel, *(slice(a, a + n) for a, n in zip(at, size, strict=True)))]
                out += self.weights[(slice(None), channel, *at)][:, None, None, None] * part[:, None]
        return out

    run_all = Program.run_all

    def run(self):
        assert np.isfinite(self.input).all()
        out = self.whole(self.input)
        self._arena[...] = np.nan
        self.output[...] = out
        self.runs += 1


SIZES = st.integers(1, 12).flatmap(lambda f: st.tuples(st.integers(f, f + 40), st.integers(f, f + 30), st.just(f)))


@settings(deadline=None)
@given(SIZES)
def test_an_axis_is_covered_once_by_what_padding_did_not_touch(sizes):
    volume, patch, fov = sizes
    times = np.zeros(volume - fov + 1, int)
    for cut in cut_axis(volume, patch, fov):
        assert cut.start >= 0 and cut.start + cut.size <= volume
        assert cut.size == min(patch, volume)
        assert cut.keep.stop - cut.keep.start == cut.write.stop - cut.write.start > 0
        assert cut.keep.start >= 0 and cut.keep.stop + fov - 1 <= cut.size  # the field of view of the last voxel kept
        assert cut.start + cut.keep.start == cut.write.start  # an output voxel lies where its field of view starts
        times[cut.write] += 1
    assert (times == 1).all()
    assert len(cut_axis(volume, patch, fov)) == -(-(volume - fov + 1) // (patch - fov + 1))


@settings(deadline=None)
@given(SIZES, st.integers(0, 9))
def test_a_margin_is_dropped_between_patches_but_not_at_the_border(sizes, margin):
    volume, patch, fov = sizes
    output = patch - fov + 1
    margin = min(margin, (output - 1) // 2)
    times = np.zeros(volume - fov + 1, int)
    for cut in cut_axis(volume, patch, fov, margin):
        assert cut.start >= 0 and cut.start + cut.size <= volume
        assert cut.start + cut.keep.start == cut.write.start
        assert cut.keep.start >= margin or cut.write.start == 0
        assert cut.keep.stop <= output - margin or cut.write.stop == len(times)
        times[cut.write] += 1
    assert (times == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.tuples(SIZES, SIZES, SIZES))
def test_a_grid_covers_its_volume_once(sizes):
    volume, patch, fov = zip(*sizes, strict=True)
    grid = Grid(volume, patch, fov)
    times = np.zeros(grid.output, int)
    patches = list(grid)
    for one in patches:
        times[one.write] += 1
    assert (times == 1).all()
    assert len(patches) == len(grid)
    assert sum(one.voxels for one in patches) == times.size


@pytest.mark.parametrize("what", ["volume", "input patch"])
def test_what_is_smaller_than_the_field_of_view_is_refused(what):
    sizes = {"volume": (20, 20, 20), "input patch": (20, 20, 20), what: (2, 20, 4)}
    with pytest.raises(InvalidShape, match=f"{what} 2x20x4 is smaller than .* field of view 3x3x5 along z, x"):
        Grid(sizes["volume"], sizes["input patch"], (3, 3, 5))


def run(tmp_path, array, program, name="out.npy", **options):
    np.save(tmp_path / "in.npy", array)
    with open_volume(tmp_path / "in.npy") as reader:
        shape = output_shape(reader, program.input.shape[1], program.output.shape[1], program.fov)
        writer = create_volume(tmp_path / name, shape, overwrite=True)
        return run_volume(program, reader, writer, field_of_view=program.fov, **options)


FOV = (2, 3, 4)
VOLUMES = [
    (20, 21, 22),  # nothing fits
    (16, 16, 16),
    (11, 14, 17),  # one patch exactly
    (5, 40, 40),  # flat: padded along z
    (30, 9, 6),  # padded along y and x
    (2, 3, 4),  # one voxel
]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("volume", VOLUMES)
def test_the_result_is_that_of_the_whole_volume(tmp_path, volume, batch):
    array = np.random.default_rng(0).normal(size=volume).astype(np.float32)
    program = WeightedSum((11, 14, 17), FOV, batch)
    done = run(tmp_path, array, program)
    expected = program.whole(array[None, None])[0]
    result = np.load(tmp_path / "out.npy")
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)
    assert done.voxels == expected[0].size
    assert done.patches == len(Grid(volume, (11, 14, 17), FOV))
    assert done.runs == program.runs == -(-done.patches // batch)
    assert done.computed_voxels == done.runs * batch * 10 * 12 * 14
    assert done.voxels_per_s == pytest.approx(done.voxels / done.wall_s)
    accounted_s = done.prepare_s + done.read_s + done.compute_s + done.write_s
    assert accounted_s == pytest.approx(done.wall_s, rel=0.02, abs=0.02) and accounted_s <= done.wall_s


@pytest.mark.parametrize("name", ["out.npy", "out.h5"])
@pytest.mark.parametrize("normalise", ["none", "slice", "volume", "uint8"])
def test_channels_formats_and_normalisation(tmp_path, name, normalise):
    if name.endswith("h5"):
        h5py = pytest.importorskip("h5py")
    array = np.random.default_rng(0).integers(0, 256, (2, 9, 20, 30)).astype(np.uint8)
    program = WeightedSum((12, 10, 11), FOV, 2, in_channels=2, out_channels=3)
    run(tmp_path, array, program, name, normalise=normalise)
    x = array.astype(np.float32)
    with open_volume(tmp_path / "in.npy") as reader:
        Normaliser(normalise, reader).apply(tuple(slice(0, n) for n in x.shape[1:]), x)
    if name.endswith("h5"):
        with h5py.File(tmp_path / name) as file:
            result = file["main"][:]
    else:
        result = np.load(tmp_path / name)
    np.testing.assert_array_equal(result, program.whole(x[None])[0])


def test_padding_reaches_nothing_that_is_kept(tmp_path):
    class Poisoned(WeightedSum):
        def run(self):
            self.input[:, :, 5:] = self.input[:, :, :, 8:] = self.input[..., 9:] = 1e30
            super().run()

    array = np.random.default_rng(0).normal(size=(5, 8, 9)).astype(np.float32)
    program = Poisoned((11, 14, 17), FOV)
    run(tmp_path, array, program)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), program.whole(array[None, None])[0])


def test_any_format_gives_the_same_result(tmp_path):
    tifffile, h5py = pytest.importorskip("tifffile"), pytest.importorskip("h5py")
    array = np.random.default_rng(0).integers(0, 256, (9, 40, 50)).astype(np.uint8)
    program = WeightedSum((6, 16, 18), FOV)
    tifffile.imwrite(tmp_path / "in.tif", array, compression="zlib", rowsperstrip=16)
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file.create_dataset("raw", data=array, chunks=(4, 16, 16), compression="gzip")
    for name in ("in.tif", "in.h5"):
        with open_volume(tmp_path / name) as reader:
            writer = create_volume(tmp_path / "out.npy", output_shape(reader, 1, 2, FOV), overwrite=True)
            run_volume(program, reader, writer, field_of_view=FOV)
        expected = program.whole(array[None, None].astype(np.float32))[0]
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_progress_counts_output_voxels(tmp_path):
    seen = []
    run(
        tmp_path,
        np.zeros((20, 21, 22), np.uint8),
        WeightedSum((11, 14, 17), FOV, 3),
        progress=lambda *a: seen.append(a),
    )
    done, totals = zip(*seen, strict=True)
    assert set(totals) == {19 * 19 * 19}
    assert list(done) == sorted(set(done))
    assert (done[0], done[-1]) == (0, totals[0])


def leave_out(tmp_path):
    return sorted(set(os.listdir(tmp_path)) - {"in.npy"})


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupt_leaves_what_was_there(tmp_path, overwrite):
    if overwrite:
        (tmp_path / "out.npy").write_text("earlier")

    def interrupt(done, total):
        if done:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, np.zeros((20, 21, 22), np.uint8), WeightedSum((11, 14, 17), FOV), progress=interrupt)
    assert leave_out(tmp_path) == (["out.npy"] if overwrite else [])
    assert not overwrite or (tmp_path / "out.npy").read_text() == "earlier"


def test_a_disk_that_fills_up_midway_is_a_failed_run(tmp_path, monkeypatch):
    calls, pwrite = itertools.count(), os.pwrite

    def fill_up(*arguments):
        if next(calls) > 500:
            raise OSError(28, "No space left on device")
        return pwrite(*arguments)

    monkeypatch.setattr(os, "pwrite", fill_up)
    with pytest.raises(
        RunFailed, match=r"could not write the output .*out\.npy: No space left on device; it needs 54872 b"
    ):
        run(tmp_path, np.zeros((20, 21, 22), np.uint8), WeightedSum((11, 14, 17), FOV))
    assert leave_out(tmp_path) == []


@pytest.mark.parametrize(
    ("array", "options", "error", "says"),
    [
        (np.full((20, 21, 22), np.nan, np.float32), {}, FormatError, "NaN"),
        (np.zeros((20, 21, 22), np.int8), {"normalise": "uint8"}, FormatError, "int8"),
    ],
)
def test_input_that_cannot_be_used_leaves_no_output(tmp_path, array, options, error, says):
    with pytest.raises(error, match=says):
        run(tmp_path, array, WeightedSum((11, 14, 17), FOV), **options)
    assert leave_out(tmp_path) == []


def test_what_does_not_fit_together_is_refused(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((20, 21, 22), np.uint8))
    program = WeightedSum((11, 14, 17), FOV)
    with open_volume(tmp_path / "in.npy") as reader:
        with pytest.raises(InvalidShape, match=r"takes 2 channels, but .*in.npy has 1: .* 1x20x21x22"):
            output_shape(reader, 2, 1, FOV)
        with pytest.raises(InvalidShape, match=r"20x21x22 is smaller than .* 30x3x4 along z;"):
            output_shape(reader, 1, 1, (30, 3, 4))
        with pytest.raises(InvalidShape, match=r"must be 2x19x19x19, but .*out.npy was made for 1x19x19x19"):
            run_volume(program, reader, create_volume(tmp_path / "out.npy", (1, 19, 19, 19)), field_of_view=FOV)
        with pytest.raises(InvalidShape, match="does not go with a field of view of 3x3x4"):
            run_volume(program, reader, create_volume(tmp_path / "out.npy", (2, 18, 19, 19)), field_of_view=(3, 3, 4))
    assert leave_out(tmp_path) == []


MEASURED = """
    import sys
    import numpy as np
    from znni import normalise, volume
    from znni.program import Program
    from znni.volume_files import create_volume, open_volume

    def peak():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

    class Copy:
        def __init__(self):
            self.input = np.zeros((1, 1, 64, 128, 128), np.float32)
            self.output = self.input

        run_all = Program.run_all

        def run(self):
            pass

    path, out, mode = sys.argv[1:]
    import h5py, tifffile
    program = Copy()
    before = peak()
    with open_volume(path) as reader:
        if out:
            writer = create_volume(out, volume.output_shape(reader, 1, 1, (1, 1, 1)))
            volume.run_volume(program, reader, writer, field_of_view=(1, 1, 1), normalise=mode)
        else:
            normaliser = normalise.Normaliser(mode, reader)
            for patch in volume.Grid(reader.shape[1:], program.input.shape[2:], (1, 1, 1)):
                volume.fill(program.input[0], patch, reader, normaliser)
        held = reader.buffer_bytes
    print(peak() - before, held)
"""


def measured(path, out="", mode="volume"):
    command = [sys.executable, "-c", textwrap.dedent(MEASURED), str(path), str(out), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


def large_volume(path, kind):
    shape = (256, 1024, 1024)
    if kind == "npy":
        np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    elif kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file.create_dataset("main", shape, "u1", chunks=(64, 64, 64), compression="gzip")
    else:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(path, shape=shape, dtype=np.uint8)
        if kind == "zlib":
            shape = (
                shape[0],
                512,
                512,
            )  # each patch decodes whole strips: a volume of 1024x1024 takes most of a minute
            pages = (np.zeros(shape[1:], np.uint8) for _ in range(shape[0]))
            tifffile.imwrite(path, pages, shape=shape, dtype=np.uint8, compression="zlib")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize("kind", ["npy", "h5", "tif", "zlib"])
def test_reading_a_large_volume_takes_what_the_reader_says(tmp_path, kind):
    path = tmp_path / f"in.{kind}"
    large_volume(path, kind)
    grown, held = measured(path, mode="none" if kind == "tif" else "volume")
    assert held < 4 * 2**20
    assert grown < held + SCAN_BYTES + 16 * 2**20


@pytest.mark.heavy
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_a_run_from_256_mib_to_1_gib_is_bounded(tmp_path, kind):
    large_volume(tmp_path / f"in.{kind}", kind)
    grown, held = measured(tmp_path / f"in.{kind}", tmp_path / f"out.{kind}")
    assert grown < held + SCAN_BYTES + 16 * 2**20
