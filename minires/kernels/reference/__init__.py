"""The reference kernels: NumPy, any floating-point dtype, short and obviously right.

They are the oracle that faster kernels are compared with. BLAS does the products.
"""

from minires.kernels import operations  # what the kernels below are registered for
from minires.kernels.reference import activation, conv, linear, norm, pool
