"""The lines and numbers of text formats."""

from __future__ import annotations

import re
from pathlib import Path

from znni.errors import FormatError
from znni.layers import Triple

_NUMBER = re.compile(r"0*[1-9][0-9]{0,5}")
#: A network of a thousand layers takes some 100 kB.
_MOST_BYTES = 16 << 20


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that hold something, comments (#) cut off, with their numbers from 1."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise FormatError(f"{path} is larger than the {_MOST_BYTES} bytes that a network description can have")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not a text file: byte {error.start} is not UTF-8") from error
    stripped = ((number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1))
    return [(number, line) for number, line in stripped if line]


def positive(text: str, what: str) -> int:
    """A positive integer below a million; `what` begins the sentence that refuses anything else."""
    if not _NUMBER.fullmatch(text):
        raise FormatError(f"{what} must be a positive integer below a million, got {text!r}")
    return int(text)


def positive_triple(text: str, what: str) -> Triple:
    """``z,y,x`` as positive integers; ``y,x`` of a 2D network has z = 1."""
    parts = text.split(",")
    if len(parts) not in (2, 3):
        raise FormatError(f"{what} must be z,y,x (or y,x), got {text!r}")
    values = [positive(part.strip(), f"each number of {what}") for part in parts]
    return tuple([1] * (3 - len(values)) + values)
