"""Exercises 5 to 8: nets, kernels and time."""

from __future__ import annotations

from typing import Any

import numpy as np

import minires as mr
from check.verdict import Hint, compare, exercise, given, windows

# -- 5: degradation -------------------------------------------------------------------------------


@exercise
def exercise_5a(identity_kernel: Any) -> str:
    """identity_kernel(C) -> weight (C, C, 3, 3) for which conv2d(x, weight, padding=1) is x."""
    rng = np.random.default_rng(9)
    for C in (1, 3, 8):
        weight = given(identity_kernel(C), "the weight", (C, C, 3, 3))
        x = rng.normal(size=(2, C, 5, 4))
        _, _, taps = windows(x, 3, 3, 1, 1)
        y = np.einsum("ncijuv,ocuv->noij", taps, weight)
        mixed = np.einsum("nchw,oc->nohw", x, np.ones((C, C)))
        shifted = np.zeros_like(x)
        shifted[:, :, 1:, 1:] = x[:, :, :-1, :-1]
        compare(y, x, {
            "every output channel sums all the input channels: only channel c may feed channel c.":
                mixed if C > 1 else None,
            "the image is shifted by a pixel: which tap looks at the pixel itself?": shifted,
        }, f"with C = {C} the output is not the input. C numbers are enough.")  # fmt: skip
    return "9 C² numbers, C of them 1: this is what a plain layer has to learn to do nothing."


@exercise
def exercise_5b(diagnose: Any) -> str:
    """diagnose(shallow_train, deep_train, shallow_test, deep_test) -> a word; errors in percent."""
    cases = [
        ((5.0, 9.0, 9.0, 13.0), "degradation"), ((5.0, 0.1, 9.0, 11.0), "overfitting"),
        ((5.0, 1.0, 9.0, 7.0), "better"), ((0.5, 30.0, 8.0, 34.0), "degradation"),
        ((2.0, 2.0, 8.0, 9.5), "overfitting"), ((9.0, 8.0, 9.5, 8.5), "better"),
    ]  # fmt: skip
    for errors, right in cases:
        answer = diagnose(*errors)
        if answer is None:
            raise NotImplementedError
        if answer not in ("degradation", "overfitting", "better"):
            raise Hint(f"the answers are 'degradation', 'overfitting', 'better'; got {answer!r}.")
        if answer != right:
            raise Hint(
                "training errors {:g} % and {:g} % (shallow, deep), test errors {:g} % and {:g} %: "
                "is that {}? Look at the training error first: can the deeper net not fit, or does "
                "it fit too well?".format(*errors, answer)
            )
    return "It is the training error that tells them apart."


# -- 6: a kernel of your own ----------------------------------------------------------------------


def _kernel(operation: str, function: Any) -> str:
    """What `check_kernel` says about a function registered for the moment. Raises its findings."""
    if not callable(function):
        raise Hint(f"expected a function, got {type(function).__name__}.")
    table = mr.kernels.operation(operation)
    kernels = table.kernels
    mr.kernels.register(operation, name="exercise", worth=lambda g: False)(function)
    try:
        g = mr.kernels.conv_geometry((1, 1, 3, 3), (1, 1, 1, 1))
        first = np.ones((1, 1, 3, 3), np.float32)
        second = np.ones((1, 1, 1, 1), np.float32)
        if function(first, second, g) is None:
            raise NotImplementedError
        report = mr.testing.check_kernel(operation, "exercise", raise_exception=False)
    finally:
        table.kernels = kernels
        table.forget()
    if not report:
        raise Hint(f"the reference disagrees.\n{report}")
    return str(report)


@exercise
def exercise_6a(conv2d: Any) -> str:
    """conv2d(x, weight, g) -> y, for any geometry without groups and dilation, or all of them."""
    return _kernel("conv2d", conv2d)


@exercise
def exercise_6b(conv2d_grad_input: Any) -> str:
    """conv2d_grad_input(gy, weight, g) -> gx."""
    return _kernel("conv2d_grad_input", conv2d_grad_input)


# -- 7: the GPU -----------------------------------------------------------------------------------


@exercise
def exercise_7a(place: Any) -> str:
    """place(t, N, O, OH, OW) -> (n, o, i, j): the output of thread t, j running fastest."""
    for N, O, OH, OW in ((1, 1, 2, 3), (2, 3, 4, 5), (3, 2, 1, 7)):
        for t, right in enumerate(np.ndindex(N, O, OH, OW)):
            found = place(t, N, O, OH, OW)
            if found is None:
                raise NotImplementedError
            if tuple(int(v) for v in found) != right:
                raise Hint(
                    f"thread {t} of {N}x{O}x{OH}x{OW} outputs should compute {right}, got "
                    f"{tuple(found)}. Neighbouring threads compute neighbouring j."
                )
    return "Neighbouring threads then read and write neighbouring memory."


@exercise
def exercise_7b(tile_bytes: Any) -> str:
    """tile_bytes(C, TH, TW, KH, KW, stride) -> bytes of float32 input under TH x TW outputs."""
    for C, TH, TW, KH, KW, stride in ((1, 8, 8, 3, 3, 1), (16, 4, 8, 3, 3, 2), (3, 16, 1, 7, 5, 2)):
        found = tile_bytes(C, TH, TW, KH, KW, stride)
        if found is None:
            raise NotImplementedError
        rows = {i * stride + u for i in range(TH) for u in range(KH)}
        columns = {j * stride + v for j in range(TW) for v in range(KW)}
        right = 4 * C * (max(rows) + 1) * (max(columns) + 1)
        if found != right:
            no_halo = 4 * C * TH * TW * stride * stride
            why = (
                "the windows at the border reach beyond the tile: count the halo."
                if found == no_halo
                else "a float32 has 4 bytes." if found * 4 == right
                else "where does the window of the last output end?"
            )
            raise Hint(f"{TH}x{TW} outputs, kernel {KH}x{KW}, stride {stride}, {C} channels: {why}")
    return "A block has some 48 to 228 KiB of shared memory: this decides how large a tile may be."


# -- 8: where the time goes -----------------------------------------------------------------------


@exercise
def exercise_8a(cost: Any) -> str:
    """cost(N, C, H, W, O, KH, KW) -> (multiply_adds, bytes), padded to keep the size, float32."""
    for case in ((1, 1, 4, 4, 1, 3, 3), (8, 16, 32, 32, 16, 3, 3), (2, 64, 7, 7, 256, 1, 1)):
        N, C, H, W, O, KH, KW = case
        g = mr.kernels.conv_geometry((N, C, H, W), (O, C, KH, KW), 1, (KH // 2, KW // 2))
        found = cost(*case)
        if found is None:
            raise NotImplementedError
        adds, moved = found
        if adds != g.multiply_adds:
            twice = adds == 2 * g.multiply_adds
            why = (
                "a multiply and an add count as one here." if twice
                else "every output needs C * KH * KW of them."
            )
            raise Hint(f"multiply-adds for {g}: {why}")
        least = 4 * (N * C * H * W + O * C * KH * KW + N * O * H * W)
        if moved != least:
            raise Hint(
                f"bytes for {g}: x and the weight are read once and y is written once, 4 bytes a "
                f"number; got {moved:,}."
            )
    return "Their quotient, the arithmetic intensity, says on which side of the ridge a layer is."


@exercise
def exercise_8b(seconds: Any) -> str:
    """seconds(multiply_adds, bytes, peak, bandwidth) -> the least time; peak in FLOP per second."""
    for adds, moved, peak, bandwidth in ((10**9, 10**6, 1e11, 1e10), (10**6, 10**9, 1e11, 1e10),
                                         (5 * 10**8, 10**8, 1e11, 1e10)):  # fmt: skip
        found = seconds(adds, moved, peak, bandwidth)
        if found is None:
            raise NotImplementedError
        arithmetic, memory = 2 * adds / peak, moved / bandwidth
        if not np.isclose(found, max(arithmetic, memory), rtol=1e-9):
            why = "compare the two times."
            if np.isclose(found, arithmetic + memory):
                why = "arithmetic and memory traffic can go on at the same time."
            elif np.isclose(found, max(arithmetic / 2, memory)):
                why = "a multiply-add is two operations."
            elif np.isclose(found, min(arithmetic, memory)):
                why = "the slower of the two decides."
            raise Hint(f"{adds:,} multiply-adds and {moved:,} bytes: {why}")
    return "No kernel for this layer can be faster on this machine: that is a limit, not a goal."
