"""Failures on demand."""

from __future__ import annotations

from collections.abc import Callable

from znni.errors import DeviceError

#: What can be made to fail.
KINDS = ("allocate", "kernel", "launch", "copy", "fft", "blas", "cudnn")


class Faults:
    """The failures that were asked for and have not happened yet."""

    def __init__(self, noticed: Callable[[DeviceError], None]):
        self._due: dict[str, list] = {}
        self._noticed = noticed

    def ask(self, what: str, error: DeviceError | type[DeviceError], after: int, later: bool) -> None:
        """The call of `what` after `after` more fails."""
        if what not in KINDS:
            raise ValueError(f"what can fail is one of {', '.join(KINDS)}, got {what!r}")
        if isinstance(error, type):
            error = error(f"{what} failed, as a test wanted")
        self._due[what] = [after, error, later]

    def meet(self, what: str, work: Callable[[], None] | None = None) -> Callable[[], None] | None:
        """`work`; or raises the failure due; or gives work that will."""
        if what not in self._due:
            return work
        left, error, later = self._due[what]
        if left:
            self._due[what][0] -= 1
            return work
        del self._due[what]
        if later and work is not None:

            def fail():
                raise error

            return fail
        self._noticed(error)
        raise error
