"""The simulated device's libraries: transforms, matrix products and convolutions are right, and refuse what real ones would."""

from __future__ import annotations

import numpy as np
import pytest
from primitives.truth import truth
from simulated import SimulatedDevice
from simulated.products import rounded_to_tf32

from znni.errors import DeviceError
from znni.gpu import BlasSpec, FftSpec
from znni.gpu.convolution import ConvolutionSpec
from znni.layers import Conv

from .arrays import down, empty, random_array, up


@pytest.mark.parametrize("n", [(12,), (5, 6), (4, 3, 7)])
def test_transforms_there_and_back(device, n):
    x = random_array(3, *n)
    axes = tuple(range(1, 1 + len(n)))
    half = (*n[:-1], n[-1] // 2 + 1)
    forward, back = (device.fft(FftSpec.dense(kind, n, 3)) for kind in ("r2c", "c2r"))
    given, spectrum, out = up(device, x), empty(device, (3, *half), np.complex64), empty(device, x.shape)
    work = device.allocate(max(forward.work_bytes, back.work_bytes)).array
    assert forward.work_bytes == device.fft_work_bytes(forward.spec) > 0
    forward.run(device.compute, given, spectrum, work)
    np.testing.assert_allclose(down(device, spectrum), np.fft.rfftn(x, axes=axes), atol=1e-5)
    np.testing.assert_array_equal(down(device, given), x)
    back.run(device.compute, spectrum, out, work, inverse=True)
    np.testing.assert_allclose(down(device, out), np.prod(n) * x, atol=1e-4)
    assert np.isnan(down(device, spectrum)).all(), "c2r may overwrite its input"
    assert np.isnan(down(device, work.view(np.float32, (4,)))).all(), "work is overwritten"
    forward.free()
    back.free()
    assert not device.ffts


def test_transforms_in_place_of_strided_lines(device):
    x = random_array(5, 8, 6, dtype=np.complex64)
    array = up(device, x)
    spec = FftSpec("c2c", (8,), 6, (8,), 6, 1, (8,), 6, 1)
    fft = device.fft(spec)
    work = device.allocate(fft.work_bytes).array
    for row in range(5):
        fft.run(device.compute, array[row : row + 1], array[row : row + 1], work, inverse=bool(row % 2))
    expected = np.fft.fft(x, axis=1)
    expected[1::2] = 8 * np.fft.ifft(x, axis=1)[1::2]
    np.testing.assert_allclose(down(device, array), expected, atol=1e-4)


def test_real_transforms_in_place_need_padded_rows(device):
    x = random_array(4, 3, 12)
    array = up(device, x)
    spectrum = array.view(np.complex64, (4, 3, 6))
    spec = FftSpec("r2c", (3, 10), 4, (3, 12), 1, 36, (3, 6), 1, 18)
    work = device.allocate(device.fft_work_bytes(spec)).array
    device.fft(spec).run(device.compute, array, spectrum, work)
    np.testing.assert_allclose(down(device, spectrum), np.fft.rfftn(x[..., :10], axes=(1, 2)), atol=1e-5)
    with pytest.raises(DeviceError, match="overlap"):
        device.fft(FftSpec("r2c", (3, 10), 4, (3, 10), 1, 30, (3, 6), 1, 18)).run(device.compute, array, spectrum, work)


def test_transforms_are_refused_what_they_need(device):
    x, spectrum = empty(device, (3, 8)), empty(device, (3, 5), np.complex64)
    fft = device.fft(FftSpec.dense("r2c", (8,), 3))
    work = device.allocate(fft.work_bytes).array
    for arguments, said in (
        ((x, spectrum, None), "was not given its"),
        ((x, spectrum, work[: fft.work_bytes - 1]), "was not given its"),
        ((x[:2], spectrum, work), "needs 96 aligned bytes of an array of 64"),
        ((x, spectrum[:2], work), "needs 120 aligned bytes"),
    ):
        with pytest.raises(DeviceError, match=said):
            fft.run(device.compute, *arguments)
    fft.free()
    with pytest.raises(DeviceError, match="after it was freed"):
        fft.run(device.compute, x, spectrum, work)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_matrix_products(device, dtype, transpose_a, transpose_b):
    m, n, k, count = 4, 6, 5, 3
    a, b, c = random_array(count, m, k, dtype=dtype), random_array(k, n, dtype=dtype), random_array(count, m, n, dtype=dtype)
    stored = np.zeros((count, *((k, m + 2) if transpose_a else (m, k + 2))), dtype)
    stored[..., :-2] = a.transpose(0, 2, 1) if transpose_a else a
    is_complex = dtype == np.complex64
    ldb = k if transpose_b else n
    spec = BlasSpec(
        is_complex, m, n, k, stored.shape[2], ldb, n, stored[0].size, 0, m * n, count, transpose_a, transpose_b
    )
    x, y = up(device, stored), up(device, np.ascontiguousarray(b.T if transpose_b else b))
    work = device.allocate(device.blas_work_bytes).array
    out = empty(device, c.shape, dtype)
    device.blas(device.compute, spec, x, y, out, work)
    np.testing.assert_allclose(down(device, out), a @ b, rtol=1e-5, atol=1e-5)
    out = up(device, c)
    device.blas(device.compute, spec, x, y, out, work, alpha=2.0, beta=-0.5)
    np.testing.assert_allclose(down(device, out), 2 * (a @ b) - 0.5 * c, rtol=1e-5, atol=1e-5)


def test_products_in_tf32(device):
    a, b = random_array(20, 30), random_array(30, 10)
    out, work = empty(device, (20, 10)), device.allocate(device.blas_work_bytes).array
    spec = BlasSpec(False, 20, 10, 30, 30, 10, 10, 0, 0, 0, 1, tf32=True)
    device.blas(device.compute, spec, up(device, a), up(device, b), out, work)
    error = np.linalg.norm(down(device, out) - a @ b) / np.linalg.norm(a @ b)
    assert 1e-5 < error < 1e-3
    np.testing.assert_allclose(down(device, out), rounded_to_tf32(a) @ rounded_to_tf32(b), rtol=1e-4, atol=1e-5)


def test_tf32_keeps_ten_bits():
    one = np.float32(1)
    steps = np.array([0, 2**-11, 2**-11 + 2**-20, 2**-10, 2**-10 + 2**-11], np.float32)
    np.testing.assert_array_equal(rounded_to_tf32(one + steps), one + np.array([0, 0, 1, 1, 2], np.float32) * 2**-10)
    assert np.isnan(rounded_to_tf32(np.array([np.nan, np.inf], np.float32))[0])


def test_products_are_refused_what_does_not_fit(device):
    a, b, c = empty(device, (4, 5)), empty(device, (5, 6)), empty(device, (4, 6))
    work = device.allocate(device.blas_work_bytes).array
    good = BlasSpec(False, 4, 6, 5, 5, 6, 6, 0, 0, 0, 1)
    for arguments, said in (
        ((a, b[:4], c, work), "matrix b takes 120 aligned bytes, got 96"),
        ((a, b, c, work[:-1]), "was not given its"),
        ((a, c, c, work), "matrix b takes"),
        ((b, b, b, work), "overlaps"),
    ):
        with pytest.raises(DeviceError, match=said):
            device.blas(device.compute, good, *arguments)


@pytest.mark.parametrize("algorithm", ["simulated_taps", "simulated_columns"])
@pytest.mark.parametrize("tf32", [False, True])
def test_the_library_of_convolutions(device, algorithm, tf32):
    stride, padding = (1, 2, 1), (0, 1, 2)
    layer = Conv(4, (2, 3, 3), stride, padding)
    x, weight = random_array(2, 3, 4, 7, 5), random_array(4, 3, 2, 3, 3)
    spec = ConvolutionSpec(x.shape, 4, layer.kernel, stride, padding, (1, 1, 1), tf32)
    library = device.cudnn
    nbytes = library.workspace_bytes(spec, algorithm)
    out, work = empty(device, layer.output_shape(x.shape)), device.allocate(nbytes).array
    library.convolve(device.compute, spec, algorithm, up(device, x), up(device, weight), out, work)
    expected = truth(layer, {"weight": weight, "bias": np.zeros(4)}, x)
    error = np.linalg.norm(down(device, out) - expected) / np.linalg.norm(expected)
    assert error < (2e-3 if tf32 else 1e-6)
    if nbytes:
        assert np.isnan(down(device, work.view(np.float32, (4,)))).all()
        with pytest.raises(DeviceError, match="needs a workspace"):
            library.convolve(device.compute, spec, algorithm, out, out, out, work[: nbytes - 1])
    assert library.workspace_bytes(spec, "simulated_nothing") is None
    assert SimulatedDevice(cudnn=False).cudnn is None
