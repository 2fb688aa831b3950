"""Kernels: arrays in, arrays out. The only place where numbers are crunched.

No autograd here and no Tensor. Every operation has one signature (`operations.py`) and any number
of kernels that compute it; `register` adds one, `use` prefers one, `available` lists them.
"""

from minires.kernels import cpu, cuda, operations, reference
from minires.kernels.condition import never, when_measured
from minires.kernels.cuda_source import cuda_source
from minires.kernels.files import load
from minires.kernels.geometry import ConvGeometry, PoolGeometry, conv_geometry, pool_geometry
from minires.kernels.registry import (
    Kernel,
    Operation,
    available,
    choices,
    operation,
    register,
    register_later,
    use,
)

register_later("minires.kernels.ladder")
