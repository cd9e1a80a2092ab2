"""Networks exported by PyTorch and read back give what ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import pytest

from znni import load
from znni.zoo import networks
from znni.zoo.graph import PublishedGraph

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

GRAPHS = [name for name, published in networks().items() if isinstance(published, PublishedGraph)]


def runtime(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def relative_error(found, expected) -> float:
    several = expected[0, 0].size > 1
    deviation = expected - expected.mean((0, 2, 3, 4), keepdims=True) if several else expected
    return float(np.linalg.norm(found - expected) / np.linalg.norm(deviation))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GRAPHS)
def test_a_network_of_the_zoo_comes_back(tmp_path, name):
    from znni.torch_module import to_torch

    network = load(name, width=2)
    patch = network.patch
    if not network.fixed:
        least = network.input_patch(network.least_output)
        patch = tuple(n + 2 * s for n, s in zip(least, network.strides, strict=True))
    x = np.random.default_rng(0).standard_normal((1, network.in_channels, *patch), np.float32)
    path = tmp_path / "model.onnx"
    training = torch.onnx.TrainingMode.PRESERVE if name.endswith("_dynamic") else torch.onnx.TrainingMode.EVAL
    with torch.no_grad():
        torch.onnx.export(to_torch(network), (torch.from_numpy(x),), path, dynamo=False, opset_version=17, training=training)
    again = load(path)
    assert again.fixed and again.patch == patch
    tolerance = 1e-4 if name.endswith("_dynamic") else 2e-5
    assert relative_error(again.run(x), runtime(path, x)) <= tolerance


class SmallUNet(torch.nn.Module):
    """What a user has: batch norm, a concatenated skip, transposed convolution, trilinear resizing, group norm."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.a = nn.Sequential(nn.Conv3d(1, 4, (1, 3, 3), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(4), nn.ELU())
        self.b = nn.Sequential(nn.Conv3d(4, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.PReLU(6))
        self.c = nn.Sequential(nn.Conv3d(6, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.LeakyReLU(0.1))
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.up = nn.ConvTranspose3d(8, 6, (1, 2, 2), (1, 2, 2))
        self.out = nn.Conv3d(10, 2, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(self.pool(a))
        up = torch.relu(self.up(self.c(self.pool(b))) + b)
        up = torch.nn.functional.interpolate(up, scale_factor=(1, 2, 2), mode="trilinear")
        return torch.sigmoid(self.out(torch.cat([up, a], 1)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
def test_both_exporters(tmp_path, dynamo):
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = SmallUNet().eval()
    net.a[1].running_mean.uniform_()
    net.a[1].running_var.uniform_(0.5, 2)
    x = torch.randn(1, 1, 3, 16, 24)
    path = tmp_path / "model.onnx"
    torch.onnx.export(net, (x,), path, dynamo=dynamo, **({} if dynamo else {"opset_version": 17}))
    network = load(path)
    assert relative_error(network.run(x.numpy()), runtime(path, x.numpy())) <= 2e-5


@pytest.mark.filterwarnings("ignore")
def test_axes_may_be_free(tmp_path):
    net = SmallUNet().eval()
    path = tmp_path / "model.onnx"
    free = {0: "batch", 2: "z", 3: "y", 4: "x"}
    torch.onnx.export(
        net, (torch.randn(1, 1, 3, 16, 16),), path, dynamo=False, input_names=["x"], output_names=["y"],
        dynamic_axes={"x": free, "y": free}, opset_version=17,
    )  # fmt: skip
    network = load(path)
    assert not network.fixed and network.strides == (1, 4, 4)
    for size in ((2, 8, 12), (4, 20, 16)):
        x = np.random.default_rng(0).standard_normal((1, 1, *size), np.float32)
        assert relative_error(network.run(x), runtime(path, x)) <= 2e-5
