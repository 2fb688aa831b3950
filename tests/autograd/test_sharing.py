"""Memory shared with other libraries on the host: DLPack both ways, NumPy and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minires as mr


def as_numpy(x: mr.Tensor) -> Any:
    return np.from_dlpack(x)


def as_torch(x: mr.Tensor) -> Any:
    return pytest.importorskip("torch", reason="no PyTorch").from_dlpack(x)


def of_numpy() -> Any:
    return np.arange(6.0).reshape(2, 3)


def of_torch() -> Any:
    torch = pytest.importorskip("torch", reason="no PyTorch")
    return torch.arange(6, dtype=torch.float64).reshape(2, 3)


@pytest.mark.parametrize("view", [as_numpy, as_torch])
def test_given_away(view: Any) -> None:
    x = mr.tensor(np.arange(6.0).reshape(2, 3)).T
    other = view(x)
    assert tuple(other.shape) == (3, 2)
    x[2, 0] = 9.0
    assert float(other[2, 0]) == 9.0
    other[0, 1] = 7.0
    assert x[0, 1].item() == 7.0


@pytest.mark.parametrize("source", [of_numpy, of_torch])
def test_taken(source: Any) -> None:
    other = source()
    x = mr.from_dlpack(other)
    assert (x.device, x.dtype, x.shape) == ("cpu", np.float64, (2, 3))
    other[1, 2] = 9.0
    assert x[1, 2].item() == 9.0
    x[0, 0] = 7.0
    assert float(other[0, 0]) == 7.0


@pytest.mark.parametrize("view", [as_numpy, as_torch])
def test_what_is_changed_from_outside_is_noticed(view: Any) -> None:
    x = mr.tensor([1.0, 2.0])
    w = mr.tensor([3.0, 4.0], requires_grad=True)
    other = view(x)
    loss = (x * w).sum()
    other[0] = 5.0
    with pytest.raises(RuntimeError, match="changed in place since"):
        loss.backward()


@pytest.mark.parametrize("source", [of_numpy, of_torch])
def test_so_is_a_change_of_what_was_taken(source: Any) -> None:
    other = source()
    w = mr.tensor(np.ones((2, 3)), requires_grad=True)
    loss = (mr.from_dlpack(other) * w).sum()
    other[0, 0] = 5.0
    with pytest.raises(RuntimeError, match="changed in place since"):
        loss.backward()


def test_gradients_are_not_given_away() -> None:
    x = mr.tensor([1.0], requires_grad=True)
    with pytest.raises(RuntimeError, match=r"__dlpack__: this tensor requires gradients.*detach"):
        np.from_dlpack(x)
    assert np.from_dlpack(x.detach())[0] == 1.0


def test_what_cannot_be_taken() -> None:
    class Elsewhere:
        def __dlpack__(self) -> None: ...

        def __dlpack_device__(self) -> tuple[int, int]:
            return 8, 0

    with pytest.raises(TypeError, match="list has no __dlpack__"):
        mr.from_dlpack([1.0])
    with pytest.raises(ValueError, match="memory of kind 8 is neither on the host nor on a CUDA"):
        mr.from_dlpack(Elsewhere())


def test_tensors_of_the_host_have_no_cuda_interface() -> None:
    assert not hasattr(mr.tensor([1.0]), "__cuda_array_interface__")
