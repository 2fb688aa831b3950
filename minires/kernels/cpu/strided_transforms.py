"""The transforms of strided Winograd, each of one vector of channels of a tile.

`strided_tiles.py` has the mathematics, and says where the elements lie. The transforms are straight
lines of a few hundred instructions, written here in LLVM's language: the same as compiled functions
of vectors, inlined into a loop over channels, took half as long again to run. `rows` and `cols`
point to the coefficients of the tile's kind, see `strided_tiles.coefficients`; the other arguments
are steps between elements.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minires.kernels.cpu.simd import (
    element_pointer,
    emit_fmuladd,
    emit_load,
    emit_splat,
    emit_store,
    llvm_vector,
)


class _Emitter:
    """Writes loads, stores and one-dimensional transforms of vectors."""

    def __init__(self, builder: Any, dtype: Any) -> None:
        self.builder, self.dtype, self.vector = builder, dtype, llvm_vector(dtype)
        self.lanes = self.vector.count

    def place(self, pointer: Any, *steps: tuple[int, Any]) -> Any:
        """So many steps of so many elements further on."""
        for count, step in steps:
            if isinstance(step, int):
                offset = ir.Constant(ir.IntType(64), count * step)
            else:
                offset = self.builder.mul(step, step.type(count))
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def corners(self, pointer: Any, single: Any, quad: Any) -> tuple[Any, Any, Any, Any]:
        """Where ee, eo, oe and oo begin."""
        eo = self.place(pointer, (25, single))
        return pointer, eo, self.place(eo, (5, quad)), self.place(eo, (10, quad))

    def truth(self, number: Any) -> Any:
        return self.builder.icmp_signed("!=", number, number.type(0))

    def less(self, i: int, count: Any) -> Any:
        return self.builder.icmp_signed("<", count.type(i), count)

    def load(self, pointer: Any, *steps: tuple[int, Any], there: Any = None) -> Any:
        """A vector; zeros if it is not there, when nothing is read."""
        pointer = self.place(pointer, *steps)
        if there is not None:
            zeros = cgutils.global_constant(self.builder, "zeros", ir.Constant(self.vector, None))
            zeros = self.builder.bitcast(zeros, pointer.type)
            pointer = self.builder.select(there, pointer, zeros)
        return emit_load(self.builder, pointer, self.dtype)

    def store(self, value: Any, pointer: Any, *steps: tuple[int, Any]) -> None:
        emit_store(self.builder, value, self.place(pointer, *steps), self.dtype)

    def times(self, factor: Any, value: Any, more: Any) -> Any:
        """factor * value + more, the factor a number in memory."""
        splat = emit_splat(self.builder, self.builder.load(factor), self.dtype)
        return emit_fmuladd(self.builder, splat, value, more)

    def twice(self, value: Any) -> Any:
        return self.builder.fadd(value, value)

    def bt(self, d: list[Any], kind: Any) -> list[Any]:
        """B^T d of five vectors."""
        add, sub = self.builder.fadd, self.builder.fsub
        e, none = sub(d[3], d[1]), ir.Constant(self.vector, None)
        last = self.times(self.place(kind, (1, 4)), sub(d[4], d[2]), none)
        rows = sub(d[0], d[2]), add(d[1], d[2]), sub(d[2], d[1])
        first = [self.times(self.place(kind, (1, i)), e, row) for i, row in enumerate(rows)]
        return [*first, e, self.times(self.place(kind, (1, 3)), e, last)]

    def a(self, y: list[Any], kind: Any) -> list[Any]:
        """A y of four vectors, the last of them zero in a tile of 3."""
        add = self.builder.fadd
        even, odd = add(y[0], y[2]), add(y[1], y[3])
        m3 = y[3]
        for k in (2, 1, 0):
            m3 = add(self.twice(m3), y[k])
        last = self.times(self.place(kind, (1, 5)), y[2], y[3])
        return [y[0], add(even, odd), self.builder.fsub(even, odd), m3, last]

    def at(self, m: list[Any], kind: Any) -> list[Any]:
        """A^T m of five vectors."""
        add = self.builder.fadd
        total, difference = add(m[1], m[2]), self.builder.fsub(m[1], m[2])
        two = self.twice(m[3])
        four = self.twice(two)
        return [
            add(add(m[0], total), m[3]),
            add(difference, two),
            self.times(self.place(kind, (1, 5)), m[4], add(total, four)),
            add(add(difference, self.twice(four)), m[4]),
        ]


def _transform(emit: Any) -> Any:
    """A function for compiled code: f(x, at, y, to, coef, rows, cols, numbers).

    emit: writes what it does with pointers to x[at], y[to] and two places in coef, and integers. It
    is called and not inlined: in a loop over channels LLVM would look for the best of thousands of
    ways to step hundreds of addresses.
    """

    @intrinsic
    def transform(
        typingctx: Any, x: Any, at: Any, y: Any, to: Any, coef: Any, rows: Any, cols: Any,
        numbers: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            x, at, y, to, coef, rows, cols, numbers = args
            array, i = sig.args[0], types.intp
            pairs = (x, at), (y, to), (coef, rows), (coef, cols)
            values = [element_pointer(context, builder, array, *pair) for pair in pairs]
            for k, kind in enumerate(sig.args[-1]):
                number = builder.extract_value(numbers, k)
                values.append(context.cast(builder, number, kind, i))
            name = f"{emit.__name__}_{array.dtype}"
            function = builder.module.globals.get(name)
            if function is None:
                kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
                function = ir.Function(builder.module, kind, name)
                function.linkage = "internal"
                function.attributes.add("noinline")
                inner = ir.IRBuilder(function.append_basic_block())
                emit(_Emitter(inner, array.dtype), *function.args)
                inner.ret_void()
            builder.call(function, values)
            return context.get_dummy_value()

        i = types.intp
        return types.void(x, i, x, i, x, i, i, numbers), codegen

    return transform


@_transform
def input_tile(e: Any, x, v, rows, cols, down, odd_down, along, odd_along, run, single, quad):
    """B^T d B of one vector of channels of a tile; see `Steps` for where it goes.

    Even samples lie down and along apart from x[at] on, odd ones begin odd_down, odd_along further.
    rows, cols: where the coefficients begin.
    """
    ee, eo, oe, oo = e.corners(v, single, quad)

    def column(pointer: Any, kind: Any) -> Any:
        return e.bt([e.load(pointer, (i, down)) for i in range(5)], kind)

    z = [column(e.place(x, (j, along)), rows) for j in range(5)]
    for i in range(5):
        for j, value in enumerate(e.bt([line[i] for line in z], cols)):
            e.store(value, ee, (5 * i + j, single))
    for j in range(4):
        for i, value in enumerate(column(e.place(x, (1, odd_along), (j, along)), rows)):
            e.store(value, eo, (i, quad), (j, run))
    for i in range(4):
        row = e.place(x, (1, odd_down), (i, down))
        line = e.bt([e.load(row, (j, along)) for j in range(5)], cols)
        for j, value in enumerate(line):
            e.store(value, oe, (j, quad), (i, run))
        for j in range(4):
            value = e.load(row, (1, odd_along), (j, along))
            e.store(value, oo, (4 * i + j, run))


@_transform
def gradient_tile(e: Any, gy, w, rows, cols, row, O, high, across, run, single, quad):
    """A gy A^T of one vector of channels of a tile of `high` by `across` pixels, zero elsewhere."""
    ee, eo, oe, oo = e.corners(w, single, quad)
    inside = [[e.less(i, high), e.less(i, across)] for i in range(4)]
    y = [
        [
            e.load(gy, (i, row), (j, O), there=e.builder.and_(inside[i][0], inside[j][1]))
            for j in range(4)
        ]
        for i in range(4)
    ]
    z = []
    for i in range(4):
        z.append(e.a(y[i], cols))
        for j in range(4):
            e.store(y[i][j], oo, (4 * i + j, run))
        for j in range(5):
            e.store(z[i][j], oe, (j, quad), (i, run))
    for j in range(4):
        for i, value in enumerate(e.a([line[j] for line in y], rows)):
            e.store(value, eo, (i, quad), (j, run))
    for j in range(5):
        for i, value in enumerate(e.a([line[j] for line in z], rows)):
            e.store(value, ee, (5 * i + j, single))


@_transform
def output_tile(e: Any, m, patch, rows, cols, tall, wide, run, single, quad):
    """A^T [ee A + eo] + [oe A + oo] of one vector of channels: 4x4 vectors in `patch`."""
    tall, wide = e.truth(tall), e.truth(wide)
    ee, eo, oe, oo = e.corners(m, single, quad)
    both = e.builder.and_(tall, wide)
    z = []
    for i in range(5):
        there = [tall if i == 3 else None] * 5
        there[3] = both if i == 3 else wide
        even = [e.load(ee, (5 * i + j, single), there=there[j]) for j in range(5)]
        odd = [e.load(eo, (i, quad), (j, run), there=there[j]) for j in range(4)]
        z.append([e.builder.fadd(*pair) for pair in zip(e.at(even, cols), odd, strict=True)])
    y = [e.at([line[j] for line in z], rows) for j in range(4)]
    for i in range(4):
        there = [wide if j == 3 else None for j in range(5)]
        even = [e.load(oe, (j, quad), (i, run), there=there[j]) for j in range(5)]
        for j, value in enumerate(e.at(even, cols)):
            both = e.builder.fadd(value, e.load(oo, (4 * i + j, run)))
            e.store(e.builder.fadd(y[j][i], both), patch, (4 * i + j, e.lanes))


@_transform
def phases_tile(e: Any, m, patch, rows, cols, down, along, tall, wide, run, single, quad):
    """The pixels of gx of one vector of channels: 8x8 vectors in `patch`.

    down, along: the first row and column that has one tap, 0 or 1.
    """
    tall, wide = e.truth(tall), e.truth(wide)
    ee, eo, oe, oo = e.corners(m, single, quad)
    one, line, L = down.type(1), down.type(8 * e.lanes), down.type(e.lanes)
    downs = [e.builder.mul(line, k) for k in (e.builder.sub(one, down), down)]
    alongs = [e.builder.mul(L, k) for k in (e.builder.sub(one, along), along)]

    def put(odd_down: int, odd_along: int, i: int, j: int, value: Any) -> None:
        corner = e.place(patch, (1, downs[odd_down]), (1, alongs[odd_along]))
        e.store(value, corner, (16 * i + 2 * j, L))

    def four(values: Any, kind: Any, there: Any) -> Any:
        """A^T of five products, the fourth of which may not be there."""
        return e.at([e.load(*v, there=there if k == 3 else None) for k, v in values], kind)

    z = [four([(j, (ee, (5 * i + j, single))) for j in range(5)], cols, wide) for i in range(3)]
    both = e.builder.and_(tall, wide)
    last = [e.load(ee, (15 + j, single), there=both if j == 3 else tall) for j in range(5)]
    z.append(e.at(last, cols))
    z.append(four([(j, (ee, (20 + j, single))) for j in range(5)], cols, wide))
    for j in range(4):
        for i, value in enumerate(e.at([line[j] for line in z], rows)):
            put(0, 0, i, j, value)
    for j in range(4):
        values = [(i, (eo, (i, quad), (j, run))) for i in range(5)]
        for i, value in enumerate(four(values, rows, tall)):
            put(0, 1, i, j, value)
    for i in range(4):
        values = [(j, (oe, (j, quad), (i, run))) for j in range(5)]
        for j, value in enumerate(four(values, cols, wide)):
            put(1, 0, i, j, value)
        for j in range(4):
            put(1, 1, i, j, e.load(oo, (4 * i + j, run)))
