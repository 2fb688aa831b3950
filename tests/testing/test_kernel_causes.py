"""Wrong kernels as people write them: each must be caught, and the cause named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from lab import restored_kernels
from numba import njit

import minires as mr
from minires.kernels.reference import conv
from minires.testing import check_kernel

Array = np.ndarray


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with restored_kernels():
        yield


def taps(g: Any, s: Any = None, p: Any = None, d: Any = None) -> Iterator[tuple[int, int, Any]]:
    """Each tap of the kernel, and what it reads of an image with a border of zeros."""
    s, p, d = s or g.stride, g.padding if p is None else p, d or g.dilation
    for u in range(g.kernel[0]):
        for v in range(g.kernel[1]):
            rows = u * d[0] - p[0] + s[0] * np.arange(g.out[0])
            cols = v * d[1] - p[1] + s[1] * np.arange(g.out[1])
            yield u, v, (rows, cols)


def read(x: Array, at: Any) -> Array:
    """Pixels of an image, zero outside."""
    rows, cols = at
    inside = ((rows >= 0) & (rows < x.shape[2]))[:, None] & ((cols >= 0) & (cols < x.shape[3]))
    found = x[:, :, np.clip(rows, 0, x.shape[2] - 1)][..., np.clip(cols, 0, x.shape[3] - 1)]
    return np.where(inside, found, x.dtype.type(0))


def grouped(x: Array, weight: Array, g: Any, read: Any = read, **settings: Any) -> Array:
    """A right convolution, to be spoiled by another `read` or other settings."""
    y = np.zeros(g.y_shape, x.dtype)
    C, O = g.C // g.groups, g.O // g.groups
    for i in range(g.groups):
        c, o = slice(i * C, (i + 1) * C), slice(i * O, (i + 1) * O)
        for u, v, at in taps(g, **settings):
            y[:, o] += np.einsum("nchw,oc->nohw", read(x[:, c], at), weight[o, :, u, v])
    return y


def clamped(x: Array, at: Any) -> Array:
    rows, cols = at
    return x[:, :, np.clip(rows, 0, x.shape[2] - 1)][..., np.clip(cols, 0, x.shape[3] - 1)]


def wrapped(x: Array, at: Any) -> Array:
    rows, cols = at
    return x[:, :, rows % x.shape[2]][..., cols % x.shape[3]]


def flipped(x: Any, weight: Any, g: Any) -> Any:
    return grouped(x, weight[:, :, ::-1, ::-1], g)


def kernel_axes(x: Any, weight: Any, g: Any) -> Any:
    return grouped(x, weight.swapaxes(2, 3), g)


def image_axes(x: Any, weight: Any, g: Any) -> Any:
    return grouped(x, weight, g).swapaxes(2, 3)


def no_padding(x: Any, weight: Any, g: Any) -> Any:
    return grouped(x, weight, g, p=(0, 0))


def padding_off_by_one(x: Any, weight: Any, g: Any) -> Any:
    return grouped(x, weight, g, p=(g.padding[0] + 1, g.padding[1] + 1))


def clamps(x: Any, weight: Any, g: Any) -> Any:
    return grouped(x, weight, g, clamped)


def wraps(x: Any, weight: Any, g: Any) -> Any:
    return grouped(x, weight, g, wrapped)


def no_stride(x: Any, weight: Any, g: Any) -> Any:
    return grouped(x, weight, g, s=(1, 1))


def stride_axes(x: Any, weight: Any, g: Any) -> Any:
    return grouped(x, weight, g, s=g.stride[::-1])


def stride_too_long(x: Any, weight: Any, g: Any) -> Any:
    return grouped(x, weight, g, s=(g.stride[0] + 1, g.stride[1] + 1))


def no_dilation(x: Any, weight: Any, g: Any) -> Any:
    return grouped(x, weight, g, d=(1, 1))


def one_group(x: Any, weight: Any, g: Any) -> Any:
    C = g.C // g.groups
    return grouped(np.tile(x[:, :C], (1, g.groups, 1, 1)), weight, g)


def last_row_forgotten(x: Any, weight: Any, g: Any) -> Any:
    weight = weight.copy()
    weight[:, :, -1] = 0
    return grouped(x, weight, g)


def channels_in_fours(x: Any, weight: Any, g: Any) -> Any:
    weight = weight.copy()
    weight[:, weight.shape[1] // 4 * 4 :] = 0
    return grouped(x, weight, g)


def columns_in_fours(x: Any, weight: Any, g: Any) -> Any:
    """Four columns at a time, and nobody does the rest."""
    y = np.empty(g.y_shape, x.dtype)
    whole = g.out[1] // 4 * 4
    y[..., :whole] = grouped(x, weight, g)[..., :whole]
    return y


def columns_in_fours_zeroed(x: Any, weight: Any, g: Any) -> Any:
    y = grouped(x, weight, g)
    if g.out[1] >= 4:
        y[..., g.out[1] // 4 * 4 :] = 0
    return y


def never_cleared(x: Any, weight: Any, g: Any) -> Any:
    y = np.empty(g.y_shape, x.dtype)
    y += grouped(x, weight, g)
    return y


def in_place(x: Any, weight: Any, g: Any) -> Any:
    y = grouped(x, weight, g)
    x *= 0
    return y


def counted_twice(x: Any, weight: Any, g: Any) -> Any:
    return 2 * grouped(x, weight, g)


def first_image(x: Any, weight: Any, g: Any) -> Any:
    return np.repeat(grouped(x, weight, g)[:1], g.N, axis=0)


def single_precision(x: Any, weight: Any, g: Any) -> Any:
    return conv.conv2d(x.astype("f4"), weight.astype("f4"), g).astype(x.dtype)


def half_precision(x: Any, weight: Any, g: Any) -> Any:
    return conv.conv2d(x.astype("f2"), weight.astype("f2"), g).astype(x.dtype)


def double_result(x: Any, weight: Any, g: Any) -> Any:
    return conv.conv2d(x.astype("f8"), weight.astype("f8"), g)


def memory_as_it_lies(x: Any, weight: Any, g: Any) -> Any:
    return conv.conv2d(x.ravel(order="K").reshape(x.shape), weight, g)


def full_size(x: Any, weight: Any, g: Any) -> Any:
    H, W = g.H + 2 * g.padding[0] - g.kernel[0] + 1, g.W + 2 * g.padding[1] - g.kernel[1] + 1
    return np.zeros((g.N, g.O, max(H, 1), max(W, 1)), x.dtype)


def channels_last_result(x: Any, weight: Any, g: Any) -> Any:
    return np.ascontiguousarray(conv.conv2d(x, weight, g).transpose(0, 2, 3, 1))


def no_groups(x: Any, weight: Any, g: Any) -> Any:
    if weight.shape[1] != x.shape[1]:
        raise IndexError("channel out of range")
    return conv.conv2d(x, weight, g)


def skips_nan(x: Any, weight: Any, g: Any) -> Any:
    return conv.conv2d(np.nan_to_num(x, posinf=np.inf), weight, g)


def returns_nothing(x: Any, weight: Any, g: Any) -> None:
    conv.conv2d(x, weight, g)


class Wanders:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Any, weight: Any, g: Any) -> Any:
        self.calls += 1
        return conv.conv2d(x, weight, g) * x.dtype.type(1 + 1e-7 * (self.calls % 2))


@njit
def _loops(x, weight, y, sh, sw, ph, pw, check):  # type: ignore[no-untyped-def]
    N, O, OH, OW = y.shape
    _, C, KH, KW = weight.shape
    for n in range(N):
        for o in range(O):
            for i in range(OH):
                for j in range(OW):
                    total = y.dtype.type(0)
                    for c in range(C):
                        for u in range(KH):
                            for v in range(KW):
                                h, w = i * sh + u - ph, j * sw + v - pw
                                if not check or (0 <= h < x.shape[2] and 0 <= w < x.shape[3]):
                                    total += x[n, c, h, w] * weight[o, c, u, v]
                    y[n, o, i, j] = total


def plain(g: Any) -> bool:
    return g.groups == 1 and g.dilation == (1, 1)


def border_unchecked(x: Any, weight: Any, g: Any) -> Any:
    """Loops without a test of the border: compiled, they read what lies there."""
    y = np.empty(g.y_shape, x.dtype)
    _loops(x, weight, y, *g.stride, *g.padding, False)
    return y


@njit
def _copy(source, target, count):  # type: ignore[no-untyped-def]
    for k in range(count):
        target[k] = source[k]


def writes_whole_vectors(x: Any, weight: Any, g: Any) -> Any:
    """Eight numbers at a time, the last ones beyond the end of y."""
    right = conv.conv2d(x, weight, g)
    flat, y = np.zeros(right.size + 8, x.dtype), np.empty(g.y_shape, x.dtype)
    flat[: right.size] = right.ravel()
    _copy(flat, y.reshape(-1), -(-right.size // 8) * 8)
    return y


def overwrites(gy: Any, weight: Any, g: Any) -> Any:
    """Shares of overlapping windows replace each other."""
    gx = np.zeros(g.x_shape, gy.dtype)
    for u, v, (rows, cols) in taps(g):
        r, c = (rows >= 0) & (rows < g.H), (cols >= 0) & (cols < g.W)
        share = np.einsum("nohw,oc->nchw", gy, weight[:, :, u, v])
        gx[:, :, rows[r][:, None], cols[c]] = share[:, :, r][..., c]
    return gx


def forgets_to_flip(gy: Any, weight: Any, g: Any) -> Any:
    return conv.conv2d_grad_input(gy, weight[:, :, ::-1, ::-1], g)


def last_image(x: Any, gy: Any, g: Any) -> Any:
    gweight = np.zeros(g.weight_shape, x.dtype)
    for n in range(g.N):
        only = (np.arange(g.N) == n).astype(x.dtype)[:, None, None, None]
        gweight = conv.conv2d_grad_weight(x * only, gy, g)
    return gweight


def mean_of_images(x: Any, gy: Any, g: Any) -> Any:
    return conv.conv2d_grad_weight(x, gy, g) / x.dtype.type(g.N)


def weight_gradient_flipped(x: Any, gy: Any, g: Any) -> Any:
    return conv.conv2d_grad_weight(x, gy, g)[:, :, ::-1, ::-1].copy()


def no_bias(x: Any, weight: Any, bias: Any) -> Any:
    return x @ weight.T


FORWARD: list[tuple[Callable[..., Any], str]] = [
    (flipped, "the kernel is flipped in both axes"),
    (image_axes, "axes are swapped"),
    (no_padding, "the padding is missing"),
    (padding_off_by_one, "padding off by one"),
    (clamps, "indices are clamped"),
    (wraps, "indices wrap around"),
    (no_stride, "the stride is ignored"),
    (stride_axes, "the stride's height and width are swapped"),
    (stride_too_long, "the stride is off by one"),
    (no_dilation, "the dilation is ignored"),
    (one_group, "groups are ignored"),
    (last_row_forgotten, "the kernel's last row is left out"),
    (channels_in_fours, "input channels beyond the last whole 4 are left out: the tail"),
    (columns_in_fours, "the tail is not written"),
    (columns_in_fours_zeroed, "tail is not written: columns of the result .* last whole 4"),
    (never_cleared, "the tail is not written|read before it is written"),
    (in_place, "works on its argument in place"),
    (counted_twice, "exactly 2 times too large"),
    (first_image, "the first image's result is returned for every image"),
    (single_precision, "computes in single precision"),
    (half_precision, "loses digits"),
    (double_result, "computes in float64 and returns it"),
    (memory_as_it_lies, "assumes contiguous memory"),
    (full_size, "the output size is computed wrongly"),
    (channels_last_result, "axes are swapped: shape"),
    (no_groups, "raised IndexError: channel out of range, only where there are groups"),
    (skips_nan, "a NaN must come out"),
    (returns_nothing, "a kernel returns one array"),
    (Wanders(), "memory that is read before it is written, or threads"),
    (writes_whole_vectors, "writes out of bounds"),
]


def first_cause(operation: str, kernel: Any, **options: Any) -> str:
    mr.kernels.register(operation, name="planted", **options)(kernel)
    report = check_kernel(operation, "planted", raise_exception=False)
    assert not report
    assert report.smallest is not None
    assert report.causes
    return report.causes[0]


@pytest.mark.parametrize(("kernel", "cause"), FORWARD)
def test_a_wrong_convolution_is_explained(kernel: Any, cause: str) -> None:
    assert re.search(cause, first_cause("conv2d", kernel))


def test_swapped_kernel_axes_of_square_kernels() -> None:
    cause = first_cause("conv2d", kernel_axes, only=lambda g: g.kernel[0] == g.kernel[1])
    assert cause == "the kernel's two axes are swapped"


def test_a_border_without_a_check() -> None:
    mr.kernels.register("conv2d", name="planted", only=plain)(border_unchecked)
    report = check_kernel("conv2d", "planted", raise_exception=False)
    assert any("reads out of bounds: a border without a check" in c for c in report.causes)
    assert any("read outside of input 0" in f for f in report.failures)


@pytest.mark.parametrize(
    ("operation", "kernel", "cause"),
    [
        ("conv2d_grad_input", overwrites, "instead of adding up"),
        ("conv2d_grad_input", forgets_to_flip, "the kernel is flipped in both axes"),
        ("conv2d_grad_weight", last_image, "only the last image counts"),
        ("conv2d_grad_weight", mean_of_images, "a mean over the images where a sum belongs"),
        ("conv2d_grad_weight", weight_gradient_flipped, "the kernel is flipped in both axes"),
        ("linear", no_bias, "the bias is not added"),
        ("relu", lambda x: -np.maximum(x, 0), "the sign is wrong"),
    ],
)
def test_other_passes_and_operations(operation: str, kernel: Any, cause: str) -> None:
    options = {"only": lambda g: g.groups == 1} if operation.startswith("conv") else {}
    assert cause in first_cause(operation, kernel, **options)


def test_the_helper_is_right() -> None:
    """What the planted kernels spoil is a convolution that conforms."""
    mr.kernels.register("conv2d", name="planted")(grouped)
    assert check_kernel("conv2d", "planted").calls > 200


def test_the_smallest_case_is_small_and_can_be_repeated() -> None:
    mr.kernels.register("conv2d", name="planted")(flipped)
    report = check_kernel("conv2d", "planted", raise_exception=False)
    assert report.smallest is not None
    g = report.smallest.case.geometry
    assert (g.N, g.C, g.O, g.groups, g.out) == (1, 1, 1, 1, (1, 1))
    assert sorted(g.kernel) == [1, 2]
    names: dict[str, Any] = {}
    exec(report.line.replace("print(", "case = (", 1), names)
    assert not names["case"]
    assert "elements wrong" in str(names["case"])
    assert "expected 0, float64" in str(names["case"])


def test_the_report_reads_well() -> None:
    mr.kernels.register("conv2d", name="planted", only=lambda g: g.kernel == (3, 3))(no_padding)
    with pytest.raises(AssertionError) as caught:
        check_kernel("conv2d", "planted")
    text = str(caught.value)
    assert re.search(r"^conv2d/planted: \d+ calls, \d+ not supported, \d+ failures$", text, re.M)
    assert re.search(r"^  smallest: .* \(float32, contiguous\): 1 of 1 elements wrong", text, re.M)
    assert "repeat: import minires as mr; print(mr.testing.kernel_case('conv2d', 'planted'" in text
    assert "likely cause: the padding is missing" in text
