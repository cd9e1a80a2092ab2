"""Builds the Cython kernels of pyx/ into znni._kernels (metadata lives in setup.cfg).

ZNNI_MARCH picks the CPU that is built for (gcc's -march, default "native"). What the compiler was allowed to use is
written beside the kernels, so that importing them on a lesser CPU fails with a sentence. ZNNI_CFLAGS adds flags for compiler
and linker, such as a sanitizer's; the last one counts.
"""

import hashlib
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
MARCH = os.environ.get("ZNNI_MARCH", "native")
EXTRA_FLAGS = shlex.split(os.environ.get("ZNNI_CFLAGS", ""))
FLAGS = [
    "-O3", f"-march={MARCH}", "-fopenmp", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
    "-Wno-unused-function", *EXTRA_FLAGS,
]  # fmt: skip


def instruction_sets() -> list[str]:
    """The /proc/cpuinfo names of the instruction sets that the compiler may use under `MARCH`."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "gcc")[0]
    command = [compiler, f"-march={MARCH}", "-dM", "-E", "-x", "c", os.devnull]
    defined = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    macros = {line.split()[1] for line in defined.splitlines()}
    known = ["sse3", "ssse3", "sse4_1", "sse4_2", "popcnt", "avx", "f16c", "fma", "bmi1", "bmi2", "avx2", "avx512f",
             "avx512bw", "avx512cd", "avx512dq", "avx512vl"]  # fmt: skip
    names = {"bmi1": "__BMI__", "sse3": "__SSE3__"}
    sets = [name for name in known if names.get(name, f"__{name.upper()}__") in macros]
    return ["pni" if name == "sse3" else name for name in sets]


def source_digest() -> str:
    """SHA-256 of the kernels' sources and the compiler's flags, by which measurements know what they timed."""
    digest = hashlib.sha256(shlex.join(FLAGS).encode())
    for path in sorted(p for p in (ROOT / "pyx").iterdir() if p.suffix in (".pyx", ".pxd", ".h")):
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class BuildKernels(build_ext):
    """Compiles on all cores, and writes `_build_info.py` where the kernels go."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or len(os.sched_getaffinity(0))

    def run(self):
        super().run()
        folder = ROOT / "znni/_kernels" if self.inplace else Path(self.build_lib) / "znni/_kernels"
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"MARCH": MARCH, "INSTRUCTION_SETS": instruction_sets(), "SOURCE_DIGEST": source_digest()}
        text = "".join(f"{name} = {value!r}\n" for name, value in facts.items())
        (folder / "_build_info.py").write_text(f'"""Written by setup.py."""\n\n{text}')


extensions = [
    Extension(
        f"znni._kernels.{path.stem}",
        [str(path.relative_to(ROOT))],
        include_dirs=["pyx"],
        depends=[str(p.relative_to(ROOT)) for p in sorted((ROOT / "pyx").iterdir()) if p.suffix in (".h", ".pxd")],
        extra_compile_args=FLAGS,
        extra_link_args=["-fopenmp", *EXTRA_FLAGS],
    )
    for path in sorted((ROOT / "pyx").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(extensions, language_level=3, nthreads=2, annotate=bool(os.environ.get("ZNNI_ANNOTATE"))),
    cmdclass={"build_ext": BuildKernels},
)
