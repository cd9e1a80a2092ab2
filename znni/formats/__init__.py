"""Readers of network files: ZNNi ``.znni``, ZNN ``.znn`` and ZNN HDF5, and of weights for networks that come without.

Every reader makes a `Description`; whatever is wrong with a file is a `FormatError` that names the file and the line or
layer. Kernels are flipped here, once, where the file's convention is convolution.
"""
