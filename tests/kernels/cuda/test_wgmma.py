"""Hopper's instructions and the convolutions made of them, on the emulator.

The emulator decodes a matrix descriptor as the PTX manual words it. Here shared memory is laid out
as CUTLASS words it (`canonical`), so each statement of the layouts is checked by the other, and the
kernels, which know only the swizzle, by both. Every synchronisation that the kernels need is then
taken out in turn, and the results must turn out wrong.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from cuda_compare import assert_conforms

from minires.kernels import ConvGeometry, available, conv_geometry
from minires.kernels.cuda import record, source, tensor, wgmma
from minires.kernels.cuda.launch import HOPPER, device_of
from minires.kernels.registry import operation
from minires.testing.kernel_inputs import Arguments
from minires.testing.kernels import reference_kernel

PRODUCT = """
#include "types.cuh"
#include "ptx.cuh"
#include "ptx_hopper.cuh"
// d (64, N) = a @ b^T, from an image of shared memory; `leading` etc. of both descriptors.
extern "C" __global__ void product(const T* image, float* d, int bytes, int b_at,
                                   unsigned long long a_layout, unsigned long long b_layout) {
    SWIZZLED_SHARED(shared);
    auto barrier = reinterpret_cast<Barrier*>(shared + bytes);
    if (threadIdx.x == 0) {
        begin_phases(barrier, 1);
        fence_async();
        arrive_expecting(barrier, bytes);
        copy_bulk(shared, image, bytes, barrier);
    }
    __syncthreads();
    wait_phase(barrier, 0);
    float sums[N / 2] = {};
    fence_registers();
    constexpr unsigned long long START = 0x3fff;
    multiply_later<T, MN>(sums, describe(shared, 0, 0) & START | a_layout,
                          describe(shared + b_at, 0, 0) & START | b_layout);
    commit_products();
    wait_products<0>(sums);
    for (int i = 0; i < N / 2; ++i) {
        int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i % 4 / 2 * 8;
        d[row * N + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2] = sums[i];
    }
}
"""

MODES = {0: 1, 1: 8, 2: 4, 3: 2}
"""The swizzle's code in a descriptor, and how many 16-byte chunks its rows have."""


def canonical(mode: int, mn_major: bool, mn: int, k: int, leading: int, stride: int) -> Any:
    """Where elements (mn, k) of 16 bits lie, in bytes: CUTLASS's layouts, mma_traits_sm90_gmma.hpp.

    In 16-byte units, ((8, n), 2) : ((W, SBO), 1) for K-major ((8, n), 2) : ((1, SBO), LBO) without
    swizzle, and ((W, n), (8, 2)) : ((1, LBO), (W, SBO)) for MN-major, ((1, n), (8, 2)) :
    ((X, SBO), (1, LBO)) without; then Swizzle<B, 4, 3>, with 2^B = W.
    """
    W, (i, j) = MODES[mode], np.ogrid[:mn, :k]
    if mn_major:
        unit, within = i // 8, i % 8
        if mode:
            at = unit % W + unit // W * leading + j % 8 * W + j // 8 * stride
        else:
            at = unit * stride + j % 8 + j // 8 * leading
    else:
        unit, within = j // 8, j % 8
        at = i % 8 * W + i // 8 * stride + unit * (1 if mode else leading)
    address = at * 16 + within * 2
    bits = W.bit_length() - 1  # B of Swizzle<B, 4, 3>: B bits from bit 7 on are xored into bit 4 on
    return address ^ (address >> 3) & ((1 << bits) - 1 << 4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mn_major", [False, True], ids=["K-major", "MN-major"])
@pytest.mark.parametrize("N", [16, 128])
def test_layouts_of_descriptors(device: Any, rng: Any, N: int, mn_major: bool, mode: int) -> None:
    """One product of matrices that NumPy wrote to shared memory."""
    W = MODES[mode]
    a, b = (rng.integers(-8, 9, (rows, 16)).astype(np.float16) for rows in (64, N))
    image, layouts, size = np.zeros(1 << 15, np.float16), [], 1 << 15
    for start, matrix in ((0, a), (size, b)):
        # In chunks: from one group of 8 (or W, along mn) to the next. Any that do not overlap.
        if mn_major:
            side_by_side = math.ceil(len(matrix) / (8 * W))
            leading, stride = (8 * W, 8 * W * side_by_side) if mode else (8, 16)
        else:
            leading, stride = (1, 8 * W) if mode else (8, 16)
        at = canonical(mode, mn_major, *matrix.shape, leading, stride)
        image[(start + at) // 2] = matrix
        layouts.append(np.uint64(leading << 16 | stride << 32 | mode << 62))
    file = source.give("product.cu", PRODUCT)

    def product(image: Any, d: Any) -> Any:
        own = device_of(d)
        if own.capability != HOPPER:
            pytest.skip("only compute capability 9.0 has these instructions")
        module = own.module(file, ELEMENT=np.dtype(np.float16), N=N, MN=int(mn_major))
        args = image, d, np.int32(image.nbytes), np.int32(size), *layouts
        module.kernel("product")((1,), (128,), args, image.nbytes + 8)
        return d

    for _ in range(2):
        d = device(product, image, np.full((64, N), np.nan, np.float32))
        np.testing.assert_array_equal(d, a.astype(np.float32) @ b.astype(np.float32).T)


KERNELS = [k for k in available() if k.backend == "cuda" and k.name in ("tensor", "tf32")]
"""What runs on wgmma on a Hopper, as the emulator says it is."""

DRAWN = {
    "several pieces each way": conv_geometry((3, 16, 13, 11), (264, 16, 3, 3), 1, 1),
    "many steps": conv_geometry((1, 136, 9, 9), (24, 136, 3, 3), 1, 1),
    "stride, dilation, groups": conv_geometry((2, 32, 12, 11), (48, 16, 3, 3), 2, 2, (2, 1), 2),
    "residues without taps": conv_geometry((2, 8, 11, 12), (16, 8, 1, 1), 3),
    "sums over pixels in parts": conv_geometry((4, 8, 19, 17), (8, 8, 1, 1)),
    "few pixels": conv_geometry((1, 8, 2, 3), (8, 8, 3, 3), 1, 1),
}


def convolution(kernel: Any, g: ConvGeometry, rng: Any) -> Arguments:
    shapes = {"conv2d": (g.x_shape, g.weight_shape),
              "conv2d_grad_input": (g.y_shape, g.weight_shape),
              "conv2d_grad_weight": (g.x_shape, g.y_shape)}[kernel.operation]  # fmt: skip
    return Arguments("drawn", (*map(rng.standard_normal, shapes), g), linear=True)


def check(device: Any, kernel: Any, g: ConvGeometry, rng: Any, dtype: str) -> None:
    slack = 2.0**7 if dtype == "float32" else 1.0
    case = convolution(kernel, g, rng)
    for _ in range(2):  # threads downwards and upwards
        assert_conforms(device, kernel, reference_kernel(kernel.operation), case, dtype, slack)


@pytest.mark.parametrize("text", DRAWN)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.operation}-{k.name}")
def test_convolutions(device: Any, kernel: Any, text: str, rng: Any) -> None:
    dtype = "float32" if kernel.name == "tf32" else "float16"
    check(device, kernel, DRAWN[text], rng, dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("BN", [16, 32, 64, 128, 256])
def test_every_tile(
    emulator: Any, rng: Any, monkeypatch: pytest.MonkeyPatch, BN: int, dtype: str
) -> None:
    """With a piece of columns that is not full, and more steps than stages."""
    half = dtype == "float16"
    found = [t for t in (wgmma.WGMMA_TILES if half else wgmma.TF32_TILES) if BN == t.BN]
    if not found:
        pytest.skip("there is no such tile for tf32")
    monkeypatch.setattr(wgmma, "wgmma_tile", lambda *given: found[0])
    for kernel in KERNELS:
        if (kernel.name == "tensor") == half:
            gradient = kernel.operation == "conv2d_grad_weight"
            columns = BN if gradient else BN + 8  # a weight gradient's tile follows from them
            C, O = (columns, 40) if kernel.operation == "conv2d_grad_input" else (40, columns)
            check(emulator, kernel, conv_geometry((2, C, 8, 5), (O, C, 3, 3), 1, 1), rng, dtype)


PLANTED = {
    "X is written without swizzle": ("conv_wgmma.cu", "(q ^ row % 8) * 16;\n        Pixel",
                                     "q * 16;\n        Pixel"),
    "W is packed without swizzle": ("conv_wgmma.cu", "(q ^ row % 8) * V", "q * V"),
    "patterns too close": ("conv_wgmma.cu", "BM * ROW, 16, 8 * ROW", "BM * ROW, 16, 4 * ROW"),
    "the second warpgroup reads the first's rows": ("conv_wgmma.cu", "warp / 4 * 64", "0"),
    "a k of W is used twice": ("conv_wgmma.cu", "b + (stage * STAGE + k) / 16",
                               "b + stage * STAGE / 16"),
    "stages overlap": ("conv_wgmma.cu", "to = shared + stage * STAGE",
                       "to = shared + stage * (STAGE - 1024)"),
    "results before the last product": ("conv_wgmma.cu", "meet(1, CONSUMERS);", ""),
    "producers do not wait for their copies": ("pipeline.cuh", "wait_copies<AHEAD>();", ""),
    "producers do not fence": ("pipeline.cuh", "fence_async();\n            arrive", "arrive"),
    "barriers are not fenced": ("pipeline.cuh", "    fence_async();\n}", "}"),
    "producers do not wait for empty stages": ("pipeline.cuh",
                                               "wait_phase(p.empty + stage, parity);", ""),
    "consumers do not wait for full stages": ("pipeline.cuh",
                                              "wait_phase(p.full + stage, parity);", ""),
    "the wrong phase of full": ("pipeline.cuh", "parity = 0, last = -1", "parity = 1, last = -1"),
    "the wrong phase of empty": ("pipeline.cuh", "oldest = 0, parity = 1",
                                 "oldest = 0, parity = 0"),
    "phases do not alternate": ("pipeline.cuh", "stage = 0, parity ^= 1;\n        }\n    wait",
                                "stage = 0;\n}\nwait"),
    "a stage given back with products under way": ("pipeline.cuh", "wait_products<1>(sums);",
                                                   "wait_products<2>(sums);"),
    "sums used with products under way": ("pipeline.cuh", "wait_products<0>(sums);", ""),
    "as many stages ahead as there are": ("pipeline.cuh", "STAGES - 2", "STAGES - 1"),
    "products without a fence of registers": ("conv_wgmma.cu", "fence_registers();", ""),
    "fewer bytes than expected": ("conv_wgmma.cu", "arrive_expecting(pipeline.full + stage, BN",
                                  "arrive_expecting(pipeline.full + stage, 2 * BN"),
    "nobody expects the weights": ("conv_wgmma.cu",
                                   "arrive_expecting(pipeline.full + stage, BN * ROW)",
                                   "arrive(pipeline.full + stage)"),
}  # fmt: skip


MANY_STEPS = conv_geometry((2, 48, 9, 9), (16, 48, 3, 3), 1, 1)
"""More steps than the 6 stages: 7 of 64 numbers, the last in the stage where results will lie. More
than one piece of pixels."""


def assert_caught(
    emulator: Any, operation: str, g: ConvGeometry, rng: Any, dtype: str = "float16"
) -> None:
    name = "tensor" if dtype == "float16" else "tf32"
    kernel = next(k for k in KERNELS if (k.operation, k.name) == (operation, name))
    with pytest.raises((AssertionError, RuntimeError)) as caught:
        check(emulator, kernel, g, rng, dtype)
    assert re.search("wrong, the first at|^(gather|grad_weight): ", str(caught.value))


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_caught(emulator: Any, altered: Any, rng: Any, bug: str) -> None:
    altered(*PLANTED[bug])
    assert_caught(emulator, "conv2d", MANY_STEPS, rng)


WEIGHT_PLANTED = {
    "slabs too close": ("conv_wgmma_weight.cu", "BM / 64 * SLAB, SLAB,",
                        "BM / 64 * SLAB, SLAB / 2,"),
    "pixels in the wrong order": ("conv_wgmma_weight.cu", "^ row % 8", "^ (row + 1) % 8"),
    "the next pixels' table too early": ("conv_wgmma_weight.cu", "meet(2, WARPGROUP);", ""),
    "factors as if they lay along k": ("conv_wgmma_weight.cu", "<T, true>", "<T, false>"),
}  # fmt: skip


@pytest.mark.parametrize("bug", WEIGHT_PLANTED)
def test_planted_bugs_of_weight_gradients(emulator: Any, altered: Any, rng: Any, bug: str) -> None:
    altered(*WEIGHT_PLANTED[bug])
    assert_caught(emulator, "conv2d_grad_weight", DRAWN["several pieces each way"], rng)


TF32_WEIGHT_PLANTED = {
    "dY is packed without swizzle": ("(q ^ row % 8) * V, chunk", "q * V, chunk"),
    "fragments' pixels the other way round": ("i % 4 / 2 * 4", "(1 - i % 4 / 2) * 4"),
    "every part begins with the first pixels": ("all_steps + begin / STEP", "all_steps"),
    "dY is not rounded": ("rounded(gy[(m + e) * O + group * D + o])",
                          "gy[(m + e) * O + group * D + o]"),
}  # fmt: skip


@pytest.mark.parametrize("bug", TF32_WEIGHT_PLANTED)
def test_planted_bugs_of_weight_gradients_in_tf32(
    emulator: Any, altered: Any, rng: Any, bug: str
) -> None:
    altered("conv_wgmma_weight.cu", *TF32_WEIGHT_PLANTED[bug])
    g = DRAWN["sums over pixels in parts"]
    assert_caught(emulator, "conv2d_grad_weight", g, rng, "float32")


def test_tf32_is_rounded_not_cut(emulator: Any, altered: Any, rng: Any) -> None:
    altered("conv_wgmma.cu", "to_tf32(__uint_as_float(now[k][i]))", "now[k][i]")
    kernel = next(k for k in KERNELS if k.name == "tf32")
    with pytest.raises(RuntimeError, match="a factor was not rounded to tf32"):
        check(emulator, kernel, MANY_STEPS, rng, "float32")


# -- the host side --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_only_hopper_gets_wgmma(capability: tuple[int, int], dtype: str) -> None:
    g = conv_geometry((8, 64, 14, 14), (64, 64, 3, 3), 1, 1)
    x, w = np.zeros(g.x_shape, dtype), np.zeros(g.weight_shape, dtype)
    with record.device(capability=capability) as recorder:
        tensor.tensor_conv2d(x, w, g)
        tensor.tensor_conv2d_grad_input(x, w, g)
        tensor.tensor_conv2d_grad_weight(x, x, g)
    used = {launch.source for launch in recorder.launches} - {"sum_parts.cu"}
    hopper = {"conv_wgmma.cu", "conv_wgmma_weight.cu"}
    assert used == (hopper if capability == (9, 0) else {"conv_tensor.cu", "conv_tensor_weight.cu"})


def test_tf32_is_never_chosen_unasked() -> None:
    g = conv_geometry((8, 64, 14, 14), (64, 64, 3, 3), 1, 1)
    for one_pass in ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"):
        assert "tf32" not in operation(one_pass).select("cuda", g, "float32").name
        assert operation(one_pass).select("cuda", g, "bfloat16").name == "tensor"


def test_wgmma_elsewhere_is_refused() -> None:
    g = conv_geometry((1, 8, 4, 4), (8, 8, 3, 3), 1, 1)
    x, gy = np.zeros(g.x_shape, np.float16), np.zeros(g.y_shape, np.float16)
    with (
        record.device(capability=(8, 9)),
        pytest.raises(ValueError, match=r"needs compute capability 9\.0, this device has 8\.9"),
    ):
        wgmma.grad_weight(x, gy, g)


def test_taps_of_the_strides_residues() -> None:
    """Against counting, for every residue, the taps that reach it."""
    for k, s, p, d in itertools.product((1, 2, 3, 7), (1, 2, 3, 4), (0, 1), (1, 2, 4)):
        g = conv_geometry((1, 8, 32, 32), (8, 8, k, 1), (s, 1), (p, 0), (d, 1))
        counted = max(sum((r + p - u * d) % s == 0 for u in range(k)) for r in range(s))
        assert wgmma.most_taps(g, gradient=True) == counted, (k, s, p, d)
        assert wgmma.most_taps(g, gradient=False) == k


def test_tiles_are_no_wider_than_needed_and_fill_the_device() -> None:
    def BN(columns: int, rows: int, steps: int = 9) -> int:
        with record.device() as device:
            return wgmma.wgmma_tile(wgmma.WGMMA_TILES, columns, rows, steps, device).BN

    assert [BN(c, 10000) for c in (8, 16, 24, 48, 64, 100, 128, 200, 256, 512)] == [
        16, 16, 32, 64, 64, 128, 128, 256, 256, 256,
    ]  # fmt: skip
    assert BN(512, 49) == 256  # 7x7 images: one round of 98 blocks
    assert BN(256, 196) == 128  # 14x14: 2 rounds of 256 take longer than 3 of 128
    assert BN(256, 20) == 64
    assert BN(256, 10000, steps=1) == 64  # 1x1 of 64 channels
    assert all(t.shared <= record.MAX_SHARED for t in (*wgmma.WGMMA_TILES, *wgmma.TF32_TILES))
    weight_tiles = *wgmma.WGMMA_WEIGHT_TILES, *wgmma.TF32_WEIGHT_TILES
    assert all(t.weight_shared <= record.MAX_SHARED for t in weight_tiles)


def test_a_layer_of_resnet_fills_hopper() -> None:
    g = conv_geometry((128, 256, 14, 14), (256, 256, 3, 3), 1, 1)
    x = np.zeros((128, 14, 14, 256), np.float16).transpose(0, 3, 1, 2)
    w = np.zeros((256, 3, 3, 256), np.float16).transpose(0, 3, 1, 2)
    with record.device() as recorder:
        tensor.tensor_conv2d(x, w, g)
        tensor.tensor_conv2d_grad_weight(x, x, g)
    pack, gather, weight, total = recorder.launches
    assert pack.args[1].nbytes == w.nbytes  # nothing but the weights: 36 steps of 64
    assert gather.grid == (196, 2, 1)
    assert gather.definitions["BN"] == "128"
    assert gather.args[0].ctypes.data == x.ctypes.data  # nothing was copied
    assert weight.grid[:2] == (18, 1)
    assert weight.grid[2] * 18 >= 2 * 132
    assert total.kernel == "sum_parts"
