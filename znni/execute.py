"""Running a plan: on an array, or from file to file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, product
from pathlib import Path

import numpy as np

from znni.errors import InvalidShape, MemoryLimit
from znni.gpu.current import current
from znni.layers import Triple
from znni.network import Network
from znni.pipeline import Pipeline
from znni.plan import Plan
from znni.process_memory import available_bytes, resident_bytes
from znni.program import Program
from znni.solve import Choice
from znni.volume import Grid, Patch, VolumeRun, output_shape, run_volume
from znni.volume_files import create_volume, open_volume


def program(network: Network, plan: Plan, limit_bytes: int | None = None) -> Program | Pipeline:
    """The plan's program, its memory taken.

    Raises `MemoryLimit` where what it needs is not free, or would lift this process above `limit_bytes`.
    """
    need = plan.memory.get("arena_bytes", 0) + plan.memory.get("resident_bytes", 0)
    free = available_bytes()
    mib = 1 << 20
    if need > free:
        raise MemoryLimit(
            f"this plan needs {need / mib:.0f} MiB, but {free / mib:.0f} MiB are free here; tune with a lower --memory"
        )
    held = resident_bytes()
    if limit_bytes is not None and held + need > limit_bytes:
        raise MemoryLimit(
            f"this plan needs {need / mib:.0f} MiB beside the {held / mib:.0f} MiB that this process holds, which is more than "
            f"its limit of {limit_bytes / mib:.0f} MiB; tune with a lower --memory"
        )
    device_need = plan.memory.get("device_arena_bytes", 0) + plan.memory.get("device_resident_bytes", 0)
    if device_need > (device_free := current().free_bytes() if device_need else 0):
        raise MemoryLimit(
            f"this plan needs {device_need / mib:.0f} MiB on {current().name}, but {device_free / mib:.0f} MiB are free "
            "there; tune with a lower --gpu-memory"
        )
    choices = [(layer.name, Choice(layer.primitive, layer.config)) for layer in plan.layers]
    shape = plan.input_shape(network.in_channels)
    if plan.split is None:
        return Program(network, plan.pooling, plan.levels, shape, choices, plan.threads)
    cut = plan.cut_at()
    return Pipeline(
        network, plan.pooling, plan.levels, shape, plan.split, choices[:cut], choices[cut:], plan.threads
    )


def reach_of(network: Network, plan: Plan) -> tuple[Triple, Triple]:
    """The field of view less what padding makes up for (input less output voxels, and one), and the margin at borders.

    Raises `InvalidShape` where output voxels are not as far apart as input voxels, so that patches cannot be put together.
    """
    if network.sliding:
        return network.field_of_view, (0, 0, 0)
    if not network.same_resolution:
        raise InvalidShape(
            f"{network.name} gives voxels of another size than its input's, so that patches cannot be put together to a "
            "volume; run it patch by patch"
        )
    return tuple(n + 1 for n in network.lost(plan.input_patch)), network.margin(plan.input_patch)


def run_array(network: Network, plan: Plan, x: np.ndarray) -> np.ndarray:
    """The dense result for an array.

    Parameters
    ----------
    x : array of (batch, channels, z, y, x)
        At least the field of view large; taken as float32, not normalised.

    Returns
    -------
    ndarray of float32, (batch, out_channels, z, y, x)
    """
    x = network.check_input(x)
    made = plan.program()
    if x.shape[2:] == plan.input_patch and not network.sliding:
        return _run_patches(made, x)
    grid = Grid(x.shape[2:], plan.input_patch, *reach_of(network, plan))
    out = np.empty((x.shape[0], network.out_channels, *grid.output), np.float32)

    def fill(together: Sequence[tuple[int, Patch]], batch: np.ndarray) -> None:
        batch[:] = 0  # what patches overhang, and what a short last batch leaves over
        for slot, (b, patch) in enumerate(together):
            size = tuple(s.stop - s.start for s in patch.read)
            batch[(slot, slice(None), *map(slice, size))] = x[(b, slice(None), *patch.read)]

    def drain(together: Sequence[tuple[int, Patch]], batch: np.ndarray) -> None:
        for slot, (b, patch) in enumerate(together):
            out[(b, slice(None), *patch.write)] = batch[(slot, slice(None), *patch.keep)]

    jobs = product(range(x.shape[0]), grid)
    made.run_all(iter(lambda: list(islice(jobs, plan.batch)), []), fill, drain)
    return out


def _run_patches(made: Program | Pipeline, x: np.ndarray) -> np.ndarray:
    """The results of patches, each an element of `x`, a batch at a time."""
    size = len(made.input)
    out = np.empty((len(x), *made.output.shape[1:]), np.float32)

    def fill(first: int, batch: np.ndarray) -> None:
        batch[:] = 0
        batch[: len(x) - first] = x[first : first + size]

    def drain(first: int, batch: np.ndarray) -> None:
        out[first : first + size] = batch[: len(x) - first]

    made.run_all(range(0, len(x), size), fill, drain)
    return out


def run_volume_files(
    network: Network,
    plan: Plan,
    source: str | Path,
    target: str | Path,
    *,
    normalise: str | None = None,
    overwrite: bool = False,
    limit_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VolumeRun:
    """Run a plan from file to file (`znni.volume.run_volume`): the valid region of `source`, (channel, z, y, x).

    Parameters
    ----------
    source, target : str or Path
        TIFF, NPY or HDF5 in; NPY or HDF5 out.
    normalise : str, optional
        One of `znni.normalise.MODES`; by default what the plan says.
    limit_bytes : int, optional
        Bound on this process's resident set; `MemoryLimit` before any work where the plan does not fit.
    """
    with open_volume(source) as reader:
        fov, margin = reach_of(network, plan)
        shape = output_shape(reader, network.in_channels, network.out_channels, fov)
        with create_volume(target, shape, overwrite=overwrite) as writer:
            return run_volume(
                program(network, plan, limit_bytes),
                reader,
                writer,
                field_of_view=fov,
                margin=margin,
                normalise=plan.normalise if normalise is None else normalise,
                progress=progress,
            )
