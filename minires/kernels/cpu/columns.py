"""Convolution of any geometry: im2col a few pixels at a time, in cache.

The matrix of columns (see kernels/reference/conv.py for the mathematics) is KH*KW times the size
of the input: written to memory and read back, it costs more than the product it serves. Here a
worker makes the columns of `PIXELS` output pixels, multiplies them while they are in its cache, and
makes the next ones in the same place:

    forward          columns = im2col(x);      y   = columns @ W       rows of y
    input gradient   columns = gy @ W^T;       gx += col2im(columns)   whole images per worker
    weight gradient  columns = im2col(x);      dW += columns^T @ gy    a private sum per worker

A 1x1 convolution of stride 1 needs no columns: x and gy are the matrices already.
"""

from __future__ import annotations

from typing import Any

from numba import njit, prange

from minires.kernels import memory
from minires.kernels.cpu.product import panel_width, product
from minires.kernels.cpu.simd import fill, lanes, load, store
from minires.kernels.cpu.weights import packed, packed_transposed, unpacked_sum
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.threads import num_threads

PIXELS = 48  # output pixels whose columns are made at a time: eight register tiles of six rows


@njit(cache=True)
def _copy(x, at, out, to, count, L):
    """A run of numbers: whole vectors, then what is left."""
    whole = count - count % L
    for i in range(0, whole, L):
        store(out, to + i, load(x, at + i))
    for i in range(whole, count):
        out[to + i] = x[at + i]


@njit(cache=True)
def _clear(out, to, count, L):
    """A run of zeros."""
    whole = count - count % L
    for i in range(0, whole, L):
        store(out, to + i, fill(out, 0.0))
    for i in range(whole, count):
        out[to + i] = 0


@njit(cache=True)
def _add(x, at, out, to, count, L):
    """out += x over a run of numbers."""
    whole = count - count % L
    for i in range(0, whole, L):
        store(out, to + i, load(out, to + i) + load(x, at + i))
    for i in range(whole, count):
        out[to + i] += x[at + i]


@njit(cache=True)
def _im2col(x, image, first, count, sizes, columns, row, L):
    """Columns of output pixels first, ... of one image: columns[t*row + (u*KW + v)*C + c]."""
    H, W, C, KH, KW, sh, sw, ph, pw, dh, dw, OW = sizes
    for t in range(count):
        top, left = (first + t) // OW * sh - ph, (first + t) % OW * sw - pw
        for u in range(KH):
            h, to = top + u * dh, t * row + u * KW * C
            at = ((image * H + h) * W + left) * C
            if not 0 <= h < H:
                _clear(columns, to, KW * C, L)
            elif dw == 1 and left >= 0 and left + KW <= W:
                _copy(x, at, columns, to, KW * C, L)
            else:
                for v in range(KW):
                    if 0 <= left + v * dw < W:
                        _copy(x, at + v * dw * C, columns, to + v * C, C, L)
                    else:
                        _clear(columns, to + v * C, C, L)


@njit(cache=True)
def _col2im(columns, row, image, first, count, sizes, gx, L):
    """The adjoint: adds columns of output pixels first, ... into one image of gx."""
    H, W, C, KH, KW, sh, sw, ph, pw, dh, dw, OW = sizes
    for t in range(count):
        top, left = (first + t) // OW * sh - ph, (first + t) % OW * sw - pw
        for u in range(KH):
            h, at = top + u * dh, t * row + u * KW * C
            to = ((image * H + h) * W + left) * C
            if not 0 <= h < H:
                continue
            if dw == 1 and left >= 0 and left + KW <= W:
                _add(columns, at, gx, to, KW * C, L)
                continue
            for v in range(KW):
                if 0 <= left + v * dw < W:
                    _add(columns, at + v * C, gx, to + v * dw * C, C, L)


@njit(cache=True, parallel=True)
def _forward(x, weight, y, N, P, O, sizes, panel, wide, plain, workers, work, L):
    """y[n, p, o] for P pixels per image; work is divided by blocks of pixels."""
    C, KH, KW = sizes[2], sizes[3], sizes[4]
    K = KH * KW * C
    blocks = (P + PIXELS - 1) // PIXELS
    for worker in prange(workers):
        columns = work[worker]
        for block in range(worker * N * blocks // workers, (worker + 1) * N * blocks // workers):
            n, first = block // blocks, block % blocks * PIXELS
            count = min(PIXELS, P - first)
            to = (n * P + first) * O
            if plain:
                at = (n * P + first) * C
                product(
                    x, at, C, 1, count,
                    weight, 0, panel, K * panel, panel, wide, O,
                    y, to, O, K, False,
                )  # fmt: skip
            else:
                _im2col(x, n, first, count, sizes, columns, K, L)
                product(
                    columns, 0, K, 1, count,
                    weight, 0, panel, K * panel, panel, wide, O,
                    y, to, O, K, False,
                )  # fmt: skip


@njit(cache=True, parallel=True)
def _grad_input(gy, weight, gx, N, P, O, sizes, row, panel, wide, plain, workers, work, L):
    """gx, image by image; `row` is KH*KW*C rounded up to whole panels."""
    H, W, C = sizes[0], sizes[1], sizes[2]
    blocks = (P + PIXELS - 1) // PIXELS
    for worker in prange(workers):
        columns = work[worker]
        for n in range(worker * N // workers, (worker + 1) * N // workers):
            if not plain:
                gx[n * H * W * C : (n + 1) * H * W * C] = 0
            for block in range(blocks):
                first = block * PIXELS
                count = min(PIXELS, P - first)
                at = (n * P + first) * O
                if plain:
                    to = (n * P + first) * C
                    product(
                        gy, at, O, 1, count,
                        weight, 0, panel, O * panel, panel, wide, C,
                        gx, to, C, O, False,
                    )  # fmt: skip
                else:
                    product(
                        gy, at, O, 1, count,
                        weight, 0, panel, O * panel, panel, wide, row,
                        columns, 0, row, O, False,
                    )  # fmt: skip
                    _col2im(columns, row, n, first, count, sizes, gx, L)


@njit(cache=True, parallel=True)
def _grad_weight(x, gy, sums, N, P, O, sizes, panel, wide, plain, workers, work, L):
    """sums[worker, k, o] over the worker's own pixels."""
    C, KH, KW = sizes[2], sizes[3], sizes[4]
    K = KH * KW * C
    blocks = (P + PIXELS - 1) // PIXELS
    for worker in prange(workers):
        columns, mine = work[worker], sums[worker]
        mine[:] = 0
        for block in range(worker * N * blocks // workers, (worker + 1) * N * blocks // workers):
            n, first = block // blocks, block % blocks * PIXELS
            count = min(PIXELS, P - first)
            at = (n * P + first) * O
            if plain:
                product(
                    x, (n * P + first) * C, 1, C, K,
                    gy, at, O, panel, panel, wide, O,
                    mine, 0, O, count, True,
                )  # fmt: skip
            else:
                _im2col(x, n, first, count, sizes, columns, K, L)
                product(
                    columns, 0, 1, K, K,
                    gy, at, O, panel, panel, wide, O,
                    mine, 0, O, count, True,
                )  # fmt: skip


def _sizes(g: ConvGeometry) -> tuple[int, ...]:
    return (g.H, g.W, g.C, *g.kernel, *g.stride, *g.padding, *g.dilation, g.out[1])


def _plain(g: ConvGeometry) -> bool:
    return g.pointwise and g.stride == (1, 1)


def _pixels(g: ConvGeometry) -> tuple[int, int]:
    """(images, pixels per image); a plain product sees one image of all pixels."""
    P = g.out[0] * g.out[1]
    return (1, g.N * P) if _plain(g) else (g.N, P)


def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """Columns of a few pixels at a time, multiplied in cache."""
    x, L = to_nhwc(x), lanes(x.dtype)
    panel, workers = panel_width(g.O, L), num_threads()
    y = memory.empty((g.N, *g.out, g.O), x.dtype)
    work = memory.empty((workers, PIXELS * g.kernel[0] * g.kernel[1] * g.C), x.dtype)
    _forward(
        x.reshape(-1), packed(weight, panel), y.reshape(-1), *_pixels(g), g.O, _sizes(g),
        panel, panel > L, _plain(g), workers, work, L,
    )  # fmt: skip
    return to_nchw(y)


def conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """Gradient columns of a few pixels at a time, added back where they came from."""
    gy, L = to_nhwc(gy), lanes(gy.dtype)
    K = g.kernel[0] * g.kernel[1] * g.C
    panel, workers = panel_width(K, L), num_threads()
    row = -(-K // panel) * panel
    gx = memory.empty((g.N, g.H, g.W, g.C), gy.dtype)
    work = memory.empty((workers, PIXELS * row), gy.dtype)
    _grad_input(
        gy.reshape(-1), packed_transposed(weight, panel), gx.reshape(-1),
        g.N, g.out[0] * g.out[1], g.O, _sizes(g), row,
        panel, panel > L, _plain(g), workers, work, L,
    )  # fmt: skip
    return to_nchw(gx)


def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """Columns of a few pixels at a time, multiplied with the upstream gradient in cache."""
    x, gy, L = to_nhwc(x), to_nhwc(gy), lanes(x.dtype)
    panel, workers = panel_width(g.O, L), num_threads()
    KH, KW = g.kernel
    K = KH * KW * g.C
    sums = memory.empty((workers, K * g.O), x.dtype)
    work = memory.empty((workers, PIXELS * K), x.dtype)
    _grad_weight(
        x.reshape(-1), gy.reshape(-1), sums, *_pixels(g), g.O, _sizes(g),
        panel, panel > L, _plain(g), workers, work, L,
    )  # fmt: skip
    return unpacked_sum(sums, g.weight_shape)
