"""Errors a user can meet. Each says what was expected, what was got and what to do next."""


class ZnniError(Exception):
    """Base of every error that znni raises on purpose; a request that is wrong or cannot be started (exit code 2)."""


class InvalidShape(ZnniError, ValueError):
    """An array or patch whose shape a layer, network or plan cannot take."""


class Unsupported(ZnniError, ValueError):
    """A primitive was asked for a layer, shape or config that it cannot compute."""


class MemoryLimit(ZnniError):
    """A plan or operator needs more bytes than it may use."""


class NoDevice(ZnniError):
    """A GPU was asked for, and there is none that can be used: driver, library or compiler missing, or none opened."""


class FormatError(ZnniError, ValueError):
    """A network, plan or volume file that cannot be read, or holds what cannot be used."""


class PlanMismatch(ZnniError):
    """A plan that belongs to another network, or cannot run on this machine."""


class RunFailed(ZnniError):
    """Work that was started and failed midway (exit code 1): disk full, a candidate's crash, a missed tolerance."""


class DeviceError(RunFailed):
    """Work on a device failed: a kernel that could not be compiled or launched, a library's call, a copy."""


class DeviceMemory(DeviceError, MemoryLimit):
    """A device has less memory free than was asked for."""


class DeviceLost(DeviceError):
    """A device stopped answering, or a kernel broke its context: nothing more can be done with it in this process."""
