"""GPUs: one device a process, opened explicitly, released on exit.

    with znni.gpu.open_device() as device: ...      everything below finds it by `current`

`device.py` is what the primitives ask of a device, `cuda_device.py` the real one (pycuda, scikit-cuda), loaded on opening. The
kernels lie in ``cu/``.
"""

from znni.gpu.current import close_device, current, is_open, open_device, use
from znni.gpu.device import BlasSpec, Device, DeviceArray, Event, Fft, FftSpec, Kernel, Stream

__all__ = [
    "BlasSpec",
    "Device",
    "DeviceArray",
    "Event",
    "Fft",
    "FftSpec",
    "Kernel",
    "Stream",
    "close_device",
    "current",
    "is_open",
    "open_device",
    "use",
]
