"""The trained N4 on the real EM stack: what PyTorch's dilated form gives, by plans for two limits."""

import numpy as np
import pytest

from tuner.request import Request
from tuner.search import tune
from znni.default_plan import default_plan
from znni.load import load
from znni.store import Store
from znni.volume_files import open_volume

MIB = 1 << 20
TOLERANCE = 2e-5


def normalised(stack: np.ndarray) -> np.ndarray:
    """Each slice less its mean, over its population deviation."""
    wide = stack.astype(np.float64)
    return (wide - wide.mean((1, 2), keepdims=True)) / wide.std((1, 2), keepdims=True)


def dilated(network, x: np.ndarray) -> np.ndarray:
    """The network on slices (z, y, x), by PyTorch in its dense, dilated form: (channel, z, y, x)."""
    torch = pytest.importorskip("torch", reason="the oracle of this test is PyTorch")
    functional = torch.nn.functional
    y = torch.from_numpy(x.astype(np.float32))[:, None, None]
    for node in network.lowered("filter"):
        layer = node.layer
        if layer.kind == "conv":
            weight, bias = (torch.from_numpy(network.weights[node.name][key]) for key in ("weight", "bias"))
            y = functional.conv3d(y, weight, bias, dilation=layer.dilation)
            if layer.activation.name == "relu":
                y = torch.relu_(y)
        else:
            y = functional.max_pool3d(y, layer.window, stride=1, dilation=layer.dilation)
    return y[:, :, 0].transpose(0, 1).numpy()


def relative_l2(found: np.ndarray, truth: np.ndarray) -> float:
    """Error over the deviation of the truth."""
    mean = truth.mean((1, 2, 3), keepdims=True)
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth - mean))


@pytest.fixture(scope="module")
def network(shared):
    return load(shared / "data/trained/n4_trained.h5")


@pytest.fixture(scope="module")
def stack(shared) -> str:
    return str(shared / "data/isbi2012-test-volume.tif")


def volume_of(path: str) -> np.ndarray:
    with open_volume(path) as reader:
        out = np.empty(reader.shape, np.float32)
        reader.read(tuple(slice(0, n) for n in reader.shape[1:]), out)
    return out[0]


def test_stored_logits(shared, network):
    with np.load(shared / "data/trained/n4_reference.npz") as stored:
        x, logits = stored["input"], stored["logits"]
    out = network.run(x[:, :, None], memory_bytes=None)
    assert relative_l2(out[0], logits.reshape(out[0].shape)) <= TOLERANCE


def test_two_slices_of_the_stack(network, stack, tmp_path):
    two = volume_of(stack)[4:6]
    np.save(tmp_path / "two.npy", two)
    plan = default_plan(network, memory_bytes=512 * MIB, baseline_bytes=150 * MIB)
    plan.bind(network)
    plan.run_volume(tmp_path / "two.npy", tmp_path / "out.npy", normalise="slice")
    assert relative_l2(np.load(tmp_path / "out.npy"), dilated(network, normalised(two))) <= TOLERANCE


@pytest.mark.heavy
def test_whole_stack_by_plans_tuned_for_two_limits(network, stack, tmp_path):
    truth = dilated(network, normalised(volume_of(stack)))
    patches = set()
    for mib in (512, 4096):
        with Store(tmp_path / "store.db") as store:
            plan = tune(network, Request(mib * MIB, budget_s=60.0, normalise="slice"), store)
        plan.bind(network)
        plan.run_volume(stack, tmp_path / f"out{mib}.npy")
        assert relative_l2(np.load(tmp_path / f"out{mib}.npy"), truth) <= TOLERANCE
        assert plan.memory["measured_peak_bytes"] <= mib * MIB
        patches.add(plan.input_patch)
    assert len(patches) == 2
