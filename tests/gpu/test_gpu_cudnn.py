"""What is peculiar to a library's convolutions: where there is none, batches that are cut, TF32, and what it cannot count."""

import numpy as np
import pytest
from primitives.cases import Case
from primitives.truth import truth
from simulated import SimulatedDevice

import znni.gpu
from znni.errors import InvalidShape, Unsupported
from znni.layers import Activation, Conv
from znni.layouts import DEVICE, with_layouts
from znni.primitives import get
from znni.primitives.gpu_cudnn import Cut

from .calls import Call

CUDNN = get("gpu.cudnn")
LAYER = Conv(3, (2, 3, 2), activation=Activation("elu", 0.5))
SHAPE = (5, 2, 4, 5, 6)


def config_of(algorithm="simulated_columns", workspace_mib=256, tf32=False):
    return with_layouts({"algorithm": algorithm, "workspace_mib": workspace_mib, "tf32": tf32}, DEVICE, DEVICE)


def error(device, config):
    x, weights = Case(LAYER, SHAPE).arrays(0)
    with Call(device, CUDNN.prepare(LAYER, weights, SHAPE, config, 1)) as call:
        found = call.of(x)
    expected = truth(LAYER, weights, x)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture
def thirsty(device, monkeypatch):
    """A library that wants 100 MiB an image, and cannot work on 5 of them; the device."""

    def want(spec, algorithm):
        if algorithm != "simulated_columns" or spec.shape[0] == 5:
            return None
        return spec.shape[0] * (100 << 20)

    monkeypatch.setattr(device.cudnn, "workspace_bytes", want)
    return device


def test_says_why_not():
    assert "no device is open" in CUDNN.supports(LAYER, SHAPE) and "open_device" in CUDNN.supports(LAYER, SHAPE)
    with SimulatedDevice(cudnn=False) as device, znni.gpu.use(device):
        assert "not installed" in CUDNN.supports(LAYER, SHAPE)
        with pytest.raises(Unsupported, match=r"gpu.cudnn cannot compute this conv .* not installed"):
            CUDNN.prepare(LAYER, {}, SHAPE, {}, 1)


def test_images_that_it_cannot_count_are_refused(device):
    large = (1, 1, 1300, 1300, 1300)
    assert f"more than {2**31 - 1}" in CUDNN.supports(Conv(1, (3, 3, 3)), large)
    assert f"more than {2**31 - 1}" in CUDNN.supports(Conv(9, (1, 1, 1)), (1, 1, 700, 700, 700))


def test_a_batch_that_it_cannot_count_is_cut(device):
    shape = (3, 1, 1000, 1000, 1000)
    assert CUDNN.supports(Conv(1, (1, 1, 1)), shape) is None
    assert CUDNN.cut(Conv(1, (1, 1, 1)), shape, config_of("simulated_taps")) == Cut(2, 0)


def test_a_layer_that_no_algorithm_computes_is_refused(device, monkeypatch):
    monkeypatch.setattr(device.cudnn, "workspace_bytes", lambda spec, algorithm: None)
    assert "no algorithm of cuDNN 0.0 (simulated) computes it" in CUDNN.supports(LAYER, SHAPE)


@pytest.mark.parametrize(("limit", "images"), [(4096, 3), (300, 3), (299, 2), (200, 2), (100, 1)])
def test_the_batch_is_cut_to_the_workspace(thirsty, limit, images):
    config = config_of(workspace_mib=limit)
    assert CUDNN.cut(LAYER, SHAPE, config) == Cut(images, images * (100 << 20))
    assert CUDNN.memory(LAYER, SHAPE, config, 1).device_workspace_bytes == images * (100 << 20)
    with pytest.raises(Unsupported, match="cannot compute this on 5x2x4x5x6 within 99 MiB"):
        CUDNN.memory(LAYER, SHAPE, config_of(workspace_mib=99), 1)


def test_parts_of_a_batch_are_all_of_it(thirsty):
    for limit in (300, 200, 100):
        assert error(thirsty, config_of(workspace_mib=limit)) < 1e-6
    assert thirsty.launches.count("bias_activate") == 3


def test_a_smaller_limit_is_a_config_where_it_cuts_otherwise(thirsty):
    found = [(c["workspace_mib"], c["tf32"]) for c in CUDNN.configs(LAYER, SHAPE)]
    assert found == [(4096, False), (256, False), (4096, True), (256, True)]


def test_true_float32_and_tf32_are_different_configs(device):
    exact, rounded = error(device, config_of()), error(device, config_of(tf32=True))
    assert exact < 1e-6 < 1e-5 < rounded < CUDNN.tolerance_of(config_of(tf32=True))
    assert CUDNN.error(LAYER, SHAPE, config_of(tf32=True)) > 10 * CUDNN.error(LAYER, SHAPE, config_of())


@pytest.mark.parametrize(
    ("architecture", "kinds"), [("sm_75", {False}), ("sm_80", {False, True}), ("sm_120", {False, True})]
)
def test_tf32_where_the_device_has_it(architecture, kinds):
    with SimulatedDevice(architecture=architecture) as device, znni.gpu.use(device):
        assert {config["tf32"] for config in CUDNN.configs(LAYER, SHAPE)} == kinds


@pytest.mark.parametrize(
    "config", [{}, {"algorithm": "gemm"}, {"algorithm": "gemm", "workspace_mib": 1.5, "tf32": False}]
)
def test_other_configs_are_refused(device, config):
    with pytest.raises(
        Unsupported, match=r"a config of gpu.cudnn has an algorithm, workspace_mib and tf32 .* see configs\(\)"
    ):
        CUDNN.memory(LAYER, SHAPE, config, 1)


def test_other_algorithms_and_weights_are_refused(device):
    with pytest.raises(Unsupported, match=r"has no algorithm 'gemm'; it has simulated_taps"):
        CUDNN.memory(LAYER, SHAPE, config_of("gemm"), 1)
    _, weights = Case(LAYER, SHAPE).arrays(0)
    with pytest.raises(InvalidShape, match="weight must be 3x4x2x3x2, got 3x2x2x3x2"):
        CUDNN.prepare(LAYER, weights, (1, 4, 4, 5, 6), config_of(), 1)
