"""The register tile: a small matrix product, the heart of every fast convolution.

    c[r, j]  (+)=  sum_k a[r, k] * b[k, j]        a few rows r, one or two vectors of columns j

One step of k reads the vectors of b, broadcasts one element of a per row, and does rows * vectors
multiply-adds; the sums stay in registers. 6 rows x 2 vectors keep 12 sums in flight: enough to hide
the latency of the adders, few enough for 16 registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from minires.kernels.cpu.simd import (
    element_pointer,
    emit_fmuladd,
    emit_load,
    emit_prefetch,
    emit_splat,
    emit_store,
    llvm_vector,
)


def _phi(builder: Any, kind: Any, *incoming: tuple[Any, Any]) -> Any:
    phi = builder.phi(kind)
    for value, block in incoming:
        phi.add_incoming(value, block)
    return phi


def _emit_tile(
    builder: Any, dtype: Any, R: int, V: int, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any,
    c: Any, c_row: Any, K: Any, reload: Any, lines: Any = None,
) -> None:  # fmt: skip
    """A register tile of R rows by V vectors; a, b and c are pointers.

    lines: None for one run of K steps, or (count, a_line, b_line, ask, ask_step, add, following)
    for `count` of them, for a prefetch at each step, for adding c to the sums when they are done,
    and for asking, before that, for the next tile's c so many elements on (0: for none).
    """
    vector, integer, align = llvm_vector(dtype), K.type, dtype.bitwidth // 8
    a_offsets = [builder.mul(a_row, integer(r)) for r in range(R)]
    c_pointers = [
        builder.gep(row, [integer(v * vector.count)])
        for row in (builder.gep(c, [builder.mul(c_row, integer(r))]) for r in range(R))
        for v in range(V)
    ]

    if lines is not None:
        following = lines[-1]
        with builder.if_then(builder.icmp_signed("!=", following, integer(0))):
            for pointer in c_pointers:
                emit_prefetch(builder, builder.gep(pointer, [following]), write=True)

    entry, head = builder.block, builder.append_basic_block("head")
    body, done = builder.append_basic_block("body"), builder.append_basic_block("done")
    loading = builder.append_basic_block("reload")
    builder.cbranch(reload, loading, head)
    with builder.goto_block(loading):
        previous = [emit_load(builder, p, dtype) for p in c_pointers]
        builder.branch(head)

    builder.position_at_end(head)
    zero = ir.Constant(vector, None)
    firsts = [_phi(builder, vector, (zero, entry), (value, loading)) for value in previous]
    before, after, a_first, b_first = head, done, a, b
    if lines is None:
        builder.cbranch(builder.icmp_signed(">", K, integer(0)), body, done)
    else:
        count, a_line, b_line, ask, ask_step, add, _ = lines
        before, after = builder.append_basic_block("line"), builder.append_basic_block("line_end")
        builder.branch(before)
        builder.position_at_end(before)
        line = _phi(builder, integer, (integer(0), head))
        a_first, b_first, ask = (_phi(builder, p.type, (p, head)) for p in (a, b, ask))
        firsts = [_phi(builder, vector, (first, head)) for first in firsts]
        builder.branch(body)

    builder.position_at_end(body)
    k = _phi(builder, integer, (integer(0), before))
    a_now, b_now = (_phi(builder, p.type, (p, before)) for p in (a_first, b_first))
    sums = [_phi(builder, vector, (first, before)) for first in firsts]
    if lines is not None:
        ask_now = _phi(builder, ask.type, (ask, before))
        ask_next = builder.gep(ask_now, [ask_step])
        ask_now.add_incoming(ask_next, body)
        emit_prefetch(builder, ask_now, write=False)
    b_vectors = [
        emit_load(builder, builder.gep(b_now, [integer(v * vector.count)]), dtype)
        for v in range(V)
    ]
    nexts = []
    for r in range(R):
        element = builder.load(builder.gep(a_now, [a_offsets[r]]))
        element.align = align
        a_vector = emit_splat(builder, element, dtype)
        nexts += [emit_fmuladd(builder, a_vector, b_vectors[v], sums[r * V + v]) for v in range(V)]
    k_next = builder.add(k, integer(1))
    for phi, following in (
        (k, k_next),
        (a_now, builder.gep(a_now, [a_step])),
        (b_now, builder.gep(b_now, [b_step])),
        *zip(sums, nexts, strict=True),
    ):
        phi.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", k_next, K), body, after)

    if lines is not None:
        builder.position_at_end(after)
        line_next = builder.add(line, integer(1))
        for phi, following in (
            (line, line_next),
            (a_first, builder.gep(a_first, [a_line])),
            (b_first, builder.gep(b_first, [b_line])),
            (ask, ask_next),
            *zip(firsts, nexts, strict=True),
        ):
            phi.add_incoming(following, after)
        builder.cbranch(builder.icmp_signed("<", line_next, count), before, done)

    builder.position_at_end(done)
    if lines is None:
        nexts = [
            _phi(builder, vector, (first, head), (following, body))
            for first, following in zip(firsts, nexts, strict=True)
        ]
    else:
        adding, out = builder.append_basic_block("add"), builder.append_basic_block("out")
        builder.cbranch(add, adding, out)
        with builder.goto_block(adding):
            totals = [
                builder.fadd(emit_load(builder, p, dtype), v)
                for p, v in zip(c_pointers, nexts, strict=True)
            ]
            builder.branch(out)
        builder.position_at_end(out)
        nexts = [
            _phi(builder, vector, (value, done), (total, adding))
            for value, total in zip(nexts, totals, strict=True)
        ]
    for value, pointer in zip(nexts, c_pointers, strict=True):
        emit_store(builder, value, pointer, dtype)


@intrinsic
def tile_product(
    typingctx: Any,
    rows: Any,
    vectors: Any,
    a: Any,
    a_start: Any,
    a_row: Any,
    a_step: Any,
    b: Any,
    b_start: Any,
    b_step: Any,
    c: Any,
    c_start: Any,
    c_row: Any,
    K: Any,
    accumulate: Any,
) -> Any:
    """A small matrix product whose result stays in registers: the heart of every fast pass.

    For r < rows and each of the `vectors` * LANES columns j (both constants),

        c[c_start + r*c_row + j]  (+)=  sum_k a[a_start + r*a_row + k*a_step]
                                             * b[b_start + k*b_step + j]

    One step of k reads `vectors` vectors of b, broadcasts one element of a per row, and does
    rows * vectors multiply-adds. With a_step = 1 the rows of a are read along (inputs times
    weights); with a_row = 1 across (inputs transposed times gradients). 6 rows x 2 vectors keep
    12 sums in flight: enough to hide the latency of the adders, few enough for 16 registers.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(vectors, types.IntegerLiteral)):
        return None
    R, V, dtype = rows.literal_value, vectors.literal_value, a.dtype

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (_, _, av, a0, a_row, a_step, bv, b0, b_step, cv, c0, c_row, K, accumulate) = args
        a, b, c = (
            element_pointer(context, builder, sig.args[i], array, start)
            for i, array, start in ((2, av, a0), (6, bv, b0), (9, cv, c0))
        )
        _emit_tile(
            builder, dtype, R, V, a, a_row, a_step, b, b_step, c, c_row, K,
            builder.icmp_signed("!=", accumulate, accumulate.type(0)),
        )  # fmt: skip
        return context.get_dummy_value()

    i = types.intp
    sig = types.void(rows, vectors, a, i, i, i, b, i, i, c, i, i, i, types.boolean)
    return sig, codegen


ROWS, ROWS_OF_ONE = 6, 9  # of two vectors, of one
FRESH, ONWARD, ONTO = 0, 1, 2
"""What a product does with c: replaces it, begins its sums there, adds it to the sums."""


@intrinsic
def tile_product_lines(
    typingctx: Any,
    rows: Any,
    wide: Any,
    a: Any,
    a_row: Any,
    a_step: Any,
    a_line: Any,
    b: Any,
    b_step: Any,
    b_line: Any,
    c: Any,
    c_row: Any,
    K: Any,
    lines: Any,
    mode: Any,
    ask: Any,
    ask_step: Any,
    following: Any,
) -> Any:
    """`tile_product` over `lines` runs of K steps, which lie a_line and b_line apart.

    rows: 1 to ROWS of two vectors if `wide`, else 1 to ROWS_OF_ONE of one; known at run time. a, b,
    c and ask are pointers; K and lines at least 1. mode: FRESH, ONWARD or ONTO. At each step the
    line of ask, of ask + ask_step, ... is asked for: requests that come all at once fill the queue
    of those under way, and the product then waits behind them.
    """
    dtype = a.dtype

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (rows, wide, a, a_row, a_step, a_line, b, b_step, b_line, *more) = args
        (c, c_row, K, lines, mode, ask, ask_step, following) = more
        onward, onto = (builder.icmp_signed("==", mode, mode.type(m)) for m in (ONWARD, ONTO))
        shape = builder.add(rows, builder.select(wide, rows.type(ROWS_OF_ONE), rows.type(0)))
        end = builder.append_basic_block("end")
        choice = builder.switch(shape, end)
        for V, most in ((1, ROWS_OF_ONE), (2, ROWS)):
            for R in range(1, most + 1):
                block = builder.append_basic_block(f"tile_{R}_{V}")
                choice.add_case(shape.type(R if V == 1 else ROWS_OF_ONE + R), block)
                builder.position_at_end(block)
                _emit_tile(
                    builder, dtype, R, V, a, a_row, a_step, b, b_step, c, c_row, K, onward,
                    (lines, a_line, b_line, ask, ask_step, onto, following),
                )  # fmt: skip
                builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    i = types.intp
    return types.void(i, types.boolean, a, i, i, i, a, i, i, a, i, i, i, i, a, i, i), codegen


@intrinsic
def offset(typingctx: Any, pointer: Any, count: Any) -> Any:
    """The pointer to `count` elements further on."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.intp), codegen
