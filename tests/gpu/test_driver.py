"""The driver's own words, from a library that is made up."""

import pytest

from znni.errors import NoDevice
from znni.gpu.driver import read_driver


class Library:
    def __init__(self, status=0, version=13000, names=("NVIDIA H200", "Tesla T4")):
        self.status, self.version, self.names = status, version, names

    def cuInit(self, flags):
        return self.status

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, handle, number):
        handle._obj.value = number
        return 0

    def cuDeviceGetName(self, name, length, handle):
        name.value = self.names[handle.value].encode()
        return 0

    def cuGetErrorString(self, status, text):
        text._obj.value = b"a strange thing"
        return 0


def test_what_it_says():
    found = read_driver(lambda name: Library(version=12080))
    assert (found.cuda, found.devices) == ((12, 8), ("NVIDIA H200", "Tesla T4"))


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (Library(version=11080), "too old: it supports CUDA 11.8"),
        (Library(100), "it shows no device"),
        (Library(names=()), "it shows no device .CUDA_VISIBLE_DEVICES is ''"),
        (Library(803), "of different versions"),
        (Library(34), "stub"),
        (Library(999), r"a strange thing \(error 999\)"),
    ],
)
def test_what_stands_in_the_way(library, words, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(NoDevice, match=words):
        read_driver(lambda name: library)


def test_no_library():
    def load(name):
        raise OSError("libcuda.so.1: cannot open shared object file")

    with pytest.raises(NoDevice, match=r"no NVIDIA driver: libcuda\.so\.1: cannot open .* --gpus all"):
        read_driver(load)
