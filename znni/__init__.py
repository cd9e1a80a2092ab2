"""znni: 3D ConvNet inference by plans, after ZNNi (Zlateski, Lee, Seung, SC'16)."""

from znni._version import __version__  # noqa: F401
