"""A simulated device for tests: the package's own kernels on the CPU, NumPy in place of the vendor's libraries.

It computes what a device would, and is as strict as one may be: see `device.py`. It can be reached from tests only.
"""

from .device import SimulatedDevice

__all__ = ["SimulatedDevice"]
