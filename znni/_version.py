"""The version of znni."""

__version__ = "0.1.0"
