"""Input gradients that are masked and summed as they are stored: the bits of the passes one by one,
and the sums of batch norm's backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drawn import layouts, normal, pairs, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import laid_out

pytest.importorskip("numba", reason="needs Numba")
from minires.kernels import available, conv_geometry, threads
from minires.kernels.cpu import columns, norm, strided, winograd, winograd_blocked
from minires.kernels.fusing import SUMS, Rectified
from minires.testing.guards import NAN_BYTE, ZERO_BYTE, Guards

DTYPES = {np.float32: 3e-6, np.float64: 1e-14}
"""With the rounding error of a sum, relative to the sum of absolute values."""


def rectified_of(seed: int, g: Any, dtype: Any, layout: str, joined: bool) -> Rectified:
    """With y, whose signs are its own, or without."""
    x = laid_out(normal(seed, g.x_shape, dtype), layout)
    y = laid_out(np.maximum(normal(seed + 1, g.x_shape, dtype), 0), layout) if joined else None
    return Rectified(x, *normal(seed + 2, (3, g.C), dtype), y)


def mask_of(r: Rectified) -> Any:
    """Where the ReLU's output is positive, by the operations of the forward pass."""
    y = r.y if r.y is not None else norm.normalise(*r[:4], None, True)
    return y > 0


def exact_sums(gradient: Any, r: Rectified) -> tuple[Any, Any]:
    """Both sums in float64, and those of absolute values."""
    wide = gradient.astype(np.float64)
    terms = np.stack([wide, wide * (r.x - r.mean[:, None, None]).astype(np.float64)])
    return terms.sum(axis=(1, 3, 4)), np.abs(terms).sum(axis=(1, 3, 4))


def check(module: Any, g: Any, dtype: Any, seed: int, layout: str, joined: bool) -> None:
    """Against the plain gradient, masked afterwards; and the same bits when it is done again."""
    gy = laid_out(normal(seed + 7, g.y_shape, dtype), layout)
    weight = normal(seed + 8, g.weight_shape, dtype)
    r = rectified_of(seed, g, dtype, layout, joined)
    totals = [laid_out(normal(seed + 9, g.x_shape, dtype), "channels_last") for _ in range(3)]
    kept = [a.copy() for a in (gy, weight, *r[:4])]
    if joined:
        plain = module.add_conv2d_grad_input(totals[0], gy, weight, g)
        found, again = (
            module.conv2d_grad_input_fused(gy, weight, g, r, total) for total in totals[1:]
        )
        assert np.shares_memory(found[0], totals[1])
    else:
        plain = module.conv2d_grad_input(gy, weight, g)
        found, again = (module.conv2d_grad_input_fused(gy, weight, g, r) for _ in range(2))
    np.testing.assert_array_equal(found[0], np.where(mask_of(r), plain, 0))
    sums, sizes = exact_sums(found[0], r)
    assert found[1].dtype == np.float64
    assert (np.abs(found[1] - sums) <= DTYPES[dtype] * sizes).all()
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip((gy, weight, *r[:4]), kept, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("module", "stride", "large", "block"),
    [(winograd, 1, winograd, winograd_blocked), (strided, 2, strided, strided)],
    ids=["winograd", "strided"],
)
@given(
    N=st.integers(1, 3), channels=pairs(1, 3), padding=pairs(0, 2), size=pairs(3, 19),
    blocked=st.booleans(), dtype=st.sampled_from(list(DTYPES)), joined=st.booleans(),
    workers=st.sampled_from([1, 2, 3, 64]), layout=layouts, seed=seeds,
)  # fmt: skip
def test_winograd(
    module: Any, stride: int, large: Any, block: Any, N: int, channels: Any, padding: Any,
    size: Any, blocked: bool, dtype: Any, joined: bool, workers: int, layout: str, seed: int,
) -> None:  # fmt: skip
    """As batches of tiles, and with blocks of the transformed weight: where `large` and `block`
    say from when on, and how large."""
    C, O = 16 * channels[0], 16 * channels[1]
    g = conv_geometry((N, C, *size), (O, C, 3, 3), stride, padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_count", workers)
        if blocked:
            patch.setattr(large, "LARGE", 0)
            patch.setattr(block, "BLOCK", 32)
        check(module, g, dtype, seed, layout, joined)


@given(
    N=st.integers(1, 3), channels=pairs(1, 4), size=pairs(1, 11), joined=st.booleans(),
    dtype=st.sampled_from(list(DTYPES)), workers=st.sampled_from([1, 2, 5]), layout=layouts,
    seed=seeds,
)  # fmt: skip
def test_pointwise(
    N: int, channels: Any, size: Any, joined: bool, dtype: Any, workers: int, layout: str,
    seed: int,
) -> None:  # fmt: skip
    C, O = 16 * channels[0], 16 * channels[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_count", workers)
        g = conv_geometry((N, C, *size), (O, C, 1, 1))
        check(columns, g, dtype, seed, layout, joined)


LAYERS = (
    (winograd, conv_geometry((2, 32, 9, 6), (48, 32, 3, 3), 1, 1)),
    (columns, conv_geometry((2, 32, 9, 6), (48, 32, 1, 1))),
    (strided, conv_geometry((2, 32, 9, 6), (48, 32, 3, 3), 2, 1)),
)
layers = pytest.mark.parametrize(("module", "g"), LAYERS, ids=["winograd", "columns", "strided"])


@layers
@pytest.mark.parametrize("zone", [NAN_BYTE, ZERO_BYTE])
def test_nothing_outside_is_read_or_written(module: Any, g: Any, zone: int) -> None:
    guards = Guards(zone)
    r = rectified_of(0, g, np.float32, "channels_last", joined=True)
    gy = laid_out(normal(7, g.y_shape, np.float32), "channels_last")
    weight, total = normal(8, g.weight_shape, np.float32), np.zeros_like(r.x)
    expected = module.conv2d_grad_input_fused(gy, weight, g, r, total.copy(order="K"))
    placed = Rectified(*(guards.place(a, k) for k, a in r._asdict().items()))
    args = guards.place(gy, "gy"), guards.place(weight, "weight")
    total = guards.place(total, "total")
    with guards.allocations():
        found = module.conv2d_grad_input_fused(*args, g, placed, total)
    assert guards.broken() == []
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(f, e)


@layers
def test_what_is_no_number_is_masked_like_any_other(module: Any, g: Any) -> None:
    """A NaN of the gradient stays where y > 0 only; where y is none the gradient is zero."""
    r = rectified_of(0, g, np.float32, "channels_last", joined=True)
    weight = normal(8, g.weight_shape, np.float32)
    r.y[0] = 0
    r.y[1, :, 0, 0] = np.nan
    gy = np.full(g.y_shape, np.nan, np.float32)
    gx, sums = module.conv2d_grad_input_fused(gy, weight, g, r)
    assert np.array_equal(np.isnan(gx), r.y > 0)
    assert np.isnan(sums).all()


def test_they_are_registered_for_what_they_can_do() -> None:
    kernels = {k.name: k for k in available("conv2d_grad_input") if k.backend == "cpu"}
    for name, (_, g) in zip(("winograd", "columns", "winograd-strided"), LAYERS, strict=True):
        assert kernels[name].can_fuse(SUMS, g)
    apart = conv_geometry((2, 32, 9, 6), (48, 32, 1, 1), 2)
    assert not kernels["columns"].can_fuse(SUMS, apart)
    r = rectified_of(0, apart, np.float32, "channels_last", joined=False)
    gy, weight = (normal(7, shape, np.float32) for shape in (apart.y_shape, (48, 32, 1, 1)))
    with pytest.raises(ValueError, match="1x1 kernel of stride 1"):
        columns.conv2d_grad_input_fused(gy, weight, apart, r)


# -- the other pass ------------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(1, 4), st.sampled_from([16, 48]), *[st.integers(1, 9)] * 2),
    dtype=st.sampled_from(list(DTYPES)), affine=st.booleans(), seed=seeds,
)  # fmt: skip
def test_what_is_left_of_batch_norm(shape: Any, dtype: Any, affine: bool, seed: int) -> None:
    g = conv_geometry(shape, (1, shape[1], 1, 1))
    gy = laid_out(normal(seed + 7, shape, dtype), "channels_last")
    inv_std = np.abs(normal(seed + 5, (shape[1],), dtype)) + dtype(0.1)
    for joined in (False, True):
        r = rectified_of(seed, g, dtype, "channels_last", joined)
        gamma, beta = (r.scale / inv_std, r.shift) if affine else (None, None)
        r = r._replace(scale=inv_std if gamma is None else gamma * inv_std)
        r = r if affine else r._replace(shift=np.zeros_like(r.shift))
        masked = laid_out(np.where(mask_of(r), gy, dtype(0)), "channels_last")
        given = masked.copy(order="K")
        sums = exact_sums(given, r)[0]
        if joined:
            args = r.x, r.y, gamma, r.mean, inv_std
            gx, gr, *rest = norm.batch_norm_add_relu_grad_fused(given, *args, sums)
            expected_gx, expected_gr, *expected = norm.batch_norm_add_relu_grad(gy, *args)
            assert gr is given
            assert not np.shares_memory(gx, gr)
            np.testing.assert_array_equal(gr, expected_gr)
        else:
            args = r.x, gamma, beta, r.mean, inv_std
            gx, *rest = norm.batch_norm_relu_grad_fused(given, *args, sums)
            expected_gx, *expected = norm.batch_norm_relu_grad(gy, *args)
            assert np.shares_memory(gx, given)
        # Both sums are divided by the number of rows, multiplied by xhat and taken out of gx.
        xhat = np.abs((r.x - r.mean[:, None, None]) * inv_std[:, None, None]).max()
        sizes = exact_sums(np.abs(masked), r)[1] * (1 + inv_std)
        room = 30 * DTYPES[dtype] * (1 + xhat) * (1 + np.abs(r.scale).max()) * sizes.max()
        for a, b in zip((gx, *rest), (expected_gx, *expected), strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=room)
