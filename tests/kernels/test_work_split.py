"""How work is divided among 1 to 64 workers: everything once, nobody twice, in order.

The arithmetic alone, so that no machine with 64 cores is needed; `test_thread_split.py` runs the
kernels themselves with a few counts.
"""

from __future__ import annotations

import numpy as np
import pytest

WORKERS = range(1, 65)
SIZES = (0, 1, 15, 16, 17, 63, 64, 65, 1000, 4096)


@pytest.mark.parametrize("L", [4, 8, 16])
def test_spans_of_an_array(L: int) -> None:
    """Whole vectors to everybody, the rest to the last."""
    elementwise = pytest.importorskip("minires.kernels.cpu.elementwise")
    span = elementwise._span.py_func
    for workers in WORKERS:
        for size in SIZES:
            seen = np.zeros(size, int)
            for worker in range(workers):
                begin, end, rest = span(size, worker, workers, L)
                assert begin % L == end % L == 0
                seen[begin:rest] += 1
                assert rest == end or worker == workers - 1
            assert (seen == 1).all(), (workers, size)


@pytest.mark.parametrize("L", [4, 16])
def test_ranges_of_a_weight_gradient(L: int) -> None:
    """Parts of the pixels, or ranges of dW: as many jobs as workers where there is that much."""
    outer = pytest.importorskip("minires.kernels.cpu.outer")
    for workers in WORKERS:
        for K, O, pixels in ((27, 16, 100_000), (64, 256, 784), (4608, 512, 392), (64, 4096, 392)):
            vectors = -(-K // L)
            parts, k_ranges, o_ranges = outer._division(workers, vectors, O, pixels, L)
            assert 1 <= parts <= workers
            assert parts == 1 or o_ranges == 1
            assert 1 <= k_ranges <= vectors
            assert 1 <= o_ranges <= O
            jobs = parts * k_ranges * o_ranges
            small = vectors * L * O <= outer.SMALL
            most = -(-pixels // outer.PIXELS) if small else vectors * (O // L)
            assert jobs >= min(workers, most)
            seen = np.zeros((vectors, O), int)
            for k in range(k_ranges):
                for o in range(o_ranges):
                    rows = slice(k * vectors // k_ranges, (k + 1) * vectors // k_ranges)
                    seen[rows, o * O // o_ranges : (o + 1) * O // o_ranges] += 1
            assert (seen == 1).all()
