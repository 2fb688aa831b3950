"""The ladder: one convolution in eight ways, from seven loops to Fourier's transform.

Each file opens with its mathematics in the symbols of its code, and says what changed since the
rung below and what that bought. They are for reading, timing and checking: none is chosen unasked.

    naive            seven loops, as the sum is written
    reordered        the same loops in another order
    im2col-whole     one matrix product, of a matrix KH*KW times as large as the image
    im2col-blocked   the same a few rows of output at a time
    implicit         the same without the matrix
    winograd-2x2     F(2x2, 3x3): 2.25 times fewer multiplications
    winograd-4x4     F(4x4, 3x3): 4 times fewer
    fft              a product in the frequency domain: as many whatever the kernel's size

    minires kernels bench --against naive,reordered,im2col-whole,im2col-blocked,implicit
"""

# From the bottom up, which is how they are listed.
# isort: off
from minires.kernels.ladder import naive
from minires.kernels.ladder import reordered
from minires.kernels.ladder import im2col_whole
from minires.kernels.ladder import im2col_blocked
from minires.kernels.ladder import implicit
from minires.kernels.ladder import winograd
from minires.kernels.ladder import fft

# isort: on

RUNGS = (
    "naive",
    "reordered",
    "im2col-whole",
    "im2col-blocked",
    "implicit",
    "winograd-2x2",
    "winograd-4x4",
    "fft",
)
"""The names, from the bottom up."""
