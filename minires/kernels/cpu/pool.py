"""Max pooling: every array once through memory, channels by the vector.

    y[i, j] = max_{u, v} x[i*sh - ph + u*dh, j*sw - pw + v*dw]        places[i, j] = u*KW + v
    gx[h, w] = sum over the windows (i, j) whose place is (h, w)  gy[i, j]

Forward, the largest values so far and their places stay in registers while a window is walked; a
place is kept as a floating-point number, which is exact, so that one comparison serves both.

Backward, a worker makes one row of gx after the other, out of the few rows of gy whose windows
touch it, while it is in cache. Every position of a window is compared with the place: no channel
writes to an address of its own, and no rows are shared by workers. The order of the sums is the
reference's: down the window, and along it, which is from the last output to the first.

Behind a batch norm and a ReLU, z = relu((x - mean) * scale + shift), neither z nor its gradient is
written (`fusing.py`). Forward, z is computed window by window: all are compared with 0, which is
what a ReLU leaves of the others, so that the first one stands for them. Backward, g is collected
pixel by pixel, from the windows around each, where the norm's input gradient needs it:

    gx = factors[0] * g - factors[1] * (x - mean) - factors[2]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from minires.kernels import memory
from minires.kernels.cpu.copying import clear_run, put
from minires.kernels.cpu.simd import (
    element_pointer,
    fill,
    fmuladd,
    lanes,
    load,
    prefetch,
    store,
    streams,
)
from minires.kernels.cpu.team import parallel
from minires.kernels.fusing import Before, Pooled
from minires.kernels.geometry import PoolGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.threads import num_threads


def _integers(vector: Any, bits: int) -> Any:
    return ir.VectorType(ir.IntType(bits), vector.count)


@intrinsic
def _if_larger(typingctx: Any, value: Any, best: Any, a: Any, b: Any) -> Any:
    """a in the lanes where value > best, or where only value is NaN; elsewhere b."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, best, a, b = args
        larger = builder.fcmp_unordered(">", value, best)  # or either is NaN
        number = builder.fcmp_ordered("ord", best, best)
        return builder.select(builder.and_(larger, number), a, b)

    return value(value, value, value, value), codegen


@intrinsic
def _where_equal(typingctx: Any, places: Any, index: Any, place: Any, v: Any) -> Any:
    """v in the lanes where the integers places[index], places[index + 1], ... are `place`, else 0.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        places, index, place, v = args
        bits = sig.args[0].dtype.bitwidth
        integers = _integers(v.type, bits)
        pointer = element_pointer(context, builder, sig.args[0], places, index)
        found = builder.load(builder.bitcast(pointer, integers.as_pointer()))
        found.align = bits // 8
        undefined = ir.Constant(integers, ir.Undefined)
        place = builder.trunc(place, ir.IntType(bits))
        first = builder.insert_element(undefined, place, ir.IntType(32)(0))
        wanted = builder.shuffle_vector(
            first, undefined, ir.Constant(_integers(v.type, 32), None)
        )
        zero = ir.Constant(v.type, None)
        return builder.select(builder.icmp_signed("==", found, wanted), v, zero)

    return v(places, types.intp, types.intp, v), codegen


@intrinsic
def _store_integers(typingctx: Any, places: Any, index: Any, v: Any) -> Any:
    """Write a vector of whole numbers to places[index], places[index + 1], ... (int8, int32)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        places, index, v = args
        bits = sig.args[0].dtype.bitwidth
        integers = _integers(v.type, bits)
        pointer = element_pointer(context, builder, sig.args[0], places, index)
        pointer = builder.bitcast(pointer, integers.as_pointer())
        builder.store(builder.fptosi(v, integers), pointer).align = bits // 8
        return context.get_dummy_value()

    return types.void(places, types.intp, v), codegen


@njit(cache=True)
def _inside(start, step, count, size):
    """From which k on, and up to which, start + k * step lies within 0, ..., size - 1."""
    if step == 1:  # without the divisions, which would cost as much as a vector's window
        return max(-start, 0), min(count, size - start)
    first = (-start + step - 1) // step if start < 0 else 0
    return first, min(count, (size - start + step - 1) // step)


@njit(cache=True)
def _largest(x, at, row, step, u0, u1, v0, v1, KW, y, places, to):
    """One channel of one window: the largest value and its place, the first of equal ones."""
    best, place = x.dtype.type(-np.inf), u0 * KW + v0
    for u in range(u0, u1):
        for v in range(v0, v1):
            value = x[at + u * row + v * step]
            if value > best or (value != value and best == best):
                best, place = value, u * KW + v
    y[to], places[to] = best, place


@parallel
def _max_pool(worker, x, sizes, y, places, workers, L):
    N, C, H, W, KH, KW, sh, sw, ph, pw, dh, dw, OH, OW = sizes
    row, step, whole = dh * W * C, dw * C, C - C % L
    for line in range(worker * N * OH // workers, (worker + 1) * N * OH // workers):
        n, top = line // OH, line % OH * sh - ph
        u0, u1 = _inside(top, dh, KH, H)
        for j in range(OW):
            left, to = j * sw - pw, (line * OW + j) * C
            v0, v1 = _inside(left, dw, KW, W)
            at = ((n * H + top) * W + left) * C
            for c in range(0, whole, L):
                best, place = fill(x, -np.inf), fill(x, u0 * KW + v0)
                for u in range(u0, u1):
                    for v in range(v0, v1):
                        value = load(x, at + c + u * row + v * step)
                        place = _if_larger(value, best, fill(x, u * KW + v), place)
                        best = _if_larger(value, best, value, best)
                store(y, to + c, best)
                _store_integers(places, to + c, place)
            for c in range(whole, C):
                _largest(x, at + c, row, step, u0, u1, v0, v1, KW, y, places, to + c)


@parallel
def _max_pool_grad(worker, gy, places, sizes, gx, workers, L):
    N, C, H, W, KH, KW, sh, sw, ph, pw, dh, dw, OH, OW = sizes
    step, whole = dw * C, C - C % L
    for line in range(worker * N * H // workers, (worker + 1) * N * H // workers):
        n, h = line // H, line % H
        clear_run(gx, line * W * C, W * C, L)
        for u in range(KH):
            top = h + ph - u * dh
            i = top // sh
            if top % sh != 0 or not 0 <= i < OH:
                continue
            for j in range(OW - 1, -1, -1):
                left, at = j * sw - pw, ((n * OH + i) * OW + j) * C
                v0, v1 = _inside(left, dw, KW, W)
                for c in range(0, whole, L):
                    prefetch(gy, at + OW * C + c)  # the row below
                    prefetch(places, at + OW * C + c)
                for c in range(0, whole, L):
                    g, to = load(gy, at + c), (line * W + left) * C + c
                    for v in range(v0, v1):
                        chosen = _where_equal(places, at + c, u * KW + v, g)
                        store(gx, to + v * step, load(gx, to + v * step) + chosen)
                for c in range(whole, C):
                    v = places[at + c] - u * KW
                    if v0 <= v < v1:
                        gx[(line * W + left) * C + c + v * step] += gy[at + c]


@parallel
def _max_pool_normalised(worker, x, sizes, mean, scale, shift, largest, places, workers, L):
    """x where (x - mean) * scale + shift is the largest above 0, or the first, and its place."""
    N, C, H, W, KH, KW, sh, sw, ph, pw, dh, dw, OH, OW = sizes
    row, step = dh * W * C, dw * C
    for line in range(worker * N * OH // workers, (worker + 1) * N * OH // workers):
        n, top = line // OH, line % OH * sh - ph
        u0, u1 = _inside(top, dh, KH, H)
        for j in range(OW):
            left, to = j * sw - pw, (line * OW + j) * C
            v0, v1 = _inside(left, dw, KW, W)
            at = ((n * H + top) * W + left) * C
            for c in range(0, C, L):
                m, s, o = load(mean, c), load(scale, c), load(shift, c)
                best, place = fill(x, 0.0), fill(x, u0 * KW + v0)
                chosen = load(x, at + c + u0 * row + v0 * step)
                for u in range(u0, u1):
                    for v in range(v0, v1):
                        this = load(x, at + c + u * row + v * step)
                        value = fmuladd(this - m, s, o)
                        place = _if_larger(value, best, fill(x, u * KW + v), place)
                        chosen = _if_larger(value, best, this, chosen)
                        best = _if_larger(value, best, value, best)
                store(largest, to + c, chosen)
                _store_integers(places, to + c, place)


@njit(cache=True)
def _windows_over(at, pad, K, step, stride, count, windows, places):
    """The windows of one dimension that touch `at`, and where in each it lies; how many."""
    found = 0
    for k in range(K):
        start = at + pad - k * step
        if start % stride == 0 and 0 <= start // stride < count:
            windows[found], places[found] = start // stride, k
            found += 1
    return found


@parallel
def _normalised_gradient(
    worker, gy, places, sizes, x, mean, gy_scale, along, offset, gx, past, workers, L
):  # fmt: skip
    """gx = gy_scale * g - along * (x - mean) - offset, g the gradient that pooling hands back."""
    N, C, H, W, KH, KW, sh, sw, ph, pw, dh, dw, OH, OW = sizes
    rows, row_places = np.empty(KH, np.int64), np.empty(KH, np.int64)
    columns, column_places = np.empty((W, KW), np.int64), np.empty((W, KW), np.int64)
    counts = np.empty(W, np.int64)
    for w in range(W):
        counts[w] = _windows_over(w, pw, KW, dw, sw, OW, columns[w], column_places[w])
    starts, wanted = np.empty(KH * KW, np.int64), np.empty(KH * KW, np.int64)
    for line in range(worker * N * H // workers, (worker + 1) * N * H // workers):
        n, h = line // H, line % H
        height = _windows_over(h, ph, KH, dh, sh, OH, rows, row_places)
        for w in range(W):
            count = 0
            for a in range(height):
                for b in range(counts[w]):
                    starts[count] = ((n * OH + rows[a]) * OW + columns[w, b]) * C
                    wanted[count] = row_places[a] * KW + column_places[w, b]
                    count += 1
            at = (line * W + w) * C
            for c in range(0, C, L):
                g = fill(x, 0.0)
                for k in range(count):
                    p = starts[k] + c
                    g = g + _where_equal(places, p, wanted[k], load(gy, p))
                d = load(x, at + c) - load(mean, c)
                g = g * load(gy_scale, c) - load(offset, c)
                put(gx, at + c, g - d * load(along, c), past)


def _sizes(g: PoolGeometry) -> tuple[int, ...]:
    return (*g.x_shape, *g.kernel, *g.stride, *g.padding, *g.dilation, *g.out)


def max_pool2d(x: Any, g: PoolGeometry) -> tuple[Any, Any]:
    """The largest value of each window and its place in it (u * KW + v)."""
    x = to_nhwc(x)
    y = memory.empty((g.N, *g.out, g.C), x.dtype)
    places = memory.empty(y.shape, np.int32)
    _max_pool(
        x.reshape(-1), _sizes(g), y.reshape(-1), places.reshape(-1), num_threads(), lanes(x.dtype)
    )
    return to_nchw(y), to_nchw(places)


def max_pool2d_grad(gy: Any, indices: Any, g: PoolGeometry) -> Any:
    """Each output's gradient to the input that was the maximum."""
    gy, places = to_nhwc(gy), to_nhwc(indices)
    gx = memory.empty((g.N, g.H, g.W, g.C), gy.dtype)
    _max_pool_grad(
        gy.reshape(-1), places.reshape(-1), _sizes(g), gx.reshape(-1), num_threads(),
        lanes(gy.dtype),
    )  # fmt: skip
    return to_nchw(gx)


def max_pool2d_fused(x: Any, g: PoolGeometry, before: Before) -> tuple[Any, Any]:
    """x where what is `before` makes it largest, and its place in the window."""
    x = to_nhwc(x)
    largest = memory.empty((g.N, *g.out, g.C), x.dtype)
    places = memory.empty(largest.shape, np.int8)
    _max_pool_normalised(
        x.reshape(-1), _sizes(g), *before, largest.reshape(-1), places.reshape(-1), num_threads(),
        lanes(x.dtype),
    )  # fmt: skip
    return to_nchw(largest), to_nchw(places)


def normalised_gradient(pooled: Pooled, x: Any, mean: Any, factors: Any) -> Any:
    """The gradient by x (N, C, H, W) of the batch norm and ReLU in front of max pooling."""
    gradient, indices, g = pooled
    x = to_nhwc(x)
    gx = memory.empty(x.shape, x.dtype)
    _normalised_gradient(
        to_nhwc(gradient).reshape(-1), to_nhwc(indices).reshape(-1), _sizes(g), x.reshape(-1),
        mean, *factors, gx.reshape(-1), streams(gx), num_threads(), lanes(x.dtype),
    )  # fmt: skip
    return to_nchw(gx)
