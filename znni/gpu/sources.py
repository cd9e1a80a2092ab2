"""The sources of the device's kernels, by which measurements of them are told apart."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "cu"


@lru_cache(maxsize=1)
def sources_digest() -> str:
    """SHA-256 of all files in ``cu/``, with their names."""
    digest = hashlib.sha256()
    for path in sorted(_FOLDER.glob("*.cu*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
