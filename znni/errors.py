"""Errors a user can meet. Each says what was expected, what was got and what to do next."""


class ZnniError(Exception):
    """Base of every error that znni raises on purpose; a request that is wrong or cannot be started (exit code 2)."""


class InvalidShape(ZnniError, ValueError):
    """An array or patch whose shape a layer, network or plan cannot take."""


class Unsupported(ZnniError, ValueError):
    """A primitive was asked for a layer, shape or config that it cannot compute."""


class MemoryLimit(ZnniError):
    """A plan or operator needs more bytes than it may use."""


class FormatError(ZnniError, ValueError):
    """A network, plan or volume file that cannot be read, or holds what cannot be used."""


class PlanMismatch(ZnniError):
    """A plan that belongs to another network, or cannot run on this machine."""


class RunFailed(ZnniError):
    """Work that was started and failed midway (exit code 1): disk full, a candidate's crash, a missed tolerance."""
