"""Quantities as people write and read them: ``4GiB``, ``120s``, ``92,92,92``."""

from __future__ import annotations

import math
import re

from znni.errors import ZnniError
from znni.layers import Triple

_BYTES = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}  # fmt: skip
_SECONDS = {"": 1, "s": 1, "ms": 1e-3, "min": 60, "m": 60, "h": 3600}
#: In place of a size: as much as there is.
ALL = "all"
_NUMBER_UNIT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*")


class BadQuantity(ZnniError, ValueError):
    """A quantity that cannot be read."""


def _quantity(text: str, units: dict[str, float], expected: str) -> float:
    match = _NUMBER_UNIT.fullmatch(text)
    units_by_lower = {unit.lower(): factor for unit, factor in units.items()}
    if not match or match[2].lower() not in units_by_lower:
        raise BadQuantity(f"expected {expected}, got {text!r}")
    return float(match[1]) * units_by_lower[match[2].lower()]


def parse_bytes(text: str) -> int:
    """``4GiB`` (2^30), ``4GB`` (10^9), MiB, MB, KiB, kB, TiB, TB or plain bytes, as a number of bytes, at least 1."""
    expected = "a size such as 4GiB, 512MiB, 4GB (10^9) or plain bytes"
    value = int(_quantity(text, _BYTES, expected))
    if value < 1:
        raise BadQuantity(f"expected {expected}, more than nothing, got {text!r}")
    return value


def parse_limit(text: str) -> int | str:
    """As `parse_bytes`, or ``all``: as much as there is."""
    return ALL if text.strip().lower() == ALL else parse_bytes(text)


def parse_seconds(text: str) -> float:
    """``120s``, ``2min``, ``1.5h`` or plain seconds, as seconds, more than 0."""
    expected = "a time such as 120s, 2min or 1.5h"
    value = _quantity(text, _SECONDS, expected)
    if not 0 < value < math.inf:
        raise BadQuantity(f"expected {expected}, more than nothing, got {text!r}")
    return value


def parse_triple(text: str, least: int = 1) -> Triple:
    """``92`` or ``24,92,92`` as (z, y, x)."""
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"\s*\d{1,9}\s*", part) for part in parts):
        raise BadQuantity(f"expected one integer or three as z,y,x, such as 92 or 24,92,92, got {text!r}")
    values = tuple(int(part) for part in parts)
    if min(values) < least:
        raise BadQuantity(f"expected z,y,x of at least {least} each, got {text!r}")
    return values * 3 if len(values) == 1 else values


def parse_positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BadQuantity(f"expected a number above 0, got {text!r}")
    return value


def parse_count(text: str, least: int = 1) -> int:
    """An integer of at least `least`, with at most nine digits."""
    if not re.fullmatch(r"\s*\d{1,9}\s*", text) or int(text) < least:
        raise BadQuantity(f"expected an integer of at least {least}, got {text!r}")
    return int(text)


def parse_seed(text: str) -> int:
    """An integer of at least 0."""
    return parse_count(text, least=0)


def bytes_text(nbytes: float | None) -> str:
    """Bytes in the largest binary unit that leaves a figure of at least 1, three digits: ``3.72 GiB``."""
    if nbytes is None:
        return "-"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(nbytes) >= size:
            return f"{digits(nbytes / size)} {unit}"
    return f"{nbytes:.0f} B"


def seconds_text(seconds: float | None) -> str:
    """Seconds in the unit that leaves a figure of at least 1, three digits: ``41.2 ms``."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= size:
            return f"{digits(seconds / size)} {unit}"
    return f"{digits(seconds / 1e-9)} ns"


def digits(value: float | None, significant: int = 3) -> str:
    """A figure to so many significant digits, thousands apart, without an exponent: ``12,346``, ``0.0123``."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, significant - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"
