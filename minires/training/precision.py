"""Mixed precision: 16-bit activations and weights, float32 masters, statistics and loss.

    mixed = MixedPrecision(model, "bf16")
    logits = mixed(x)                   # float32, whatever computed them
    F.cross_entropy(logits, y).backward()
    optimizer.step()                    # on float32 parameters with float32 gradients

What is 16 bits wide: images, activations, their gradients, and the weights and biases of
convolutions, which are cast for each pass, all in one launch; their gradients are cast back in
one, too. What stays float32: the parameters themselves and what the optimiser keeps for them,
batch normalisation's parameters and statistics, fully connected layers, logits and loss. All sums
are float32. Products of float16 and bfloat16 are exact in float32, so only what is stored is
rounded: bfloat16 keeps 8 bits and float32's range, float16 keeps 11 bits and ends at 65504, which
is why its loss is scaled (`LossScale`).

"tf32" is float32 whose convolutions round their factors to 11 bits on the way into the tensor
cores. Nothing else chooses them: "fp32" means float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from minires._names import unknown
from minires.autograd import Tensor
from minires.functional.casting import CastAll
from minires.kernels import use
from minires.kernels.arrays import parse_device
from minires.kernels.cuda.launch import numbered
from minires.nn import BatchNorm2d, Linear, Module

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
CONVOLUTIONS = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")


def check_precision(precision: str, device: str) -> str:
    """The precision itself. Raises ValueError for an unknown one, or one that the device lacks.

    bfloat16 also takes CuPy 14, the first one to move arrays of it.
    """
    if precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, PRECISIONS))
    if precision != "fp32" and device == "cpu":
        raise ValueError(
            f"precision {precision!r} is for CUDA devices; the processor computes in fp32"
        )
    if precision == "bf16":
        version = getattr(numbered(parse_device(device)[1]).xp, "__version__", "14")
        if int(version.partition(".")[0]) < 14:
            raise ValueError(f"bf16 needs CuPy 14, {version} is installed; use fp16, or upgrade it")
    return precision


def storage_dtype(precision: str) -> Any:
    """The dtype of activations. Raises ImportError where bfloat16 is not installed."""
    if precision == "fp16":
        return np.dtype(np.float16)
    if precision == "bf16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise ImportError(
                "bf16 needs ml-dtypes, which gives NumPy the type: pip install ml-dtypes, or "
                "minires[cuda12] or [cuda13], which bring it along"
            ) from error
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(np.float32)


def kernels_of(precision: str) -> AbstractContextManager[Any]:
    """A block in which the kernels of this precision are preferred."""
    return use(**dict.fromkeys(CONVOLUTIONS, "tf32")) if precision == "tf32" else nullcontext()


class MixedPrecision:
    """A model that is called in a precision; float32 images in, float32 logits out.

    The model's parameters stay what they are, and get gradients of their own dtype. Raises
    ValueError for an unknown precision.
    """

    def __init__(self, model: Module, precision: str) -> None:
        if precision not in PRECISIONS:
            raise ValueError(unknown("precision", precision, PRECISIONS))
        self.model, self.precision = model, precision
        self.dtype = storage_dtype(precision)

    def __call__(self, x: Tensor) -> Tensor:
        if self.dtype == np.float32:
            return self._result(self.model(x))
        with self._narrowed():
            return self._result(self.model(x.astype(self.dtype)))

    @staticmethod
    def _result(logits: Any) -> Tensor:
        result: Tensor = logits.astype(np.float32)
        return result

    @contextmanager
    def _narrowed(self) -> Iterator[None]:
        """A block in which the convolutions' parameters are their 16-bit copies."""
        places = [
            (module, name, parameter)
            for module in self.model.modules()
            if not isinstance(module, BatchNorm2d | Linear)
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.dtype == np.float32
        ]
        if not places:
            yield
            return
        own = {id(parameter): parameter for _, _, parameter in places}  # shared ones once
        narrow = dict(zip(own, CastAll(self.dtype)(*own.values()), strict=True))
        try:
            for module, name, parameter in places:
                vars(module)[name] = narrow[id(parameter)]  # which are no Parameters
            yield
        finally:
            for module, name, parameter in places:
                vars(module)[name] = parameter
