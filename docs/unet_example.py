"""The worked example of README: train a small U-Net to imitate N4 on an EM stack, export it, and show what its plan gives.

    python docs/unet_example.py train STACK.tif N4.h5 unet.onnx
    znni-tune tune unet.onnx --memory 1GiB --budget 40s --volume STACK.tif -o unet.json
    znni-tune run unet.json STACK.tif inside.npy --normalise slice
    python docs/unet_example.py show STACK.tif inside.npy picture.png

Needs torch, onnx, h5py, tifffile and matplotlib. Training takes two minutes on two cores.
"""

from __future__ import annotations

import sys

import numpy as np
import tifffile
import torch
from torch import nn

import znni


class UNet(nn.Module):
    """A residual U-Net for anisotropic EM: 1x3x3 kernels at the finest level, 3x3x3 below, batch norm, ELU, summed skips."""

    def __init__(self, widths=(12, 24, 36)):
        super().__init__()

        def module(i, o, kz):
            layers = []
            for a, z in ((i, 1), (o, kz)):
                layers += [nn.Conv3d(a, o, (z, 3, 3), padding=(z // 2, 1, 1), bias=False), nn.BatchNorm3d(o), nn.ELU()]
            return nn.Sequential(*layers)

        pairs = list(zip((1, *widths), widths, strict=False))
        self.down = nn.ModuleList(module(i, o, 3 if d else 1) for d, (i, o) in enumerate(pairs))
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.up = nn.ModuleList(nn.ConvTranspose3d(o, i, (1, 2, 2), (1, 2, 2)) for i, o in pairs[1:])
        self.merge = nn.ModuleList(module(i, i, 3 if d else 1) for d, i in enumerate(widths[:-1]))
        self.head = nn.Conv3d(widths[0], 1, 1)

    def forward(self, x):
        """(batch, 1, z, y, x) -> probabilities of the same shape."""
        skips = []
        for d, module in enumerate(self.down):
            x = module(self.pool(x) if d else x)
            skips.append(x)
        for d in reversed(range(len(self.up))):
            x = self.merge[d](self.up[d](x) + skips[d])
        return torch.sigmoid(self.head(x))


def train(stack: str, teacher: str, target: str, steps: int = 260) -> None:
    """Train on random crops to give what the teacher gives, and export with free spatial axes."""
    volume = tifffile.imread(stack).astype(np.float32)
    volume = (volume - volume.mean((1, 2), keepdims=True)) / volume.std((1, 2), keepdims=True)
    logits = znni.load(teacher).run(volume[None, None])[0]
    inside = 1 / (1 + np.exp(logits[1] - logits[0]))
    image = volume[:, 47:-47, 47:-47]  # N4's field of view is 95
    torch.manual_seed(0)
    rng, net = np.random.default_rng(0), UNet()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        z, y, x = (rng.integers(0, n - m + 1) for n, m in zip(image.shape, (4, 128, 128), strict=True))
        crop = (slice(z, z + 4), slice(y, y + 128), slice(x, x + 128))
        seen, wanted = (torch.from_numpy(a[crop].copy())[None, None] for a in (image, inside))
        loss = nn.functional.binary_cross_entropy(net(seen), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    free = {2: "z", 3: "y", 4: "x"}
    torch.onnx.export(
        net.eval(), (torch.zeros(1, 1, 4, 64, 64),), target, dynamo=False, input_names=["image"], output_names=["inside"],
        dynamic_axes={"image": free, "inside": free},
    )  # fmt: skip


def show(stack: str, result: str, target: str) -> None:
    """The middle slice and what the network gives for it, side by side."""
    from matplotlib import pyplot

    image, inside = tifffile.imread(stack), np.load(result)[0]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 5))
    for axis, shown in zip(axes, (image[len(image) // 2], inside[len(inside) // 2]), strict=True):
        axis.imshow(shown, cmap="gray")
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(target, dpi=80)


if __name__ == "__main__":
    {"train": train, "show": show}[sys.argv[1]](*sys.argv[2:])
