"""cuDNN is asked for the right convolutions: a handle that computes what it was described, against PyTorch."""

import ctypes
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from znni.errors import DeviceError, DeviceMemory, InvalidShape, Unsupported
from znni.gpu import cudnn
from znni.gpu.convolution import ConvolutionSpec
from znni.gpu.cudnn import _ENTRIES, CuDnn, open_cudnn, out_shape, version_text, weight_shape

from .fake_cuda import FakeContext, FakeStream, on_host

SPEC = ConvolutionSpec((2, 3, 6, 7, 8), 4, (2, 3, 1), (1, 2, 1), (1, 0, 2), (2, 1, 1))
WORK_BYTES = 96


class Library:
    """Descriptors are numbers; `log` holds what was made and destroyed."""

    def __init__(self):
        self.described, self.alive, self.statuses, self.log = {}, set(), {}, []
        for name in _ENTRIES:
            setattr(self, name, self._entry(name))
        self.cudnnGetVersion = self._constant(91300)
        self.cudnnGetErrorString = self._constant(b"CUDNN_STATUS_ALLOC_FAILED")

    def _constant(self, value):
        def entry(*_):
            return value

        return entry

    def _entry(self, name):
        def entry(*arguments):
            self.log.append(name)
            if name in self.statuses:
                return self.statuses[name]
            return self._do(name, arguments) or 0

        entry.__name__ = name
        return entry

    def _do(self, name, arguments):
        if name.startswith("cudnnCreate"):
            number = len(self.log)
            arguments[0]._obj.value = number
            self.alive.add(number)
        elif name.startswith("cudnnDestroy"):
            self.alive.remove(arguments[0])
        elif "Nd" in name or "MathType" in name:
            values = [tuple(a) if isinstance(a, ctypes.Array) else a for a in arguments[1:]]
            self.described.setdefault(arguments[0], []).append(values)
        elif name == "cudnnGetConvolutionForwardWorkspaceSize":
            if arguments[5] == 7:
                return 3000
            arguments[6]._obj.value = WORK_BYTES if arguments[5] == 1 else 0
        elif name == "cudnnConvolutionForward":
            self._forward(*arguments)
        return 0

    def _forward(self, handle, alpha, x_of, x, w_of, w, of, algorithm, work, nbytes, beta, out_of, out):
        assert (alpha._obj.value, beta._obj.value) == (1.0, 0.0)
        assert (work is None) == (nbytes == 0)
        x, w, out = (self._tensor(d, p) for d, p in ((x_of, x), (w_of, w), (out_of, out)))
        (_, padding, stride, dilation, mode, kind), _ = self.described[of]
        assert (mode, kind) == (1, 0)
        x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
        out[...] = 0
        for tap in product(*map(range, w.shape[2:])):
            window = tuple(
                slice(t * d, t * d + s * (n - 1) + 1, s)
                for t, d, s, n in zip(tap, dilation, stride, out.shape[2:], strict=True)
            )
            out += np.einsum("bczyx,oc->bozyx", x[(..., *window)], w[(..., *tap)])

    def _tensor(self, descriptor, pointer):
        values = self.described[descriptor][0]
        shape = values[-1] if values[1] == 0 else values[2]
        if values[1] != 0:
            assert values[3] == tuple(int(np.prod(shape[i + 1 :])) for i in range(5))
        flat = (ctypes.c_float * int(np.prod(shape))).from_address(pointer)
        return np.frombuffer(flat, np.float32).reshape(shape)


def _arrays(spec):
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal(shape).astype(np.float32) for shape in (spec.shape, weight_shape(spec), out_shape(spec))
    ]


def _truth(spec, x, w):
    torch = pytest.importorskip("torch")
    out = torch.nn.functional.conv3d(
        torch.from_numpy(x), torch.from_numpy(w), stride=spec.stride, padding=spec.padding, dilation=spec.dilation
    )
    return out.numpy()


def test_a_convolution_is_described_as_it_is():
    library = Library()
    made = CuDnn(FakeContext(), library)
    x, w, out = _arrays(SPEC)
    work = np.zeros(WORK_BYTES, np.uint8)
    made.convolve(FakeStream(), SPEC, "implicit_precomp_gemm", *map(on_host, (x, w, out, work)))
    np.testing.assert_allclose(out, _truth(SPEC, x, w), rtol=1e-4, atol=1e-5)
    assert made.version == "9.13.0"
    made.close()
    assert not library.alive


def test_true_float32_and_tf32_differ_by_the_math_type():
    library = Library()
    made = CuDnn(FakeContext(), library)
    for tf32 in (False, True):
        made.workspace_bytes(replace(SPEC, tf32=tf32), "implicit_gemm")
    types = [values[-1][0] for values in library.described.values() if len(values) == 2]
    assert types == [3, 0]


def test_workspace_is_asked_once_and_none_where_it_cannot():
    library = Library()
    made = CuDnn(FakeContext(), library)
    asked = [
        made.workspace_bytes(SPEC, name) for name in ("implicit_gemm", "implicit_precomp_gemm", "winograd_nonfused") * 2
    ]
    assert asked == [0, WORK_BYTES, None] * 2
    assert library.log.count("cudnnGetConvolutionForwardWorkspaceSize") == 3
    arrays = list(map(on_host, _arrays(SPEC)))
    with pytest.raises(Unsupported, match="winograd"):
        made.convolve(FakeStream(), SPEC, "winograd_nonfused", *arrays, None)
    with pytest.raises(Unsupported, match="algorithms are"):
        made.workspace_bytes(SPEC, "magic")
    with pytest.raises(InvalidShape, match="96 bytes"):
        made.convolve(FakeStream(), SPEC, "implicit_precomp_gemm", *arrays, on_host(np.zeros(95, np.uint8)))
    with pytest.raises(InvalidShape, match="shape"):
        made.convolve(FakeStream(), SPEC, "implicit_gemm", arrays[1], *arrays[1:], None)


def test_what_32_bit_strides_cannot_hold_is_refused():
    made = CuDnn(FakeContext(), Library())
    assert made.workspace_bytes(replace(SPEC, shape=(1, 128, 256, 256, 256)), "implicit_gemm") is None
    assert made.workspace_bytes(replace(SPEC, shape=(1, 3, 1, 1, 1), padding=(0, 0, 0)), "implicit_gemm") is None


def test_what_it_cannot_describe_is_none_and_leaves_nothing():
    library = Library()
    library.statuses["cudnnSetConvolutionNdDescriptor"] = 3000
    made = CuDnn(FakeContext(), library)
    assert made.workspace_bytes(SPEC, "implicit_gemm") is None
    assert not library.alive


def test_a_failing_call_is_an_error():
    library = Library()
    library.statuses["cudnnConvolutionForward"] = 4
    made = CuDnn(FakeContext(), library)
    arrays = list(map(on_host, _arrays(SPEC)))
    with pytest.raises(DeviceMemory, match="ALLOC"):
        made.convolve(FakeStream(), SPEC, "implicit_gemm", *arrays, None)
    library.cudnnGetErrorString = lambda status: b"CUDNN_STATUS_EXECUTION_FAILED"
    with pytest.raises(DeviceError, match="EXECUTION_FAILED"):
        made.convolve(FakeStream(), SPEC, "implicit_gemm", *arrays, None)


def test_versions():
    assert [version_text(number) for number in (8902, 90100, 91300, 92801)] == ["8.9.2", "9.1.0", "9.13.0", "9.28.1"]


def test_without_the_library_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(cudnn, "find", lambda library: (_ for _ in ()).throw(cudnn.NoDevice("none")))
    assert open_cudnn(FakeContext()) is None
    (tmp_path / "libcudnn.so.9").write_text("no library")
    monkeypatch.setattr(cudnn, "find", lambda library: tmp_path / "libcudnn.so.9")
    with pytest.raises(DeviceError, match="cannot be loaded"):
        open_cudnn(FakeContext())
