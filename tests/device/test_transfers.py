"""Tensors and modules go to a device and back."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import nn


def test_a_round_trip(cuda: str) -> None:
    x = mr.Tensor(np.arange(6.0, dtype=np.float32).reshape(2, 3))
    there = x.to(cuda)
    assert there.device == "cuda:0"
    assert there.to("cuda") is there
    assert there.cuda() is there
    assert there.shape == (2, 3)
    assert there.dtype == np.float32
    back = there.cpu()
    assert back.device == "cpu"
    np.testing.assert_array_equal(back.numpy(), x.numpy())


@pytest.mark.parametrize("order", ["C", "F", "channels last", "gaps"])
def test_memory_order_is_kept(cuda: str, order: str) -> None:
    x = np.arange(120.0).reshape(2, 3, 4, 5)
    if order == "channels last":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    elif order == "gaps":
        x = np.repeat(x, 2, axis=3)[..., ::2]
    else:
        x = np.array(x, order=order)  # type: ignore[call-overload]
    there = mr.Tensor(x).to(cuda)
    dense = np.array(x, order="K")
    assert there._data.strides == dense.strides
    back = there.cpu()
    assert back.numpy().strides == dense.strides
    np.testing.assert_array_equal(back.numpy(), x)


def test_gradients_go_back(cuda: str) -> None:
    x = mr.Tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = (x.to(cuda) * 2.0).cpu()
    (y * y).sum().backward()
    assert x.grad is not None
    assert x.grad.device == "cpu"
    np.testing.assert_allclose(x.grad.numpy(), 8.0 * x.numpy())


def test_dtype_and_device_together(cuda: str) -> None:
    x = mr.Tensor([1.0, 2.0]).to(cuda, np.float64)
    assert (x.device, x.dtype) == ("cuda:0", np.float64)
    assert x.to("cpu", "float32").dtype == np.float32


def test_numpy_of_a_device_tensor_says_what_to_do(cuda: str) -> None:
    x = mr.Tensor([1.0]).to(cuda)
    for read in (x.numpy, lambda: np.asarray(x), lambda: np.array(x)):
        with pytest.raises(TypeError, match=r"lives on cuda:0.*\.cpu\(\)"):
            read()


def test_reading_numbers(cuda: str) -> None:
    x = mr.Tensor([[1.5, 2.0]]).to(cuda)
    assert x.tolist() == [[1.5, 2.0]]
    assert x.sum().item() == 3.5
    assert float(x[0, 0]) == 1.5
    assert bool(x[0, 1] > 1.0)
    assert repr(x) == "tensor([[1.5, 2. ]], device='cuda:0')"
    assert f"{x.sum():.1f}" == "3.5"
    assert [float(row.sum()) for row in x] == [3.5]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_and_pickles(cuda: str, copied: Any) -> None:
    x = mr.nn.Parameter(np.array([1.0, 2.0])).to(cuda).detach().requires_grad_()
    (x * x).sum().backward()
    y = copied(x)
    assert y.device == "cuda:0"
    assert y.requires_grad
    assert y.grad is not None
    assert y.tolist() == [1.0, 2.0]
    assert y.grad.tolist() == [2.0, 4.0]
    with mr.no_grad():
        y += 1.0
    assert x.tolist() == [1.0, 2.0]


def test_in_place_changes(cuda: str) -> None:
    x = mr.Tensor(np.zeros((2, 3))).to(cuda)
    x[0] = 1.0
    x[:, 1] = mr.Tensor([5.0, 6.0]).double().to(cuda)
    x[1, 2] = np.array(7.0)
    x[1, [0]] = [8.0]
    x += 1.0
    assert x.tolist() == [[2.0, 6.0, 2.0], [9.0, 7.0, 8.0]]
    assert x.copy_(np.ones((2, 3))).tolist() == [[1.0] * 3] * 2
    assert x.copy_(mr.Tensor(np.full(3, 2.0))).tolist() == [[2.0] * 3] * 2


def test_saved_arrays_changed_in_place_are_noticed(cuda: str) -> None:
    x = mr.Tensor([1.0, 2.0], requires_grad=True).to(cuda)
    y = (x * x).sum()
    with mr.no_grad():
        x += 1.0
    with pytest.raises(RuntimeError, match="changed in place since"):
        y.backward()


# -- errors ---------------------------------------------------------------------------------------


def test_operands_on_two_devices(cuda: str) -> None:
    x, y = mr.Tensor([1.0, 2.0]).to(cuda), mr.Tensor([1.0, 2.0])
    for call in (lambda: x + y, lambda: y * x, lambda: x @ y, lambda: mr.concatenate([x, y]),
                 lambda: x + np.ones(2, np.float32), lambda: x < y,
                 lambda: mr.where(x > 0, x, y)):  # fmt: skip
        with pytest.raises(ValueError, match=r"cpu and cuda:0; bring them together with \.to\('cu"):
            call()


def test_a_model_left_behind(cuda: str) -> None:
    x = mr.Tensor(np.zeros((2, 3, 4, 4), np.float32)).to(cuda)
    with pytest.raises(ValueError, match="conv2d: operands live on cpu and cuda:0"):
        nn.Conv2d(3, 4, 1)(x)
    with pytest.raises(ValueError, match="x lives on cuda:0 and running_mean on cpu"):
        nn.BatchNorm2d(3, affine=False)(x)


def test_numbers_mix_freely(cuda: str) -> None:
    x = mr.Tensor([1.0, 2.0]).to(cuda)
    constant = mr.Tensor(3.0)
    for y in (2.0 * x + 1, x - np.float32(1.0), 1.0 / x, x**2, constant * x, x / constant,
              mr.maximum(x, 1.5), mr.where(x > 1.5, 0.0, x)):  # fmt: skip
        assert y.device == "cuda:0"
        assert y.dtype == np.float32
    weight = mr.Tensor(3.0, requires_grad=True)
    (weight * x).sum().backward()
    assert weight.grad is not None
    assert (weight.grad.device, weight.grad.item()) == ("cpu", 3.0)


def test_unknown_devices(cuda: str) -> None:
    x = mr.Tensor([1.0])
    with pytest.raises(ValueError, match="unknown device 'gpu'; known are 'cpu', 'cuda'"):
        x.to("gpu")
    with pytest.raises(ValueError, match=r"cuda:77: this machine has .* CUDA device"):
        x.to("cuda:77")


# -- modules --------------------------------------------------------------------------------------


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(16, 2))  # fmt: skip


def test_a_module_moves_in_place(cuda: str) -> None:
    model = layers()
    before = list(model.parameters())
    model[0].weight.grad = mr.Tensor(np.ones((4, 3, 3, 3), np.float32))
    expected = {name: t.numpy().copy() for name, t in model.state_dict().items()}
    assert model.to(cuda) is model
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert {t.device for t in model.state_dict().values()} == {"cuda:0"}
    assert model[0].weight.grad.device == "cuda:0"
    assert model[1].num_batches_tracked.dtype == np.int64
    model.cpu()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name])


def test_states_go_where_the_parameters_live(cuda: str, tmp_path: Any) -> None:
    there, here = layers().to(cuda), layers()
    here.load_state_dict(there.state_dict())
    mr.save_file(tmp_path / "weights.safetensors", there.state_dict())
    fresh = layers().to(cuda)
    fresh.load_state_dict(mr.load_file(tmp_path / "weights.safetensors"))
    for name, tensor in there.state_dict().items():
        np.testing.assert_array_equal(here.state_dict()[name].numpy(), tensor.cpu().numpy())
        assert fresh.state_dict()[name].device == "cuda:0"
        np.testing.assert_array_equal(fresh.state_dict()[name].cpu().numpy(), tensor.cpu().numpy())


def test_initialisation_is_the_same_wherever_a_tensor_lives(cuda: str) -> None:
    for fill in (nn.init.kaiming_normal_, lambda t: nn.init.uniform_(t, -1.0, 1.0),
                 lambda t: nn.init.constant_(t, 3.0)):  # fmt: skip
        here, there = mr.Tensor(np.zeros((2, 3, 3, 3), np.float32)), None
        there = mr.Tensor(np.zeros((2, 3, 3, 3), np.float32)).to(cuda)
        for tensor in (here, there):
            mr.manual_seed(3)
            fill(tensor)
        np.testing.assert_array_equal(here.numpy(), there.cpu().numpy())
