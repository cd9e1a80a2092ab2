"""znni: 3D ConvNet inference by plans, after ZNNi (Zlateski, Lee, Seung, SC'16).

    network + machine + memory limit --tuner--> plan --znni--> output voxels

Arrows run one way: pyx (compiled kernels) <- znni (what runs) <- reports <- tuner (what decides).
"""

from znni._version import __version__
from znni.conv import conv3d
from znni.errors import ZnniError
from znni.fragments import max_pool_fragments, recombine_fragments
from znni.load import load
from znni.network import Network
from znni.plan import Plan
from znni.prepared_conv import PreparedConv3d, prepare_conv3d

__all__ = [
    "Network",
    "Plan",
    "PreparedConv3d",
    "ZnniError",
    "__version__",
    "conv3d",
    "load",
    "max_pool_fragments",
    "prepare_conv3d",
    "recombine_fragments",
]
