"""FFT convolutions on the device whose tiles are whole images: what `gpu.fft` and `gpu.fft_pruned` share."""

from __future__ import annotations

from znni.gpu.fft_convolution import FftConvolution
from znni.gpu.fft_tiling import Tiling
from znni.gpu.spectra import BYTES, CGEMM, LINES
from znni.gpu.transforms import Transforms
from znni.layers import Conv, Shape
from znni.primitives.base import Config

#: Bytes that blocks of spectra may take, worth trying.
_BUDGETS = (1 << 33, 1 << 30, 1 << 27)
#: Images from which on it is guessed that cuBLAS makes good for the transpositions.
_MANY_IMAGES = 8
#: Parts of an image's tiles, and of the output channels, that are computed one after another where memory is what counts.
_THRIFTY_PARTS = 8


class WholePatch(FftConvolution):
    """One tile an image; a tile a plane where the kernel is flat. Subclasses name their `way` to transform."""

    whole_patch = True
    way: type[Transforms]

    def transforms(self, layer: Conv, shape: Shape, config: Config) -> Transforms:
        """Of the whole padded image."""
        return self.way(layer, shape, Tiling.whole(layer, shape))

    def supports(self, layer: Conv, shape: Shape) -> str | None:
        """None, or what of stride, kernel and size it cannot do."""
        return super().supports(layer, shape) or self.too_large(self.transforms(layer, shape, {}))

    def configs(self, layer: Conv, shape: Shape, machine=None) -> list[Config]:
        """Blocks for much and little memory; both ways to multiply, spectra kept, TF32; and what takes the least memory."""
        self.refuse(layer, shape)
        tiling = Tiling.whole(layer, shape)
        tiles, channels, out_channels = tiling.tiles, shape[1], layer.out_channels
        usual, other = (CGEMM, LINES) if tiles >= _MANY_IMAGES else (LINES, CGEMM)

        def within(budget: int) -> dict:
            """Half of it for spectra of kernels, half for those of images."""
            spectra = max(1, budget // (2 * BYTES * tiling.frequencies))
            outputs = min(max(1, spectra // channels), out_channels)
            return {"block": min(max(1, spectra // (channels + outputs)), tiles), "outputs": outputs}

        most, *less = map(within, _BUDGETS)
        configs = [
            most | {"spectra": "recomputed", "product": usual},
            most | {"spectra": "resident", "product": usual},
            most | {"spectra": "recomputed", "product": other},
        ]
        if tiles > 1:
            configs.append(most | {"spectra": "recomputed", "product": CGEMM, "tf32": True})
        configs += [blocks | {"spectra": "recomputed", "product": usual} for blocks in less]
        thrifty = {"block": -(-tiles // (tiling.batch * _THRIFTY_PARTS)), "outputs": -(-out_channels // _THRIFTY_PARTS)}
        configs.append(thrifty | {"spectra": "recomputed", "product": LINES})
        return [config for i, config in enumerate(configs) if config not in configs[:i]]
