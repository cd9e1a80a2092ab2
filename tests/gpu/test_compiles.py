"""Every kernel compiles with nvcc without a warning: for every architecture as it is, for the oldest with the macros in use."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from simulated import SimulatedDevice

import znni.gpu
from znni.gpu.compile import OPTIONS, SOURCES
from znni.layouts import with_layouts
from znni.primitives import registered

from .small_cases import SMALL

ARCHITECTURES = ("75", "80", "90")
NAMES = sorted(path.name for path in SOURCES.glob("*.cu"))
_WORKERS = 2

Macros = tuple[tuple[str, object], ...]


def macros_in_use() -> set[tuple[str, Macros]]:
    """Sources and macros of the kernels that any config of any primitive takes on a small case."""
    with SimulatedDevice() as device, znni.gpu.use(device):
        for primitive in registered().values():
            for case in SMALL[primitive.kind] if primitive.device == "gpu" else ():
                if primitive.supports(case.layer, case.shape):
                    continue
                _, weights = case.arrays(0)
                for config in primitive.configs(case.layer, case.shape):
                    given = with_layouts(config, *primitive.layouts[0])
                    primitive.prepare(case.layer, weights, case.shape, given, 2).release()
        return {(source, tuple(sorted(defines.items()))) for source, _, defines in device.kernels}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, list[str]]:
    """For each source what nvcc has to say of it, with which macros; nothing, where all is well."""
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("needs nvcc, of the CUDA toolkit, on the PATH")
    folder = tmp_path_factory.mktemp("cubins")
    def compile_one(number: int, source: str, macros: Macros) -> str:
        defines = [f"-D{key}={value}" for key, value in macros]
        codes = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (ARCHITECTURES[:1] if macros else ARCHITECTURES)]
        made = ["-fatbin", *codes, "-o", str(folder / f"{number}.fatbin")]
        command = [nvcc, *OPTIONS, "-Werror", "all-warnings", *defines, f"-I{SOURCES}", *made, str(SOURCES / source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return f"{' '.join(defines)}: {done.stdout}{done.stderr}" if done.returncode or done.stderr else ""

    wanted = sorted({(name, ()) for name in NAMES} | macros_in_use(), key=str)
    with ThreadPoolExecutor(_WORKERS) as pool:
        found = list(pool.map(compile_one, range(len(wanted)), *zip(*wanted, strict=True)))
    words: dict[str, list[str]] = {name: [] for name in NAMES}
    for (name, _), said in zip(wanted, found, strict=True):
        words[name] += [said] if said else []
    return words


def test_there_are_kernels():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_warnings(name, told):
    assert not told[name], "\n".join(told[name])
