"""Kernels from their sources in ``cu/``, compiled once: machine code is kept on disk by digest of all that made it.

The folder is ``$ZNNI_CACHE``, else ``znni`` under the user's cache folder, and ``kernels`` in it. An entry is its payload after
the payload's SHA-256: one that was cut short or damaged is compiled again. Entries are moved into place whole, so that several
processes may compile the same kernel at once.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from znni.errors import DeviceError

#: The kernels' sources.
SOURCES = Path(__file__).parent / "cu"
OPTIONS = ("-std=c++17", "-O3", "-lineinfo")  # lines cost nothing, and tools name them
_DIGEST_BYTES = hashlib.sha256().digest_size
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)

#: Compiles (source text, options, architecture, nvcc) into machine code; `DeviceError` with the compiler's words.
Compiler = Callable[[str, list[str], str, Path], bytes]
Defines = Mapping[str, int | str]


class KernelCompiler:
    """Sources of one folder, compiled for one architecture.

    Parameters
    ----------
    architecture : str
        ``sm_90``.
    nvcc : Path
    compiler : callable
        What does the work; `with_pycuda` on a real device.
    folder : Path
        Where machine code is kept.
    sources : Path
    """

    def __init__(
        self,
        architecture: str,
        nvcc: Path,
        compiler: Compiler,
        folder: Path | None = None,
        sources: Path = SOURCES,
    ):
        self.architecture, self._nvcc, self._compiler = architecture, nvcc, compiler
        self._folder = default_folder() if folder is None else folder
        self._sources = sources
        self._warned = False

    def machine_code(self, source: str, defines: Defines | None = None) -> bytes:
        """The cubin of ``cu/<source>`` with these macros; `DeviceError`, with the compiler's words, where it cannot be had."""
        options = [*OPTIONS, *(f"-D{name}={value}" for name, value in sorted((defines or {}).items()))]
        entry = self._folder / f"{self._digest(source, options)}.cubin"
        found = _read_entry(entry)
        if found is None:
            text = f'#line 1 "{source}"\n{self._text(source)}'
            found = self._compiler(text, [*options, f"-I{self._sources}"], self.architecture, self._nvcc)
            self._keep(entry, found)
        return found

    def _digest(self, source: str, options: list[str]) -> str:
        """Of all that makes the code: compiler, architecture, macros, and the source with all that it includes from here."""
        digest = hashlib.sha256()
        for part in (nvcc_version(self._nvcc), self.architecture, *options):
            digest.update(f"{len(part)}:{part}\n".encode())
        for name, text in sorted(self._with_includes(source).items()):
            digest.update(f"{name}:{len(text)}\n{text}".encode())
        return digest.hexdigest()

    def _with_includes(self, source: str) -> dict[str, str]:
        found, wanted = {}, [source]
        while wanted:
            name = wanted.pop()
            if name not in found:
                found[name] = self._text(name)
                wanted += [other for other in _INCLUDE.findall(found[name]) if (self._sources / other).is_file()]
        return found

    def _text(self, source: str) -> str:
        try:
            return (self._sources / source).read_text()
        except OSError as error:
            raise DeviceError(
                f"the kernels of {source} cannot be read: {error}; znni is not installed whole"
            ) from error

    def _keep(self, entry: Path, code: bytes) -> None:
        """Write an entry; where that cannot be done it is said once, for then every process compiles anew."""
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=entry.parent, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(code).digest() + code)
                os.replace(name, entry)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            if not self._warned:
                warnings.warn(
                    f"compiled kernels cannot be kept in {entry.parent}: {error}; set ZNNI_CACHE", stacklevel=2
                )
                self._warned = True


def default_folder() -> Path:
    """``$ZNNI_CACHE/kernels``, else ``znni/kernels`` under the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    named = os.environ.get("ZNNI_CACHE")
    if named:
        return Path(named) / "kernels"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "znni" / "kernels"


@lru_cache
def nvcc_version(nvcc: Path) -> str:
    """What the compiler says of itself; `DeviceError` where it does not run."""
    try:
        said = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"{nvcc} does not run: {error}") from error
    return said.stdout.strip()


def with_pycuda(text: str, options: list[str], architecture: str, nvcc: Path) -> bytes:
    """Compile by `pycuda.compiler`, whose own cache is left off: it does not see what is included."""
    from pycuda.compiler import compile as pycuda_compile
    from pycuda.driver import CompileError

    try:
        return pycuda_compile(
            text, nvcc=str(nvcc), options=list(options), no_extern_c=True, arch=architecture, cache_dir=False
        )
    except CompileError as error:
        raise DeviceError(f"a kernel could not be compiled: {error}") from error
    except OSError as error:
        raise DeviceError(f"{nvcc} does not run: {error}") from error


def _read_entry(entry: Path) -> bytes | None:
    """What was kept; None where there is nothing, or what is there is damaged."""
    try:
        data = entry.read_bytes()
    except OSError:
        return None
    kept, code = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return code if kept == hashlib.sha256(code).digest() else None
