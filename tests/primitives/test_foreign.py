"""Other libraries as primitives: registered where they are installed, and imported no earlier than they are used."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest

from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv
from znni.predict import Predictor
from znni.primitives import get, registered
from znni.primitives.base import Memory
from znni.primitives.foreign import ForeignConv, load_foreign
from znni.primitives.foreign_openvino import CpuOpenVino
from znni.primitives.foreign_torch import CpuTorch

from .cases import Case
from .truth import truth

LAYER, SHAPE = Conv(24, (3, 3, 3), activation=Activation("relu")), (1, 20, 24, 24, 24)
FOREIGN = [CpuTorch(), CpuOpenVino()]
every_library = pytest.mark.parametrize("primitive", FOREIGN, ids=lambda primitive: primitive.name)


def test_registered_where_installed():
    for primitive in FOREIGN:
        assert (primitive.name in registered()) == primitive.is_installed
        assert primitive.foreign


def test_importing_znni_imports_no_library():
    code = (
        "import sys, znni.primitives, znni.default_plan, znni.prepared_conv;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'openvino', 'onnx')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plan_that_travels_has_none():
    def names(**given):
        return {option.choice.primitive for option in Predictor(2, **given).options(LAYER, SHAPE)}

    installed = {primitive.name for primitive in FOREIGN if primitive.is_installed}
    assert not names() & installed
    assert names(foreign=True) >= installed


@every_library
def test_bytes_are_a_bound_without_workspace(primitive):
    for config in primitive.configs(LAYER, SHAPE):
        memory = primitive.memory(LAYER, SHAPE, config, 2)
        assert memory == Memory(host_resident_bytes=memory.host_resident_bytes)
        assert memory.host_resident_bytes > 4 * (np.prod(SHAPE) + np.prod(LAYER.output_shape(SHAPE)))


@every_library
def test_unknown_configs_are_refused(primitive):
    with pytest.raises(Unsupported, match=f"configs of {primitive.name} are .*, got"):
        primitive.memory(LAYER, SHAPE, {"format": "sparse"}, 1)


@every_library
def test_computes_from_read_only_arrays_without_a_warning(primitive):
    if not primitive.is_installed:
        pytest.skip(f"needs {primitive.library}")
    values, weights = Case(LAYER, SHAPE).arrays(0)
    values.flags.writeable = False
    for threads in (1, 2):
        for config in get(primitive.name).configs(LAYER, SHAPE):
            operator = get(primitive.name).prepare(LAYER, weights, SHAPE, config, threads)
            out = np.empty(operator.out_shape, np.float32)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                operator(values, out, np.empty(0, np.uint8))
            expected = truth(LAYER, weights, values)
            found = np.linalg.norm(out - expected) / np.linalg.norm(expected)
            assert found <= 2 * primitive.error(LAYER, SHAPE, config) <= 2e-6


@every_library
def test_refuses_what_it_would_have_to_copy(primitive):
    if not primitive.is_installed:
        pytest.skip(f"needs {primitive.library}")
    values, weights = Case(LAYER, SHAPE).arrays(0)
    operator = primitive.prepare(LAYER, weights, SHAPE, primitive.configs(LAYER, SHAPE)[0], 1)
    out, nothing = np.empty(operator.out_shape, np.float32), np.empty(0, np.uint8)
    for x, y in ((values.astype(np.float64), out), (values, np.asfortranarray(out)), (values, out.view(np.int32))):
        with pytest.raises(InvalidShape, match="must be C-contiguous float32"):
            operator(x, y, nothing)


def test_padding_beyond_the_kernel_is_left_to_others():
    layer = Conv(2, (1, 3, 3), padding=(1, 1, 1))
    assert "pads less than the kernel spans" in CpuOpenVino().supports(layer, (1, 2, 4, 4, 4))
    assert CpuTorch().supports(layer, (1, 2, 4, 4, 4)) is None


def test_libraries_can_be_loaded_before_a_baseline_is_taken():
    assert set(load_foreign(2)) == {p.library for p in FOREIGN if isinstance(p, ForeignConv) and p.is_installed}
