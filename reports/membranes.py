"""An EM slice beside what a network made of it.

    python -m reports.membranes STACK RESULT FIGURE [--slice Z] [--channel C] [--softmax]

STACK is the image (TIFF, NPY, HDF5), RESULT what ``znni-tune run`` made of it (NPY or HDF5; valid region, so smaller than the
image by the field of view less one), FIGURE a PNG or SVG to write.
"""

from __future__ import annotations

import argparse

import numpy as np
from matplotlib.figure import Figure

from znni.volume_files import open_volume


def draw(stack: str, result: str, figure: str, z: int, channel: int, softmax: bool) -> None:
    """Draw slice `z` of the valid region; `softmax` turns linear outputs into probabilities."""
    with open_volume(stack) as image, open_volume(result) as made:
        channels, depth, height, width = made.shape
        margin = [(n - m) // 2 for n, m in zip(image.shape[1:], made.shape[1:], strict=True)]
        where = [slice(margin[0] + z, margin[0] + z + 1)]
        where += [slice(m, m + n) for m, n in zip(margin[1:], (height, width), strict=True)]
        em = np.empty((image.shape[0], 1, height, width), np.float32)
        image.read(tuple(where), em)
        maps = np.empty((channels, 1, height, width), np.float32)
        made.read((slice(z, z + 1), slice(0, height), slice(0, width)), maps)
    if softmax:
        maps = np.exp(maps - maps.max(0))
        maps /= maps.sum(0)
    drawn = Figure(figsize=(9, 4.7), layout="constrained")
    left, right = drawn.subplots(1, 2)
    left.imshow(em[0, 0], cmap="gray")
    left.set_title(f"EM, slice {margin[0] + z} of {depth + 2 * margin[0]}")
    right.imshow(maps[channel, 0], cmap="gray", vmin=0, vmax=1)
    right.set_title("probability of being inside a cell")
    for axes in (left, right):
        axes.set_axis_off()
    drawn.savefig(figure, dpi=100)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="reports.membranes", description=__doc__.splitlines()[0])
    parser.add_argument("stack")
    parser.add_argument("result")
    parser.add_argument("figure")
    parser.add_argument("--slice", type=int, default=0)
    parser.add_argument("--channel", type=int, default=0)
    parser.add_argument("--softmax", action="store_true")
    args = parser.parse_args()
    draw(args.stack, args.result, args.figure, args.slice, args.channel, args.softmax)


if __name__ == "__main__":
    main()
