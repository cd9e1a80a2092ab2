"""Kernels: the sources of znni/gpu/cu compiled with g++, and how one is launched."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

import znni.gpu
from znni.errors import DeviceError, DeviceLost
from znni.gpu.device import DeviceArray, Kernel

SOURCES = Path(znni.gpu.__file__).parent / "cu"
_HEADERS = Path(__file__).parent
_FLAGS = [
    *("-std=c++17", "-O1", "-march=native", "-w", "-fPIC", "-fvisibility=hidden"),
    *("-fno-strict-aliasing", "-fno-stack-protector", "-U_FORTIFY_SOURCE", "-fsanitize=bounds,alignment,shift"),
]

_MOST_THREADS = 1024
_STACK_BYTES = 64 << 10
_GUARD_BYTES = 512
_MOST_SHARED_BYTES = 256 << 10
_MESSAGE_BYTES = 1024
_FAILED, _BROKEN = 1, 2


_one_at_a_time = threading.Lock()


class _Launch(ctypes.Structure):
    """As in blocks_on_cpu.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("seed", ctypes.c_uint),
        ("arguments", ctypes.c_void_p),
        ("stacks", ctypes.c_void_p),
        ("stack_bytes", ctypes.c_ulonglong),
        ("shared", ctypes.c_void_p),
        ("message", ctypes.c_void_p),
        ("message_bytes", ctypes.c_ulonglong),
    )


@cache
def _stacks() -> mmap.mmap:
    """The stacks of a block's threads, each with a page below that must not be touched."""
    stacks = mmap.mmap(-1, _MOST_THREADS * _STACK_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    libc = ctypes.CDLL(None)
    start = _address(stacks)
    for thread in range(_MOST_THREADS):
        libc.mprotect(ctypes.c_void_p(start + thread * _STACK_BYTES), ctypes.c_size_t(mmap.PAGESIZE), 0)
    return stacks


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@cache
def _block_memory() -> mmap.mmap:
    """The dynamic shared memory of the block that runs."""
    return mmap.mmap(-1, _MOST_SHARED_BYTES + _GUARD_BYTES)


class SimulatedKernel(Kernel):
    """A compiled kernel; `run` is the launch itself, at once."""

    def __init__(self, function: str, library: ctypes.CDLL):
        self.function = function
        self._launch = getattr(library, f"zn_launch_{function}")
        signature = getattr(library, f"zn_signature_{function}")
        signature.restype = ctypes.c_char_p
        self.signature = signature().decode()
        self.most_threads = min(_MOST_THREADS, getattr(library, f"zn_bound_{function}")())

    def packed(self, arguments) -> list:
        """The arguments as C has them; `DeviceError` where they are not what the kernel takes."""
        if len(arguments) != len(self.signature):
            raise DeviceError(f"{self.function} takes {len(self.signature)} arguments, got {len(arguments)}")
        wanted = {
            "p": ((DeviceArray, type(None)), lambda a: ctypes.c_void_p(a.pointer if a is not None else None)),
            "i": (np.int32, lambda a: ctypes.c_int(int(a))),
            "l": (np.int64, lambda a: ctypes.c_longlong(int(a))),
            "f": (np.float32, lambda a: ctypes.c_float(float(a))),
        }
        values = []
        for place, (code, argument) in enumerate(zip(self.signature, arguments, strict=True)):
            kind, convert = wanted.get(code, ((), None))
            if not isinstance(argument, kind):
                raise DeviceError(
                    f"argument {place} of {self.function} is given as {type(argument).__name__}, which is not what the kernel "
                    f"takes ({code!r} of p: pointer, i: int32, l: int64, f: float32)"
                )
            values.append(convert(argument))
        return values

    def run(self, grid, block, values: list, shared_bytes: int, seed: int) -> None:
        """All blocks, now. `DeviceError` where the kernel does what it must not."""
        pointers = (ctypes.c_void_p * max(1, len(values)))(*map(ctypes.addressof, values))
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        launch = _Launch(
            grid,
            block,
            shared_bytes,
            seed,
            ctypes.addressof(pointers),
            _address(_stacks()),
            _STACK_BYTES,
            _address(_block_memory()),
            ctypes.addressof(message),
            _MESSAGE_BYTES,
        )
        with _one_at_a_time:  # stacks and shared memory are this process's
            result = self._launch(ctypes.byref(launch))
        if result:
            error = DeviceLost if result == _BROKEN else DeviceError
            raise error(f"{self.function} failed: {message.value.decode()}")


@cache
def _folder() -> Path:
    """Where libraries are kept, for this user only."""
    folder = Path(tempfile.gettempdir()) / f"znni-simulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    return folder


def _kernels(text: str) -> dict[str, str]:
    """Names of the kernels in preprocessed source, with their ``__launch_bounds__``, or 0."""
    found = {}
    for start in re.finditer(r"\b__global__\b", text):
        at, bound, name = start.end(), "0", ""
        while match := re.compile(r"\s*(\w+)").match(text, at):
            name, at = match[1], match.end()
            if name == "__launch_bounds__":
                bound, at = _bound(text, text.index("(", at))
        found[name] = bound
    return found


def _bound(text: str, at: int) -> tuple[str, int]:
    """The first argument of ``__launch_bounds__``, whose parenthesis opens at `at`, and where it has closed."""
    depth, first, end = 0, at + 1, None
    for place in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if end is None and ((text[place] == "," and depth == 1) or depth == 0):
            end = place
        if depth == 0:
            return text[first:end], place + 1
    raise DeviceError("a __launch_bounds__ does not end")


def _told(command: list[str], source: str, text: str | None = None) -> str:
    """What a compiler's command prints; `DeviceError` with its words where it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(f"{source} cannot be compiled:\n{done.stderr.strip()}")
    return done.stdout


@cache
def _library(folder: Path, source: str, defines: tuple[tuple[str, str], ...]) -> tuple[ctypes.CDLL, frozenset[str]]:
    """The library of a source with these macros, and the kernels in it."""
    path = folder / source
    if not path.is_file():
        raise DeviceError(f"there is no kernel source {source}")
    macros = [f"-D{key}={value}" for key, value in defines]
    includes = [f"-I{_HEADERS}", f"-I{folder}", f"-I{SOURCES}"]
    text = _told(["g++", "-E", "-P", "-x", "c++", "-std=c++17", *macros, *includes, str(path)], source)
    kernels = _kernels(text)
    headers = "".join((_HEADERS / name).read_text() for name in ("cuda_on_cpu.h", "blocks_on_cpu.h"))
    key = hashlib.sha256("\0".join([text, headers, *_FLAGS]).encode()).hexdigest()[:24]
    target = _folder() / f"{path.stem}-{key}.so"
    if not target.exists():
        # in a namespace of its own, so that all that a kernel uses is this file's alone
        given = "".join(f"#define {key} {value}\n" for key, value in defines)
        whole = f'#include "cuda_on_cpu.h"\n{given}namespace {{\n#include "{path}"\n}}\n'
        whole += "".join(f"ZN_KERNEL({name}, {bound})\n" for name, bound in kernels.items())
        made = target.with_suffix(f".{os.getpid()}.o")
        try:
            _told(["g++", *_FLAGS, *includes, "-x", "c++", "-c", "-", "-o", str(made)], source, whole)
            _told(["g++", "-shared", str(made), "-o", f"{made}.so"], source)
            os.replace(f"{made}.so", target)
        finally:
            made.unlink(missing_ok=True)
    return ctypes.CDLL(str(target)), frozenset(kernels)


@cache
def _kernel(folder: Path, source: str, function: str, defines: tuple[tuple[str, str], ...]) -> SimulatedKernel:
    library, kernels = _library(folder, source, defines)
    if function not in kernels:
        raise DeviceError(f"{source} has no kernel {function}; it has {', '.join(sorted(kernels))}")
    return SimulatedKernel(function, library)


def compiled(
    source: str, function: str, defines: Mapping[str, int | str] | None = None, folder: Path = SOURCES
) -> SimulatedKernel:
    """A kernel of a source in `folder`, compiled once a process and kept for the next."""
    return _kernel(folder, source, function, tuple(sorted((key, str(value)) for key, value in (defines or {}).items())))
