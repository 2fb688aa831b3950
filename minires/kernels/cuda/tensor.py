"""Convolution on tensor cores, by the instructions that the device has: Hopper's own, or mma.sync.

f16 and bf16, and float32 rounded to tf32 where that is asked for.
"""

from __future__ import annotations

from typing import Any

from minires.kernels.cuda import mma, wgmma
from minires.kernels.cuda.launch import HOPPER, device_of
from minires.kernels.geometry import ConvGeometry


def _hopper(array: Any) -> bool:
    """Whether an array is on a device of compute capability 9.0."""
    return device_of(array).capability == HOPPER


def tensor_conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """The implicit product by matrix instructions."""
    return (wgmma if _hopper(x) else mma).conv2d(x, weight, g)


def tensor_conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """The same product from gy, once for each residue of the stride."""
    return (wgmma if _hopper(gy) else mma).conv2d_grad_input(gy, weight, g)


def tensor_conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The sum over pixels by matrix instructions, split over blocks and joined in order."""
    return (wgmma if _hopper(x) else mma).conv2d_grad_weight(x, gy, g)
