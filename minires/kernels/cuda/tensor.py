"""Convolution on tensor cores, by the instructions that the device has: Hopper's own, or mma.sync.

f16 and bf16, and float32 rounded to tf32 where that is asked for.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from minires.kernels.cuda import mma, wgmma
from minires.kernels.cuda.arrays import nchw, nhwc
from minires.kernels.cuda.launch import HOPPER, device_of
from minires.kernels.geometry import ConvGeometry


def _own(array: Any) -> ModuleType:
    """The instructions of an array's device: `wgmma` on compute capability 9.0, or `mma`."""
    return wgmma if device_of(array).capability == HOPPER else mma


def tensor_conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """The implicit product by matrix instructions."""
    return _conv2d(_own(x), x, weight, g)


def tensor_conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """The same product from gy, once for each residue of the stride."""
    return _conv2d_grad_input(_own(gy), gy, weight, g)


def tensor_conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The sum over pixels by matrix instructions, split over blocks and joined in order."""
    return _own(x).grad_weight(x, gy, g)


def mma_conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """As tensor_conv2d, by mma.sync on a Hopper too."""
    return _conv2d(mma, x, weight, g)


def mma_conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """As tensor_conv2d_grad_input, by mma.sync on a Hopper too."""
    return _conv2d_grad_input(mma, gy, weight, g)


def mma_conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """As tensor_conv2d_grad_weight, by mma.sync on a Hopper too."""
    return mma.grad_weight(x, gy, g)


def _conv2d(by: ModuleType, x: Any, weight: Any, g: ConvGeometry) -> Any:
    xp = device_of(x).xp
    y = xp.empty((g.N, *g.out, g.O), x.dtype)
    by.gather(nhwc(xp, x), nhwc(xp, weight), y, g, gradient=False)
    return nchw(y)


def _conv2d_grad_input(by: ModuleType, gy: Any, weight: Any, g: ConvGeometry) -> Any:
    xp = device_of(gy).xp
    gx = xp.empty((g.N, g.H, g.W, g.C), gy.dtype)
    by.gather(nhwc(xp, gy), nhwc(xp, weight), gx, g, gradient=True)
    return nchw(gx)
