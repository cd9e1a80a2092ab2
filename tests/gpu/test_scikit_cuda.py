"""scikit-cuda is imported as it is: an imitation with its habits (library names, versions, pkg_resources, a handle on import),
over two small libraries with the names that CUDA 13's have."""

import ctypes
import shutil
import subprocess
import sys
from types import ModuleType

import pytest

from znni.errors import NoDevice
from znni.gpu import scikit_cuda as ours
from znni.gpu.scikit_cuda import CUBLAS_ENTRIES, CUFFT_ENTRIES, declare, import_skcuda, scikit_cuda

PACKAGE = {
    "__init__.py": """
try:
    __import__("pkg_resources").declare_namespace(__name__)
except ImportError:
    from .version import __version__
""",
    "version.py": "import pkg_resources\n",
    "cuda.py": "raise OSError('CUDA runtime library not found')\n",
    "misc.py": "import numpy\nnumpy.typeDict\n",
    "utils.py": "def find_lib_path(name):\n    return None\ndef get_soname(path):\n    raise RuntimeError('\\s')\n",
    "cufft.py": """
import ctypes
_libcufft = None
for name in ("libcufft.so", "libcufft.so.10.1"):
    try:
        _libcufft = ctypes.cdll.LoadLibrary(name)
        break
    except OSError:
        pass
if _libcufft is None:
    raise OSError("cufft library not found")
version = _libcufft.cufftGetVersion()
""",
    "cublas.py": """
import ctypes, re
from . import cuda, utils
_libcublas = ctypes.cdll.LoadLibrary("libcublas.so")
found = re.search(r"(\\d+)\\.(\\d+)$", utils.get_soname(utils.find_lib_path("cublas")))
version = found.groups() if found else _libcublas.cublasCreate_v2()
alpha = cuda.cuFloatComplex(1.0, 2.0)
""",
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """libcufft.so.12 and libcublas.so.13 with what is declared."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("libraries")
    made = []
    for name, functions in (
        ("libcufft.so.12", {"cufftGetVersion": 12000, **dict.fromkeys(CUFFT_ENTRIES, 0)}),
        ("libcublas.so.13", dict.fromkeys(CUBLAS_ENTRIES, 0)),
    ):
        text = "".join(f"int {function}(void) {{ return {value}; }}\n" for function, value in functions.items())
        (folder / "source.c").write_text(text)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / name, folder / "source.c"], check=True)
        made.append(folder / name)
    return made


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The imitation, installed."""
    for name, text in PACKAGE.items():
        path = tmp_path / "skcuda" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "scikit_cuda-0.5.3.dist-info").mkdir()
    (tmp_path / "scikit_cuda-0.5.3.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: scikit-cuda\nVersion: 0.5.3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "skcuda"}
    for name in kept:
        del sys.modules[name]
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "skcuda"]:
        del sys.modules[name]
    sys.modules.update(kept)


def test_it_is_imported_over_the_libraries_that_were_found(package, libraries):
    cufft, cublas = import_skcuda(*libraries)
    assert cufft._libcufft._name == str(libraries[0]) and cufft.version == 12000
    assert cublas._libcublas._name == str(libraries[1]) and cublas.version == ("13", "0")
    assert (cublas.alpha.x, cublas.alpha.y) == (1.0, 2.0)
    assert sys.modules["skcuda"].__version__ == "0.5.3"


def test_nothing_is_left_of_the_help(package, libraries, monkeypatch):
    resources = ModuleType("pkg_resources")  # without declare_namespace
    monkeypatch.setitem(sys.modules, "pkg_resources", resources)
    import_skcuda(*libraries)
    assert sys.modules["pkg_resources"] is resources
    assert "skcuda.cuda" not in sys.modules and "skcuda.version" not in sys.modules
    assert ctypes.cdll.LoadLibrary.__func__ is ctypes.LibraryLoader.LoadLibrary
    assert sys.modules["skcuda.utils"].find_lib_path("cublas") is None


def test_entry_points_are_declared_on_its_handles(package, libraries, monkeypatch):
    paths = dict(zip((ours.CUFFT, ours.CUBLAS), libraries, strict=True))
    monkeypatch.setattr(ours, "find", lambda library, cuda: paths[library])
    monkeypatch.setattr(ours, "load_companions", lambda library, path: None)
    monkeypatch.setattr(ours, "_loaded", None)
    made = scikit_cuda((13, 0))
    assert made is scikit_cuda()
    assert (made.cufft_path, made.cublas_path) == tuple(libraries)
    assert len(made.cufft._libcufft.cufftMakePlanMany64.argtypes) == 12
    assert len(made.cublas._libcublas.cublasGemmStridedBatchedEx.argtypes) == 23
    with pytest.raises(NoDevice, match="too old: it has no cufftFromTheFuture"):
        declare(made.cufft._libcufft, {"cufftFromTheFuture": ()}, libraries[0])


def test_missing_or_broken_it_says_so(package, libraries, monkeypatch, tmp_path):
    with pytest.raises(NoDevice, match=r"scikit-cuda 0\.5\.3 cannot be loaded over .*nowhere"):
        import_skcuda(tmp_path / "nowhere", libraries[1])

    def missing(name):
        raise ours.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(ours.importlib.metadata, "version", missing)
    with pytest.raises(NoDevice, match=r"pip install 'znni\[gpu\]'"):
        import_skcuda(*libraries)
