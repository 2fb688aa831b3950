"""A device's memory shared with other libraries, and the manners of the emulator's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minires as mr
from minires.kernels.arrays import xp_of
from minires.kernels.cuda import emulate


class Foreign:
    """What another library's tensor shows of itself."""

    def __init__(self, array: Any) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self.array = array  # which owns the memory


def test_arrays_are_shared(cuda: str) -> None:
    array = mr.Tensor([1.0, 2.0]).to(cuda).data
    for x in (mr.Tensor(array), mr.Tensor(Foreign(array)), mr.from_dlpack(array)):
        assert x.device == "cuda:0"
        array[0] = 5.0
        assert x.tolist() == [5.0, 2.0]
        x[0] = 1.0
        assert array.tolist() == [1.0, 2.0]


def test_tensors_are_given_away(cuda: str) -> None:
    x = mr.Tensor([[1.0, 2.0], [3.0, 4.0]]).to(cuda).T
    assert x.__dlpack_device__() == (2, 0)
    interface = x.__cuda_array_interface__
    assert interface["shape"] == (2, 2)
    assert interface["strides"] == (4, 8)
    for other in (xp_of(x.data).asarray(x), xp_of(x.data).from_dlpack(x), mr.from_dlpack(x)):
        assert other.tolist() == [[1.0, 3.0], [2.0, 4.0]]
        x[0, 1] = 9.0
        assert other.tolist() == [[1.0, 9.0], [2.0, 4.0]]
        x[0, 1] = 3.0
    with pytest.raises(RuntimeError, match="__cuda_array_interface__: this tensor requires grad"):
        _ = x.detach().requires_grad_().__cuda_array_interface__


def test_a_copy_is_a_copy(cuda: str) -> None:
    array = mr.Tensor([1.0, 2.0]).to(cuda).data
    x, y = mr.tensor(array), mr.nn.Parameter(array)
    array[0] = 5.0
    assert x.tolist() == y.tolist() == [1.0, 2.0]
    assert mr.tensor([1.0, 2.0], device=cuda).device == "cuda:0"
    assert mr.tensor(x, device="cpu").device == "cpu"


# -- as strict as CuPy ----------------------------------------------------------------------------


def test_device_arrays_do_not_mix_with_the_hosts(cuda: str) -> None:
    """On CuPy and on the emulator: what is refused here must not be relied on."""
    x, host = mr.Tensor([1.0, 2.0]).to(cuda).data, np.array([1.0, 2.0], np.float32)
    for call in (
        lambda: x + host, lambda: host * x, lambda: np.add(x, host), lambda: np.asarray(x),
        lambda: np.concatenate([x, host]), lambda: np.where(host > 0, x, x),
        lambda: np.maximum(host, x), lambda: x.__iadd__(host),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            call()


def test_results_are_arrays(cuda: str) -> None:
    x = mr.Tensor([[1.0, 2.0], [3.0, 4.0]]).to(cuda).data
    kind = type(x)
    for result in (x.sum(), x.max(), x[0, 0], x + 1.0, np.exp(x), x.argmax(), x.mean(), -x,
                   x.reshape(4), np.where(x > 1, x, 0.0), x == x, x @ x, x.astype(np.float64),
                   np.broadcast_to(x, (3, 2, 2)), x * np.float32(2.0)):  # fmt: skip
        assert type(result) is kind
    assert x.sum().shape == ()
    assert x[0].base is x
    assert x[0][1:].base is x
    assert x.T.base is x
    assert (x + 1.0).base is None
    assert np.may_share_memory(x[0], x)
    assert not np.may_share_memory(x.copy(), x)


def test_emulated_devices_are_told_apart() -> None:
    if emulate.compiler() is None:
        pytest.skip("the emulator needs a C++ compiler")
    with emulate.device():
        x, y = (mr.Tensor([1.0, 2.0]).to(f"cuda:{number}") for number in (0, 1))
        with pytest.raises(ValueError, match=r"add: operands live on cuda:0 and cuda:1; bring"):
            x + y
        z = y.requires_grad_() * 2.0 + 1.0
        assert z.device == "cuda:1"
        z.sum().backward()
        assert y.grad is not None
        assert y.grad.device == "cuda:1"
        assert z.to("cuda:0").device == "cuda:0"
        with pytest.raises(ValueError, match="cuda:2: this machine has 2 CUDA devices, cuda:0 to"):
            x.to("cuda:2")


def test_the_emulator_has_nothing_that_cupy_lacks() -> None:
    """Needs CuPy, but no GPU: names only."""
    cupy = pytest.importorskip("cupy", reason="no CuPy: install minires[cuda12] or [cuda13]")
    from minires.kernels.cuda.device_array import ArrayModule, DeviceArray

    own = {name for name in vars(ArrayModule) if not name.startswith("__")}
    assert {name for name in own if not hasattr(cupy, name)} == set()
    own = {name for name in vars(DeviceArray) if not name.startswith("_")} - {"host", "taken"}
    assert {name for name in own if not hasattr(cupy.ndarray, name)} == set()
