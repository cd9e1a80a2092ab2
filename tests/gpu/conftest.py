"""The devices that tests run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from simulated import SimulatedDevice

import znni.gpu
from znni.errors import NoDevice
from znni.gpu import Device


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    """A fresh simulated device, the current one while the test runs."""
    with SimulatedDevice() as made, znni.gpu.use(made):
        yield made


@pytest.fixture(scope="session")
def real_device() -> Iterator[Device]:
    """The machine's own, for tests marked gpu; who uses it makes it the current one."""
    try:
        made = znni.gpu.open_device()
    except NoDevice as error:
        pytest.skip(f"there is no device: {error}")
    with made:
        yield made
