"""Where CUDA's libraries and its compiler lie: in Python packages (NVIDIA's wheels, which PyTorch brings too), in a toolkit, or
where the system's loader finds them.

The newest one that the driver supports is taken, from the first place that has one. A library that this process has loaded
already comes first of all: two copies of one library in a process cost memory and may disagree.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from znni.errors import NoDevice

_ROOT = Path("/")


@dataclass(frozen=True)
class Library:
    """One of CUDA's libraries.

    Attributes
    ----------
    name : str
        As people say it, "cuFFT".
    stem : str
        Its file is ``lib<stem>.so.<version>``.
    behind : int or None
        CUDA's major version less the library's; None where its versions do not follow CUDA's.
    companions : tuple of str
        Stems of libraries that it loads when it needs them, but does not find by itself where each lies in a folder of its own.
    package : str
        What to install with pip; ``{}`` is CUDA's major version.
    """

    name: str
    stem: str
    behind: int | None
    companions: tuple[str, ...]
    package: str


CUFFT = Library("cuFFT", "cufft", 1, ("nvJitLink",), "nvidia-cufft (CUDA 13) or nvidia-cufft-cu12 (CUDA 12)")
CUBLAS = Library("cuBLAS", "cublas", 0, ("cublasLt",), "nvidia-cublas (CUDA 13) or nvidia-cublas-cu12 (CUDA 12)")
CUDNN = Library(
    "cuDNN", "cudnn", None, ("nvrtc", "cublasLt"), "nvidia-cudnn-cu13 (CUDA 13) or nvidia-cudnn-cu12 (CUDA 12)"
)


def find(library: Library, cuda: tuple[int, int] | None = None, root: Path = _ROOT) -> Path:
    """The file of `library` to load.

    Parameters
    ----------
    cuda : tuple of int
        The newest CUDA that the driver supports; libraries of newer ones are passed over.

    Raises
    ------
    NoDevice
        Says where it was looked for, what was passed over, and what to install.
    """
    newest = None if cuda is None or library.behind is None else cuda[0] - library.behind
    path, passed_over = _first(library.stem, newest, root)
    if path is not None:
        return path
    also = f"; passed over, for the driver supports CUDA {cuda[0]} at most: {passed_over[0]}" if passed_over else ""
    raise NoDevice(
        f"{library.name} was not found: no lib{library.stem}.so in {_places_text(root)}{also}; pip install {library.package}, "
        f"or a CUDA toolkit with it"
    )


def load_companions(library: Library, path: Path, root: Path = _ROOT) -> None:
    """Load what `library` will look for by name: what is loaded is found, wherever it lies. Missing ones are left out: most
    uses do without, and the library says so itself where it does not."""
    for stem in library.companions:
        beside = sorted(path.parent.glob(f"lib{stem}.so*"))
        file = beside[-1] if beside else _first(stem, None, root)[0]
        if file is not None:
            try:
                ctypes.CDLL(str(file))
            except OSError:
                continue


def find_nvcc(root: Path = _ROOT) -> Path:
    """CUDA's compiler: that of ``$CUDA_HOME`` or ``$CUDA_PATH``, on the PATH, of NVIDIA's wheels, or under /usr/local.

    Raises
    ------
    NoDevice
        Says where it was looked for.
    """
    on_path = shutil.which("nvcc")
    folders = [home / "bin" for home in _homes()]
    candidates = [folder / "nvcc" for folder in folders]
    candidates += [Path(on_path)] if on_path else []
    candidates += [lib.parent / "bin/nvcc" for lib in _wheel_folders()]
    candidates += [folder / "bin/nvcc" for folder in _toolkits(root)]
    for path in candidates:
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise NoDevice(
        "CUDA's compiler was not found: no nvcc on the PATH, in $CUDA_HOME/bin, in NVIDIA's Python packages, or in "
        "/usr/local/cuda*/bin; install a CUDA toolkit (12 or 13)"
    )


def version_of(path: Path) -> tuple[int, ...]:
    """Version in a library's file name, or in that of what it links to; () where there is none."""
    for name in (path.name, os.path.basename(os.path.realpath(path))):
        said = re.search(r"\.so\.(\d+(?:\.\d+)*)$", name)
        if said:
            return tuple(int(number) for number in said[1].split("."))
    return ()


def _first(stem: str, newest: int | None, root: Path) -> tuple[Path | None, list[Path]]:
    """The library to load, and those that are too new."""
    passed_over = []
    for found in _by_place(stem, root):
        usable = []
        for path in found:
            version = version_of(path)
            if newest is not None and version and version[0] > newest:
                passed_over.append(path)
            else:
                usable.append((version[:1], path))
        if usable:
            return max(usable)[1], passed_over
    return None, passed_over


def _by_place(stem: str, root: Path) -> Iterator[list[Path]]:
    """Files of a library, place by place; the loader's cache, which takes a process to ask, comes last."""
    yield _loaded(stem, root)
    for folders in _places(root):
        files = [path for folder in folders for path in sorted(folder.glob(f"lib{stem}.so*"))]
        yield [path for path in files if re.fullmatch(r".*\.so[.\d]*", path.name)]
    yield _cached(stem)


def _places(root: Path) -> Iterator[list[Path]]:
    """Groups of folders, best first."""
    yield _wheel_folders()
    for home in (*_homes(), *_toolkits(root), Path(sys.prefix)):
        yield [home / name for name in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")]
    yield [Path(name) for name in os.environ.get("LD_LIBRARY_PATH", "").split(":") if name]
    yield [root / name for name in ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64")]


def _wheel_folders() -> list[Path]:
    """``nvidia/<package>/lib`` of everything that Python imports from."""
    entries = dict.fromkeys(entry for entry in sys.path if entry)
    return [folder for entry in entries for folder in sorted(Path(entry).glob("nvidia/*/lib"))]


def _homes() -> list[Path]:
    return [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]


def _toolkits(root: Path) -> list[Path]:
    """The toolkits under /usr/local: the one that was made the default, then the newest."""

    def version(folder: Path) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", folder.name))

    versioned = sorted((root / "usr/local").glob("cuda-*"), key=version, reverse=True)
    return [folder for folder in (root / "usr/local/cuda", root / "opt/cuda", *versioned) if folder.is_dir()]


def _loaded(stem: str, root: Path) -> list[Path]:
    try:
        maps = (root / "proc/self/maps").read_text()
    except OSError:
        return []
    return sorted({Path(path) for path in re.findall(rf"\s(/\S*/lib{re.escape(stem)}\.so[.\d]*)$", maps, re.MULTILINE)})


def _cached(stem: str) -> list[Path]:
    """What the system's loader would find."""
    program = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if program is None:
        return []
    try:
        said = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [Path(path) for path in re.findall(rf"\blib{re.escape(stem)}\.so[.\d]* \(.*\) => (\S+)", said)]


def _places_text(root: Path) -> str:
    wheels = [str(folder) for folder in _wheel_folders()]
    toolkits = [str(folder) for folder in (*_homes(), *_toolkits(root))]
    places = [
        f"NVIDIA's Python packages ({', '.join(wheels) or 'none are installed'})",
        f"CUDA toolkits ({', '.join(toolkits) or 'none under /usr/local, no $CUDA_HOME'})",
        f"$LD_LIBRARY_PATH ({os.environ.get('LD_LIBRARY_PATH') or 'not set'})",
        "the loader's cache",
    ]
    return "; ".join(places)
