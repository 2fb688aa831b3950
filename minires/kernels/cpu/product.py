"""Matrix products out of register tiles: compiled once, called by address.

A tile (`tile.py`) computes up to 6 rows by 2 vectors, or 9 rows by one. Rows are split into
balanced groups, 16 as 6 + 5 + 5 and never 6 + 6 + 4 or worse 6 + 1: a tile of one row waits for its
own sums. Columns come in panels of 2 vectors, or of one where the number of columns asks for it.

Numba compiles what a compiled function calls into the function itself, and that into its callers:
fifteen shapes of tiles, over and over. So the product is compiled for each dtype on its own, and
whoever multiplies is handed its address:

    address = product_address(x.dtype)                       # in Python
    product(address, a, a_at, ...)                           # in compiled code
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, njit, types
from numba.extending import intrinsic

from minires.kernels.cpu.simd import element_pointer
from minires.kernels.cpu.tile import FRESH, ROWS, ROWS_OF_ONE, offset, tile_product_lines


@njit(cache=True, error_model="numpy", no_cpython_wrapper=True)
def _product(
    a, a_row, a_step, a_line, M, b, b_step, b_line, b_panel, panel, wide, J, c, c_row, K, lines,
    mode, distant, ask, count, ask_row, asks,
):  # fmt: skip
    """What `product` does, with pointers."""
    most = ROWS if wide else ROWS_OF_ONE
    groups = (M + most - 1) // most
    steps = K * lines
    tile, share = 0, -(-count // steps) if count else 0
    if count and asks == 1:
        share = -(-count // (J // panel * groups * steps))
        ask_row, asks = share * steps, -(-count // (share * steps))
    for p in range(J // panel):
        b_now, c_now = offset(b, p * b_panel), offset(c, p * panel)
        for group in range(groups):
            i = group * M // groups
            rows = (group + 1) * M // groups - i
            following = rows * c_row if group + 1 < groups else panel - i * c_row
            tile_product_lines(
                rows, wide, offset(a, i * a_row), a_row, a_step, a_line, b_now, b_step, b_line,
                offset(c_now, i * c_row), c_row, K, lines, mode, offset(ask, tile * ask_row),
                share if tile < asks else 0, following if distant else 0,
            )  # fmt: skip
            tile += 1


def _signature(dtype: Any) -> Any:
    p, i, flag = types.CPointer(from_dtype(np.dtype(dtype))), types.intp, types.boolean
    a, b = (p, i, i, i), (p, i, i, i)  # with row, step, line; with step, line, panel
    c = (p, i, i, i)  # with row, K, lines
    return types.void(*a, i, *b, i, flag, i, *c, i, flag, p, i, i, i)


@cache
def product_address(dtype: Any) -> int:
    """Where the compiled product of a dtype lies in this process."""
    signature = _signature(dtype)
    _product.compile(signature)
    compiled = _product.overloads[signature.args]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name))


@intrinsic
def _call(
    typingctx: Any, address: Any, a: Any, a_at: Any, b: Any, b_at: Any, c: Any, c_at: Any,
    ask: Any, ask_at: Any, rest: Any,
) -> Any:  # fmt: skip
    """Call the product at an address; rest: the integers, in its order."""
    arrays = a, b, c, ask
    expected = _signature(np.dtype(a.dtype.name)).args

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, *pairs, rest = args
        pointers = iter(
            element_pointer(context, builder, array, pairs[2 * i], pairs[2 * i + 1])
            for i, array in enumerate(arrays)
        )
        wanted = [kind for kind in expected if not isinstance(kind, types.CPointer)]
        numbers = iter(
            context.cast(builder, builder.extract_value(rest, i), kind, want)
            for i, (kind, want) in enumerate(zip(sig.args[-1], wanted, strict=True))
        )
        values = [
            next(pointers)
            if isinstance(kind, types.CPointer)
            else context.get_value_as_argument(builder, kind, next(numbers))
            for kind in expected
        ]
        kind = ir.FunctionType(ir.VoidType(), [v.type for v in values])
        builder.call(builder.inttoptr(address, kind.as_pointer()), values)
        return context.get_dummy_value()

    i = types.intp
    return types.void(i, a, i, b, i, c, i, ask, i, rest), codegen


@njit(cache=True)
def product(
    address, a, a_at, a_row, a_step, M, b, b_at, b_step, b_panel, panel, wide, J, c, c_at, c_row, K,
    mode=FRESH,
):  # fmt: skip
    """c = a @ b for M rows, J columns (a multiple of `panel`) and a sum over K; flat arrays.

    a[i, k] lies at a_at + i*a_row + k*a_step, b[k, j] at b_at + (j // panel)*b_panel + k*b_step
    + j % panel, c[i, j] at c_at + i*c_row + j. mode: what becomes of what is in c, see `tile.py`.
    """
    _call(
        address, a, a_at, b, b_at, c, c_at, a, a_at,
        (a_row, a_step, 0, M, b_step, 0, b_panel, panel, wide, J, c_row, K, 1, mode, False, 0,
         0, 0),
    )  # fmt: skip


@njit(cache=True)
def product_to_memory(
    address, a, a_at, a_row, a_step, M, b, b_at, b_step, b_panel, panel, wide, J, c, c_at, c_row, K,
    mode, lines, a_line, b_line, source, ask, count, ask_row=0, asks=1,
):  # fmt: skip
    """`product` where c is not in cache: a tile of c is asked for while the one before it is
    computed, and evenly during all of it the `count` elements of `source` from `ask` on; or
    `asks` rows of so many, ask_row apart, one for each tile. The sum is over `lines` runs of K,
    which lie a_line and b_line apart.
    """
    _call(
        address, a, a_at, b, b_at, c, c_at, source, ask,
        (a_row, a_step, a_line, M, b_step, b_line, b_panel, panel, wide, J, c_row, K, lines, mode,
         True, count, ask_row, asks),
    )  # fmt: skip


def panel_width(columns: int, lanes: int) -> int:
    """Two vectors, unless one leaves less of the last panel empty."""
    return 2 * lanes if -columns % (2 * lanes) < lanes else lanes
