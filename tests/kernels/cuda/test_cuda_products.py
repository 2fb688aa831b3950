"""Matrix products and Winograd's convolutions: every tile, split sums, images in parts."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from cuda_compare import assert_conforms
from hypothesis import given
from hypothesis import strategies as st

from minires.kernels import ConvGeometry, available, conv_geometry
from minires.kernels.cuda import conv, emulate, product, record, tiles, winograd
from minires.kernels.cuda.tiles import PRODUCT_TILES, Plan, Product, Tile
from minires.testing.kernel_inputs import CONVOLUTION_ARRAYS, convolution
from minires.testing.kernels import reference_kernel

PASSES = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["rows", "columns"])
@pytest.mark.parametrize("tile", PRODUCT_TILES, ids=str)
def test_products_in_every_tile(
    device: Any, rng: Any, monkeypatch: pytest.MonkeyPatch, tile: Tile, form: str, dtype: str
) -> None:
    """Ragged pieces, two products, three parts of the sum, the last of them short."""
    if dtype == "float64" and tile.TM * tile.TN > 32:
        pytest.skip("float64 takes twice the registers")
    monkeypatch.setattr(product, "plan", lambda *args: Plan(tile, 3))
    I, J, K = tile.BM + 12, tile.BN + 20, 148
    a, b = rng.standard_normal((2, I, K)), rng.standard_normal((2, J, K))
    a, b = a.astype(dtype), b.astype(dtype)
    expected = np.einsum("bik,bjk->bij", a.astype(float), b.astype(float))
    if form == "columns":
        a, b = (np.ascontiguousarray(m.transpose(0, 2, 1)) for m in (a, b))
        run = product.by_columns
    else:
        run = product.by_rows
    parts = device(run, a, b)
    assert parts.shape == (3, 2, I, J)
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(parts.sum(axis=0), expected, atol=tolerance)


def turns(run: Any, rng: Any, monkeypatch: pytest.MonkeyPatch, tile: Tile) -> tuple[int, int]:
    """(turns needed, turns taken) of shared memory to write what is copied there."""
    monkeypatch.setattr(product, "plan", lambda *args: Plan(tile, 1))
    a, b = rng.standard_normal((1, 128, 256)), rng.standard_normal((1, 128, 256))
    with emulate.device() as device:
        before = [counted.total() for counted in device.shared_turns.values()]
        run(a.astype(np.float32), b.astype(np.float32))
        after = [counted.total() for counted in device.shared_turns.values()]
    needed, taken = (y - x for x, y in zip(before, after, strict=True))
    return needed, taken


@pytest.mark.parametrize("tile", PRODUCT_TILES, ids=str)
def test_copies_have_no_bank_conflicts(
    emulator: Any, rng: Any, monkeypatch: pytest.MonkeyPatch, tile: Tile
) -> None:
    for run in (product.by_rows, product.by_columns):
        needed, taken = turns(run, rng, monkeypatch, tile)
        assert needed == taken > 0


def test_rows_with_gaps_between_have_some(
    emulator: Any, altered: Any, rng: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered("product.cu", "ROW = BK,", "ROW = BK + V,")
    monkeypatch.setattr(Tile, "product_shared", 200_000)
    needed, taken = turns(product.by_rows, rng, monkeypatch, PRODUCT_TILES[2])
    assert taken > needed


def test_products_add_to_earlier_parts(emulator: Any, rng: Any) -> None:
    """Of sums of other lengths: the parts that a short one leaves empty stay as they are."""
    first, second = (rng.standard_normal((1, K, 8)) for K in (1024, 40))

    def both() -> Any:
        parts = product.by_columns(first, first)
        assert len(parts) > 2
        return product.by_columns(second, second, parts)

    expected = first[0].T @ first[0] + second[0].T @ second[0]
    np.testing.assert_allclose(emulator(both).sum(axis=0)[0], expected, atol=1e-10)


@st.composite
def winograd_geometries(draw: st.DrawFn) -> ConvGeometry:
    N, H, W = draw(st.integers(1, 3)), draw(st.integers(1, 11)), draw(st.integers(1, 11))
    padding = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    H, W = max(H, 3 - 2 * padding[0]), max(W, 3 - 2 * padding[1])
    C, O = 4 * draw(st.integers(1, 5)), 4 * draw(st.integers(1, 5))
    return conv_geometry((N, C, H, W), (O, C, 3, 3), 1, padding)


WINOGRAD = [k for k in available() if k.backend == "cuda" and k.name.startswith("winograd")]


@pytest.mark.parametrize("kernel", WINOGRAD, ids=lambda k: f"{k.operation}-{k.name}")
@given(
    g=winograd_geometries(), images_at_once=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "float64"]),
)  # fmt: skip
def test_winograd_in_parts(
    emulator: Any, kernel: Any, g: ConvGeometry, images_at_once: int, dtype: str
) -> None:
    tiling = winograd.forward_tiling(4, g)
    given = convolution(kernel.operation, g)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "WORKSPACE", images_at_once * tiling.bytes_of(1, 4))
        assert_conforms(emulator, kernel, reference_kernel(kernel.operation), given, dtype, 2.0)


@pytest.mark.parametrize("tile", [2, 4])
def test_winograd_adds_up_the_parts_of_its_sums(
    device: Any, monkeypatch: pytest.MonkeyPatch, tile: int
) -> None:
    monkeypatch.setattr(product, "plan", lambda *args: Plan(PRODUCT_TILES[3], 3))
    g, name = conv_geometry((3, 8, 17, 18), (12, 8, 3, 3), 1, 1), "conv2d_grad_weight"
    (kernel,) = (k for k in WINOGRAD if (k.operation, k.name) == (name, f"winograd{tile}"))
    assert_conforms(device, kernel, reference_kernel(name), convolution(name, g), "float32")


@pytest.mark.parametrize("shape", [(4, 10), (3, 7)])
def test_a_split_classifier_has_its_bias_once(
    device: Any, rng: Any, shape: tuple[int, int]
) -> None:
    (N, O), K = shape, 700
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((N, K), (O, K), (O,)))
    with record.device() as recorder:
        conv.linear(x, w, b)
    assert [made.kernel for made in recorder.launches] == ["gather", "sum_parts"]
    y = device(conv.linear, x, w, 100 * b)
    np.testing.assert_allclose(y, x.astype(float) @ w.T + 100.0 * b, atol=1e-3)


STATED = [k for k in available() if k.backend == "cuda" and k.workspace is not None]
WORKING = {
    "wide": conv_geometry((37, 64, 28, 24), (32, 64, 3, 3), 1, 1),
    "narrow": conv_geometry((40, 16, 28, 24), (16, 16, 3, 3), 1, 1),
    "1x1": conv_geometry((30, 512, 7, 7), (256, 512, 1, 1)),
    "one image": conv_geometry((1, 256, 7, 7), (256, 256, 3, 3), 1, 1),
}


@pytest.mark.parametrize("text", WORKING)
@pytest.mark.parametrize("kernel", STATED, ids=lambda k: f"{k.operation}-{k.name}")
def test_a_call_takes_the_workspace_it_states(kernel: Any, text: str) -> None:
    g = WORKING[text]
    if not kernel.supports(g, "float32"):
        pytest.skip("not taken")
    shapes = {"x": g.x_shape, "weight": g.weight_shape, "gy": g.y_shape}
    images = [np.zeros((s[0], *s[2:], s[1]), np.float32).transpose(0, 3, 1, 2)
              for s in map(shapes.get, CONVOLUTION_ARRAYS[kernel.operation])]  # fmt: skip
    stated = kernel.workspace_bytes(g, "float32")
    with record.device() as recorder:
        recorder.launches = Forgetful()
        kernel.function(*images, g)  # reads the sources and makes the plans, which stay
        tracemalloc.start()
        result = kernel.function(*images, g)
        taken = tracemalloc.get_traced_memory()[1] - 50_000  # Python's own objects
        tracemalloc.stop()
    assert taken < stated + result.nbytes  # which may be reserved when the workspace is free again
    assert taken + 100_000 > max(stated, result.nbytes)


class Forgetful(list[record.Launch]):
    """Keeps no launch, and so no array that one was given."""

    def append(self, launch: record.Launch) -> None: ...


@pytest.mark.parametrize("kernel", WINOGRAD, ids=lambda k: f"{k.operation}-{k.name}")
def test_winograd_of_no_images(emulator: Any, kernel: Any) -> None:
    g = conv_geometry((0, 4, 8, 8), (8, 4, 3, 3), 1, 1)
    given = convolution(kernel.operation, g)
    assert_conforms(emulator, kernel, reference_kernel(kernel.operation), given, "float32")


@pytest.mark.parametrize("processors", [4, 132])
@given(rows=st.integers(1, 10**6), columns=st.integers(1, 4096), length=st.integers(1, 10**6))
def test_plans_keep_their_limits(processors: int, rows: int, columns: int, length: int) -> None:
    found = tiles.plan(Product(rows, columns, length, 1, 4), PRODUCT_TILES, 256, processors)
    assert found.splits == 1 or length // found.splits >= 256
    assert found.splits in tiles.SPLITS
    double = tiles.plan(Product(rows, columns, length, 1, 8), PRODUCT_TILES, 256, processors)
    assert double.tile.TM * double.tile.TN <= 32


def test_plans_fill_the_device() -> None:
    """7x7 maps at batch 128 are 49 pieces of 128 rows: small tiles, or split sums."""
    found = tiles.plan(Product(128 * 49, 512, 2048, 1, 4), PRODUCT_TILES, 256, 132)
    blocks = -(-128 * 49 // found.tile.BM) * -(-512 // found.tile.BN) * found.splits
    assert blocks / (-(-blocks // 132) * 132) > 0.9
