"""What the system says of GPUs, from made-up files under another root."""

import pytest

from znni.nvidia import gpu_driver, gpu_model

INFORMATION = """Model: 		 {}
IRQ:   		 52
GPU UUID: 	 GPU-12345678-1234-1234-1234-123456789abc
Video BIOS: 	 96.00.74.00.01
Bus Type: 	 PCIe
"""
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC version:  gcc 12.2.0\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (dvs-builder@u22)\n"


def _file(root, path, text=""):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_without_a_gpu_there_is_neither(tmp_path):
    _file(tmp_path, "usr/lib/x86_64-linux-gnu/libcuda.so.550.54.14")
    assert gpu_model(tmp_path) is None
    assert gpu_driver(tmp_path) is None


@pytest.mark.parametrize(("text", "version"), [(CLOSED, "535.129.03"), (OPEN, "580.82.07")])
def test_the_driver_says_its_version(tmp_path, text, version):
    _file(tmp_path, "proc/driver/nvidia/version", text)
    assert gpu_driver(tmp_path) == version


def test_models_are_read_once_each(tmp_path):
    for number, model in enumerate(("NVIDIA H200", "NVIDIA H200", "Tesla T4")):
        _file(tmp_path, f"proc/driver/nvidia/gpus/0000:0{number}:00.0/information", INFORMATION.format(model))
    assert gpu_model(tmp_path) == "NVIDIA H200, Tesla T4"


def test_where_a_container_hides_them_pci_and_file_names_tell(tmp_path):
    _file(tmp_path, "dev/nvidia0")
    assert gpu_model(tmp_path) == "NVIDIA"
    for slot, facts in {
        "0000:00:01.0": ("0x8086", "0x030000", "0x1234"),
        "0000:01:00.0": ("0x10de", "0x030200", "0x2335"),
        "0000:01:00.1": ("0x10de", "0x040300", "0x9999"),
    }.items():
        for name, value in zip(("vendor", "class", "device"), facts, strict=True):
            _file(tmp_path, f"sys/bus/pci/devices/{slot}/{name}", value + "\n")
    _file(tmp_path, "usr/local/nvidia/lib64/libcuda.so.1")
    _file(tmp_path, "usr/local/nvidia/lib64/libcuda.so.580.159.03")
    assert gpu_model(tmp_path) == "NVIDIA 2335"
    assert gpu_driver(tmp_path) == "580.159.03"
