"""What the control groups of this process allow it, versions 1 and 2, as inside containers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
#: A version 1 hierarchy without a limit says a number near 2^63.
_NO_LIMIT_BYTES = 1 << 60


def memory_limits(root: Path = _ROOT) -> list[tuple[int, int]]:
    """(limit, used) in bytes of every group that bounds this process's memory, parents included.

    Page cache that the kernel would give back at once (inactive files) does not count as used.
    """
    found = []
    for folder, version in _folders("memory", root):
        if version == 2:
            limit_name, used_name, cache_key = "memory.max", "memory.current", "inactive_file"
        else:
            limit_name, used_name, cache_key = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None and limit < _NO_LIMIT_BYTES:
            found.append((limit, max(0, used - _stat_bytes(folder / "memory.stat", cache_key))))
    return found


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Cores' worth of time that this process's groups allow it, or None where they set no bound."""
    quotas = []
    for folder, version in _folders("cpu", root):
        if version == 2:
            quota, _, period = (_text(folder / "cpu.max") or "max").partition(" ")
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us") or "-1", _text(folder / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _folders(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """The folders (and versions) of this process's groups for `controller`, parents included.

    Inside a container the path may be the host's, of which only the mounted root is visible: parents are tried for that
    too.
    """
    lines = (_text(root / "proc/self/cgroup") or "").splitlines()
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, own = line.split(":", 2)
        path = PurePosixPath(own.lstrip("/"))
        if not controllers:
            hierarchies, version = [mounted, mounted / "unified"], 2
        elif controller in controllers.split(","):
            hierarchies, version = [mounted / controller, mounted / controllers], 1
        else:
            continue
        for hierarchy in dict.fromkeys(hierarchies):
            for part in dict.fromkeys([path, *path.parents]):
                if (hierarchy / part).is_dir():
                    yield hierarchy / part, version


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.isdigit() else None  # version 2 says "max" where there is no limit


def _stat_bytes(path: Path, key: str) -> int:
    for line in (_text(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
