"""Exercises 1 to 4: gradients, by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from check.verdict import Array, Hint, close, compare, exercise, given, slope, windows

# -- 1: autograd ----------------------------------------------------------------------------------


@exercise
def exercise_1a(tanh_backward: Any) -> str:
    """tanh_backward(gy, y) -> gx, where y = tanh(x)."""
    rng = np.random.default_rng(1)
    x, gy = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    y = np.tanh(x)
    result = given(tanh_backward(gy, y), "gx", x.shape)
    right = (np.tanh(x + 1e-6) - np.tanh(x - 1e-6)) / 2e-6 * gy
    compare(result, right, {
        "that is tanh's slope alone. Whatever reaches the output, gy, multiplies it.": right / gy,
        "nearly: the slope of tanh at x is 1 minus y to which power?": gy * (1 - y),
        "you used y where x was meant: y is already tanh(x).": gy * (1 - np.tanh(y) ** 2),
    }, "compare with finite differences: (tanh(x + h) - tanh(x - h)) / 2h, times gy.",
       1e-6)  # fmt: skip
    return "Written in y, not in x: so nothing but the output needs to be kept."


@exercise
def exercise_1b(cross_entropy_grad: Any) -> str:
    """cross_entropy_grad(logits (N, K), labels (N,)) -> gradient of the mean cross-entropy."""
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(5, 3)), rng.integers(3, size=5)

    def loss(values: Array) -> float:
        p = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
        return float(-np.log(p[np.arange(5), labels]).mean())

    result = given(cross_entropy_grad(logits, labels), "the gradient", logits.shape)
    right = slope(loss, logits)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    compare(result, right, {
        "the loss is the mean over N images: does each count for all of it?": 5 * right,
        "the sign: going downhill must raise the label's logit.": -right,
        "these are the probabilities; something happens at the label.": p / 5,
    }, "move one logit a little and watch the loss: which way does it go, and how fast?",
       1e-6)  # fmt: skip
    with np.errstate(all="ignore"):
        large = np.asarray(cross_entropy_grad(logits * 1000, labels))
    if not np.abs(large.sum(axis=1)).max() < 1e-6:
        raise Hint("right for small logits; for large ones the exponentials overflow. Shift them.")
    return "What you expected minus what there is: every row adds up to 0."


# -- 2: convolution -------------------------------------------------------------------------------


CONVOLUTIONS = [  # N, C, H, W, KH, KW, stride, padding
    (1, 1, 4, 4, 3, 3, 1, 0), (2, 3, 5, 6, 3, 3, 1, 1), (2, 2, 7, 5, 3, 2, 2, 1),
    (1, 4, 3, 3, 1, 1, 1, 0),
]  # fmt: skip


@exercise
def exercise_2a(im2col: Any) -> str:
    """im2col(x, KH, KW, stride, padding) -> (N * OH * OW, C * KH * KW)."""
    rng = np.random.default_rng(3)
    for N, C, H, W, KH, KW, stride, padding in CONVOLUTIONS:
        x = rng.normal(size=(N, C, H, W))
        before = x.copy()
        OH, OW, taps = windows(x, KH, KW, stride, padding)
        shape = N * OH * OW, C * KH * KW
        case = f"x {N}x{C}x{H}x{W}, kernel {KH}x{KW}, stride {stride}, padding {padding}: "
        try:
            result = given(im2col(x.copy(), KH, KW, stride, padding), "the result", shape)
        except Hint as hint:
            raise Hint(f"{case}{hint}") from None
        right = taps.transpose(0, 2, 3, 1, 4, 5).reshape(shape)
        compare(result, right, {
            case + "the right numbers in the wrong columns: channels first, then KH, then KW, as "
            "weight.reshape(O, -1) has them.": taps.transpose(0, 2, 3, 4, 5, 1).reshape(shape),
            case + "the right numbers in the wrong rows: they go through n, then i, then j.":
                taps.transpose(2, 3, 0, 1, 4, 5).reshape(shape),
        }, case + "some numbers are wrong. Row (n, i, j), column (c, u, v) is "
           "x[n, c, i * stride - padding + u, j * stride - padding + v], or 0 outside."
        )  # fmt: skip
        if not np.array_equal(x, before):
            raise Hint("x was changed; work on a copy.")
    return "From here on a convolution is a matrix product."


@exercise
def exercise_2b(conv2d_grad_weight: Any) -> str:
    """conv2d_grad_weight(x, gy, KH, KW, stride, padding) -> (O, C, KH, KW)."""
    rng = np.random.default_rng(4)
    for N, C, H, W, KH, KW, stride, padding in CONVOLUTIONS:
        x = rng.normal(size=(N, C, H, W))
        OH, OW, taps = windows(x, KH, KW, stride, padding)
        gy = rng.normal(size=(N, 3, OH, OW))
        result = conv2d_grad_weight(x, gy, KH, KW, stride, padding)
        result = given(result, "gweight", (3, C, KH, KW))
        right = np.einsum("noij,ncijuv->ocuv", gy, taps)
        compare(result, right, {
            "that is the mean over the batch; the weight is used by all N images, and its gradient "
            "is the sum.": right / N if N > 1 else None,
            "the kernel came out upside down: no flip is needed here.": right[:, :, ::-1, ::-1],
        }, "weight[o, c, u, v] multiplies one pixel for each (n, i, j). Which pixel, and what "
           "reaches it?")  # fmt: skip
    return "The columns that the forward pass made serve once more."


# -- 3: batch norm --------------------------------------------------------------------------------


def normalised(x: Array, eps: float) -> tuple[Array, Array]:
    """(xhat, inv_std), over all axes but the channels."""
    mean = x.mean(axis=(0, 2, 3), keepdims=True)
    inv_std = 1 / np.sqrt(((x - mean) ** 2).mean(axis=(0, 2, 3), keepdims=True) + eps)
    return (x - mean) * inv_std, inv_std


@exercise
def exercise_3a(batch_norm_backward: Any) -> str:
    """batch_norm_backward(gy, x, gamma, eps) -> (gx, ggamma, gbeta)."""
    rng = np.random.default_rng(5)
    x, gy = rng.normal(1, 2, size=(3, 2, 2, 3)), rng.normal(size=(3, 2, 2, 3))
    gamma, eps = np.array([0.7, -1.3]), 0.01
    g = gamma.reshape(1, 2, 1, 1)
    result = batch_norm_backward(gy, x, gamma, eps)
    if result is None:
        raise NotImplementedError
    if not isinstance(result, tuple) or len(result) != 3:
        raise Hint("return the three gradients, (gx, ggamma, gbeta).")
    gx, ggamma, gbeta = (given(r, n, s) for r, n, s in zip(
        result, ("gx", "ggamma", "gbeta"), (x.shape, (2,), (2,)), strict=True))  # fmt: skip
    xhat, inv_std = normalised(x, eps)
    compare(gbeta, gy.sum(axis=(0, 2, 3)), {
        "gbeta: beta is added to every pixel of every image, so its gradient is the sum.":
            gy.mean(axis=(0, 2, 3)),
    }, "gbeta: beta is added to all of channel c; what reaches it is the sum.")  # fmt: skip
    compare(ggamma, (gy * xhat).sum(axis=(0, 2, 3)), {
        "ggamma: gamma multiplies xhat, the normalised x, not x.": (gy * x).sum(axis=(0, 2, 3)),
    }, "ggamma: y = gamma * xhat + beta. What does gamma multiply?")  # fmt: skip

    def mean(v: Array) -> Array:
        return v.mean(axis=(0, 2, 3), keepdims=True)

    right = slope(lambda v: float((gy * g * normalised(v, eps)[0]).sum()), x)
    part = xhat * mean(gy * xhat)
    compare(gx, right, {
        "gx treats mean and variance as constants. They move when x moves: two terms are missing.":
            g * inv_std * gy,
        "gx misses the term of the mean: moving all of a channel changes nothing, so gx adds up "
        "to 0.": g * inv_std * (gy - part),
        "gx misses the term of the variance: stretching a channel changes (nearly) nothing.":
            g * inv_std * (gy - mean(gy)),
        "gx forgets gamma.": inv_std * (gy - mean(gy) - part),
        "gx: the means became sums. Divide by the number of values in a channel.":
            g * inv_std * (gy - 18 * mean(gy) - 18 * part),
    }, "gx is wrong. Check the sum over each channel of gx (it is 0) and of gx * xhat (nearly "
       "0): which of the two fails?", 1e-5)  # fmt: skip
    return "Three terms: what passes, minus its mean, minus its part along xhat."


@exercise
def exercise_3b(upstream: Any) -> str:
    """upstream(x) -> gy of x's shape, not constant, whose gradient at x is zero."""
    rng = np.random.default_rng(6)
    x = rng.normal(1, 2, size=(4, 2, 3, 3))
    gy = given(upstream(x), "gy", x.shape)
    if np.abs(gy).max() < 1e-6:
        raise Hint("a gradient of zero gives zero everywhere; that proves nothing.")
    if (gy.std(axis=(0, 2, 3)) < 1e-9 * np.abs(gy).max()).any():
        raise Hint("constant in a channel: that is the one we know already. There is another.")
    xhat, inv_std = normalised(x, 0.0)
    centred = gy - gy.mean(axis=(0, 2, 3), keepdims=True)
    gx = inv_std * (centred - xhat * (gy * xhat).mean(axis=(0, 2, 3), keepdims=True))
    if np.abs(gx).max() > 1e-6 * np.abs(gy).max():
        raise Hint("that gradient does get through. Which two directions does batch norm remove?")
    return "Both directions that batch norm takes out of x are taken out of gradients, too."


# -- 4: the shortcut ------------------------------------------------------------------------------


@exercise
def exercise_4a(split: Any) -> str:
    """split(gy, y, A) -> (by_shortcut, by_branch), for y = relu(A x + x)."""
    rng = np.random.default_rng(7)
    A, x, gy = rng.normal(size=(4, 4)), rng.normal(size=4), rng.normal(size=4)
    y = np.maximum(A @ x + x, 0)
    result = split(gy, y, A)
    if result is None:
        raise NotImplementedError
    if not isinstance(result, tuple) or len(result) != 2:
        raise Hint("return the two parts, (by_shortcut, by_branch).")
    shortcut, branch = (given(r, n, (4,)) for r, n in zip(result, ("by_shortcut", "by_branch"),
                                                          strict=True))  # fmt: skip
    masked = gy * (y > 0)
    compare(shortcut, masked, {
        "by_shortcut: the gradient passes the join's relu first, where it is cut off at y = 0.": gy,
        "by_shortcut: nothing decides between the ways. Each gets all of it, not half.": masked / 2,
    }, "by_shortcut: past the relu, the shortcut changes nothing.")  # fmt: skip
    compare(branch, A.T @ masked, {
        "by_branch: backwards a matrix is transposed.": A @ masked,
        "by_branch: the relu after the join comes before both ways.": A.T @ gy,
        "by_branch: the shortcut's part is in there; keep the two apart.": A.T @ masked + masked,
    }, "by_branch: what is the derivative of A x?")  # fmt: skip
    return "The two add up to the gradient at x, always."


@exercise
def exercise_4b(by_length: Any) -> str:
    """by_length(blocks, g) -> [g_0, ..., g_n]; blocks: adjoints (shortcut, branch), in order."""
    rng = np.random.default_rng(8)
    n = 5
    matrices = [(rng.normal(size=(3, 3)), rng.normal(size=(3, 3))) for _ in range(n)]
    blocks = [(lambda g, S=S: S.T @ g, lambda g, F=F: F.T @ g) for S, F in matrices]
    g = rng.normal(size=3)
    result = by_length(blocks, g.copy())
    if result is None:
        raise NotImplementedError
    if not isinstance(result, list | tuple) or len(result) != n + 1:
        raise Hint(f"{n} blocks have paths of lengths 0 to {n}: return {n + 1} gradients.")
    found = np.stack([given(v, f"g_{k}", (3,)) for k, v in enumerate(result)])
    right = np.zeros((n + 1, 3))
    for choice in itertools.product((0, 1), repeat=n):
        path = g
        for way, pair in zip(reversed(choice), reversed(matrices), strict=True):
            path = pair[way].T @ path
        right[sum(choice)] += path
    if not close(found, right):
        if close(found[::-1], right):
            raise Hint("the order: g_0 is the path that takes every shortcut.")
        forward = np.zeros((n + 1, 3))
        for choice in itertools.product((0, 1), repeat=n):
            path = g
            for way, pair in zip(choice, matrices, strict=True):
                path = pair[way].T @ path
            forward[sum(choice)] += path
        if close(found, forward):
            raise Hint("backwards means from the last block to the first.")
        if close(found.sum(axis=0), right.sum(axis=0)):
            raise Hint("the sum is right, so no path is lost; but some are under a wrong length.")
        raise Hint("at each block, g_k goes on by the shortcut, and what was g_(k-1) joins it by "
                   "the branch.")  # fmt: skip
    calls = [0]

    def counting(g: Array) -> Array:
        calls[0] += 1
        return g

    by_length([(counting, counting)] * 12, g.copy())
    if calls[0] > 13 * 13 * 2:
        raise Hint(f"right, but with {calls[0]} steps for 12 blocks it follows every path alone. "
                   "Carry all paths of one length together.")  # fmt: skip
    return "2^n paths, in about n^2 steps: that is what mr.anatomy.paths does."
