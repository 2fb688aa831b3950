"""How many threads the kernels use."""
from numba import get_num_threads as num_threads
