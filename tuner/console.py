"""What the command line writes: tables and JSON on stdout, one line of progress on stderr where that is a terminal."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence


def finite(value):
    """`value` with infinities and NaN, which JSON lacks, as None."""
    if isinstance(value, dict):
        return {str(key): finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_json(data: object) -> None:
    """`data` as JSON on stdout."""
    print(json.dumps(finite(data), indent=1, allow_nan=False))


def note(text: str) -> None:
    """A sentence on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows under a header, the first `left` columns flush left, the others flush right."""
    cells = [list(header), *[list(map(str, row)) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


class StatusLine:
    """One line on stderr that is written over; nothing at all where stderr is no terminal."""

    def __init__(self, quiet: bool = False):
        self._shown = sys.stderr.isatty() and not quiet
        self._length = 0

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._shown:
            text = text[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write("\r" + text.ljust(self._length))
            sys.stderr.flush()
            self._length = len(text)

    def clear(self) -> None:
        """Remove the line."""
        if self._shown and self._length:
            sys.stderr.write("\r" + " " * self._length + "\r")
            sys.stderr.flush()
            self._length = 0
