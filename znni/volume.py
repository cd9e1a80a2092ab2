"""Running a program over a volume: the grid of patches, and the loop from file to file in bounded memory.

The result is that of the network on the whole volume: patches overlap in the input, by the field of view less one, and
no output voxel is taken from two patches, so there is nothing to blend.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from math import prod
from typing import Protocol

import numpy as np

from znni import geometry
from znni.errors import InvalidShape
from znni.layers import AXES, Triple, by_x
from znni.normalise import Normaliser
from znni.volume_reader import Region, VolumeReader
from znni.volume_writer import VolumeWriter


class PatchProgram(Protocol):
    """What runs a batch of patches (`znni.program.Program`)."""

    input: np.ndarray
    output: np.ndarray

    def run_all(self, jobs: Iterable, fill: Callable, drain: Callable) -> float:
        """For every job `fill` its input, compute, and `drain` its output; the seconds that computing took."""


@dataclass(frozen=True)
class AxisCut:
    """One patch along one axis, in voxels: reads `size` from `start` on; of its output, `keep` goes to `write`."""

    start: int
    size: int
    keep: slice
    write: slice


def cut_axis(volume: int, patch: int, fov: int, margin: int = 0) -> tuple[AxisCut, ...]:
    """Cover the ``volume - fov + 1`` output voxels of an axis with patches, each voxel once.

    The last patch is shifted back into the volume, and the part of it that is done already dropped. Of each patch, `margin`
    output voxels are dropped where another one gives them. Where the volume is smaller than the patch, `size` is less than the
    patch: the rest is padding, and of the output only those ``size - fov + 1`` voxels are kept whose field of view holds none
    of it.
    """
    wanted, output = volume - fov + 1, patch - fov + 1
    if volume < patch:
        return (AxisCut(0, volume, slice(0, wanted), slice(0, wanted)),)
    cuts, done = [], 0
    while done < wanted:
        start = min(max(0, done - margin), wanted - output)
        end = start + output - (margin if start + output < wanted else 0)
        cuts.append(AxisCut(start, patch, slice(done - start, end - start), slice(done, end)))
        done = end
    return tuple(cuts)


@dataclass(frozen=True)
class Patch:
    """One patch: what it reads of the volume, and which part of its output is written where."""

    read: Region
    keep: Region
    write: Region

    @property
    def voxels(self) -> int:
        """Output voxels written."""
        return prod(s.stop - s.start for s in self.write)


class Grid:
    """The patches that cover a volume, x fastest.

    Parameters
    ----------
    volume, patch, fov : (z, y, x)
        Voxels of the input volume, of the input patch, and of the field of view (of networks that pad: less what that
        makes up for).
    margin : (z, y, x)
        Output voxels at the border of a patch that are taken from another one, where there is one; less than half of them.

    Raises
    ------
    InvalidShape
        A volume or patch smaller than the field of view.
    """

    def __init__(self, volume: Triple, patch: Triple, fov: Triple, margin: Triple = (0, 0, 0)):
        for what, size in (("volume", volume), ("input patch", patch)):
            short = [axis for axis, n, f in zip(AXES, size, fov, strict=True) if n < f]
            if short:
                raise InvalidShape(
                    f"{what} {by_x(size)} is smaller than the network's field of view {by_x(fov)} "
                    f"along {', '.join(short)}; each output voxel needs that many input voxels"
                )
        self.output: Triple = geometry.output_size(volume, fov)
        self.axes = tuple(cut_axis(*sizes) for sizes in zip(volume, patch, fov, margin, strict=True))

    def __len__(self) -> int:
        return prod(len(cuts) for cuts in self.axes)

    def __iter__(self) -> Iterator[Patch]:
        for cuts in product(*self.axes):
            yield Patch(
                tuple(slice(cut.start, cut.start + cut.size) for cut in cuts),
                tuple(cut.keep for cut in cuts),
                tuple(cut.write for cut in cuts),
            )


@dataclass(frozen=True)
class VolumeRun:
    """What a run over a volume did.

    Attributes
    ----------
    voxels : int
        Output voxels written (of one channel).
    patches, runs : int
        Patches computed, and program runs of a batch of them.
    computed_voxels : int
        Output voxels computed: more than `voxels` where patches overlap, are padded or fill up a batch.
    wall_s, prepare_s, read_s, compute_s, write_s : float
        Seconds in all; for the statistics of the volume; for reading and normalising; in the program; for writing.
    """

    voxels: int
    patches: int
    runs: int
    computed_voxels: int
    wall_s: float
    prepare_s: float
    read_s: float
    compute_s: float
    write_s: float

    @property
    def voxels_per_s(self) -> float:
        """Output voxels per second, files included."""
        return self.voxels / self.wall_s


def output_shape(reader: VolumeReader, in_channels: int, out_channels: int, field_of_view: Triple) -> tuple[int, ...]:
    """The shape (channel, z, y, x) of the result; `InvalidShape` where the volume does not suit the network."""
    if reader.shape[0] != in_channels:
        raise InvalidShape(
            f"the network takes {in_channels} channel{'s' * (in_channels != 1)}, but {reader.path} "
            f"has {reader.shape[0]}: its (channel, z, y, x) is {by_x(reader.shape)}"
        )
    return (out_channels, *Grid(reader.shape[1:], field_of_view, field_of_view).output)


def run_volume(
    program: PatchProgram,
    reader: VolumeReader,
    writer: VolumeWriter,
    *,
    field_of_view: Sequence[int],
    margin: Sequence[int] = (0, 0, 0),
    normalise: str = "none",
    progress: Callable[[int, int], None] | None = None,
) -> VolumeRun:
    """Run a program over a whole volume and commit the result; on any failure, an interrupt included, remove it.

    Memory beside the program's: `reader.buffer_bytes`, `writer.buffer_bytes` and, before the first patch,
    `znni.normalise.SCAN_BYTES`.

    Parameters
    ----------
    program : PatchProgram
        For input patches (batch, channels, z, y, x).
    reader : VolumeReader
        The input; at least as large as the field of view. Where it is smaller than the patch, it is padded with zeros
        (after normalising), and what they touch is dropped.
    writer : VolumeWriter
        For the shape that `output_shape` gives.
    field_of_view, margin : (z, y, x)
        As `Grid` takes them.
    normalise : one of `znni.normalise.MODES`
    progress : callable of (done, total), optional
        Called with output voxels as patches are done.

    Raises
    ------
    InvalidShape
        Volume, program and writer do not fit one another.
    FormatError
        Values in the volume that cannot be used (NaN, infinite, not uint8 for ``uint8``).
    RunFailed
        Reading or writing failed midway: a damaged input, a full disk.
    """
    with writer:
        fov = tuple(field_of_view)
        x, out = program.input, program.output
        expected = output_shape(reader, x.shape[1], out.shape[1], fov)
        if writer.shape != expected:
            raise InvalidShape(
                f"the output must be {by_x(expected)}, but {writer.path} was made for {by_x(writer.shape)}"
            )
        grid = Grid(reader.shape[1:], x.shape[2:], fov, tuple(margin))
        if out.shape[2:] != geometry.output_size(x.shape[2:], fov):
            raise InvalidShape(
                f"a patch of {by_x(x.shape[2:])} gives {by_x(out.shape[2:])} in this program, "
                f"which does not go with a field of view of {by_x(fov)}"
            )
        return _run(program, reader, writer, grid, normalise, progress)


def _run(
    program: PatchProgram,
    reader: VolumeReader,
    writer: VolumeWriter,
    grid: Grid,
    normalise: str,
    progress: Callable[[int, int], None] | None,
) -> VolumeRun:
    begin = time.perf_counter()
    normaliser = Normaliser(normalise, reader)
    prepare_s, read_s, write_s = time.perf_counter() - begin, 0.0, 0.0
    total, done, runs = prod(grid.output), 0, 0
    if progress:
        progress(0, total)

    def read(together: Sequence[Patch], batch: np.ndarray) -> None:
        nonlocal read_s
        start = time.perf_counter()
        for patch, x in zip(together, batch, strict=False):
            fill(x, patch, reader, normaliser)
        batch[len(together) :] = 0  # the last batch may be short
        read_s += time.perf_counter() - start

    def write(together: Sequence[Patch], batch: np.ndarray) -> None:
        nonlocal write_s, done, runs
        start = time.perf_counter()
        for patch, out in zip(together, batch, strict=False):
            writer.write(patch.write, out[(slice(None), *patch.keep)])
            done += patch.voxels
        runs += 1
        write_s += time.perf_counter() - start
        if progress:
            progress(done, total)

    patches = iter(grid)
    batches = iter(lambda: list(islice(patches, len(program.input))), [])
    compute_s = program.run_all(batches, read, write)
    start = time.perf_counter()
    writer.commit()
    end = time.perf_counter()
    write_s += end - start
    computed = runs * program.output.shape[0] * prod(program.output.shape[2:])
    return VolumeRun(done, len(grid), runs, computed, end - begin, prepare_s, read_s, compute_s, write_s)


def fill(x: np.ndarray, patch: Patch, reader: VolumeReader, normaliser: Normaliser) -> None:
    """Read, normalise and pad one patch into `x` (channels, z, y, x)."""
    size = tuple(s.stop - s.start for s in patch.read)
    inside = x[:, : size[0], : size[1], : size[2]]
    reader.read(patch.read, inside)
    normaliser.apply(patch.read, inside)
    for axis in range(3):
        if size[axis] < x.shape[1 + axis]:
            x[(slice(None),) * (1 + axis) + (slice(size[axis], None),)] = 0
