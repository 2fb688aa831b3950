"""Explicit SIMD for Numba: a vector type, its loads, stores and arithmetic.

LLVM vectorises simple loops by itself, but not a product whose results must stay in registers, nor
a transform with dozens of pointers. So there is a type for one vector register, as wide as the
host's (16, 8 or 4 floats, half as many doubles), with loads, stores and arithmetic:

    v = load(x, i)                        # LANES floats from the flat array x, at element i
    store(y, j, v * broadcast(x, k) + v)

Arrays are flat and contiguous, offsets count elements, and nothing is checked: the callers' tests
put guard zones around every buffer. Multiply-adds are written `fmuladd`, which becomes one fused
instruction where the machine has it and two where it has not.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model


def _vector_bytes() -> int:
    """The width of the vector registers of the processor that Numba compiles for: the host, unless
    NUMBA_CPU_FEATURES says otherwise. 16 bytes is what every 64-bit machine has."""
    text = config.CPU_FEATURES
    features = set((get_host_cpu_features() if text is None else text).split(","))
    if "+avx512f" in features:
        return 64
    return 32 if "+avx" in features else 16


VECTOR_BYTES = _vector_bytes()
STREAMED = 12 << 20  # bytes: what is larger has left the cache when it is read


def lanes(dtype: Any) -> int:
    """How many elements of a dtype one vector holds."""
    return int(VECTOR_BYTES // np.dtype(dtype).itemsize)


class VectorType(types.Type):
    """The Numba type of one vector register."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.lanes = VECTOR_BYTES // (dtype.bitwidth // 8)
        super().__init__(name=f"vector({dtype} x {self.lanes})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, llvm_vector(fe_type.dtype))


def _llvm_scalar(dtype: Any) -> Any:
    return ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()


def llvm_vector(dtype: Any) -> Any:
    return ir.VectorType(_llvm_scalar(dtype), VECTOR_BYTES // (dtype.bitwidth // 8))


def element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    if isinstance(array_type, types.Array):
        array = cgutils.create_struct_proxy(array_type)(context, builder, value=array).data
    return builder.gep(array, [index])


def emit_load(builder: Any, pointer: Any, dtype: Any) -> Any:
    pointer = builder.bitcast(pointer, llvm_vector(dtype).as_pointer())
    loaded = builder.load(pointer)
    loaded.align = dtype.bitwidth // 8
    return loaded


def emit_store(builder: Any, value: Any, pointer: Any, dtype: Any) -> None:
    pointer = builder.bitcast(pointer, llvm_vector(dtype).as_pointer())
    builder.store(value, pointer).align = dtype.bitwidth // 8


def emit_splat(builder: Any, scalar: Any, dtype: Any) -> Any:
    vector = llvm_vector(dtype)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _int32(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)


_INT64 = ir.IntType(64)


def _int32(value: int) -> Any:
    return ir.Constant(ir.IntType(32), value)


def emit_fmuladd(builder: Any, a: Any, b: Any, c: Any) -> Any:
    suffix = f"v{a.type.count}f{32 if isinstance(a.type.element, ir.FloatType) else 64}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(a.type, [a.type] * 3), f"llvm.fmuladd.{suffix}"
    )
    return builder.call(function, [a, b, c])


def emit_prefetch(builder: Any, pointer: Any, write: bool) -> None:
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, *[ir.IntType(32)] * 3])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    kinds = (_int32(int(write)), _int32(3), _int32(1))
    builder.call(function, [builder.bitcast(pointer, byte), *kinds])


def _flat(array: Any) -> bool:
    if isinstance(array, types.CPointer):
        return True
    return isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"


@intrinsic
def start(typingctx: Any, array: Any) -> Any:
    """A pointer to a flat array's first element, which every function here takes for the array.

    For functions on the way of tiles: Numba hands an array on as seven words, and counts
    references to it, a call each time. The array must outlive the pointer.
    """
    if not _flat(array):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return element_pointer(context, builder, sig.args[0], args[0], ir.Constant(_INT64, 0))

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def lanes_of(typingctx: Any, array: Any) -> Any:
    """How many elements of a flat array one vector holds: a constant in compiled code."""
    if not _flat(array):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(_INT64, VectorType(sig.args[0].dtype).lanes)

    return types.intp(array), codegen


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """The vector of elements index, index + 1, ... of a flat array."""
    if not (_flat(array) and isinstance(index, types.Integer)):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, sig.args[0], *args)
        return emit_load(builder, pointer, sig.args[0].dtype)

    return VectorType(array.dtype)(array, types.intp), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector to elements index, index + 1, ... of a flat array."""
    if not (_flat(array) and isinstance(value, VectorType)):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, sig.args[0], args[0], args[1])
        emit_store(builder, args[2], pointer, sig.args[0].dtype)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def stream(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """`store` past the caches, for what is too large to be there when it is read.

    A plain store first fetches the line that it replaces. The place must be a multiple of the
    vector's bytes in memory: `streams` tells.
    """
    if not (_flat(array) and isinstance(value, VectorType)):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, sig.args[0], args[0], args[1])
        stored = builder.store(args[2], builder.bitcast(pointer, args[2].type.as_pointer()))
        stored.align = VECTOR_BYTES
        stored.set_metadata("nontemporal", builder.module.add_metadata([_int32(1)]))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


def streams(array: Any, least: int = STREAMED) -> bool:
    """Whether to write an array of at least so many bytes with `stream`, in whole vectors."""
    return bool(array.nbytes >= least and array.ctypes.data % VECTOR_BYTES == 0)


@intrinsic
def add_wide(typingctx: Any, sums: Any, index: Any, value: Any) -> Any:
    """Add a vector to elements index, index + 1, ... of a flat array of float64."""
    if not (_flat(sums) and sums.dtype == types.float64 and isinstance(value, VectorType)):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, kind = args[2], ir.VectorType(ir.DoubleType(), args[2].type.count)
        if value.type != kind:
            value = builder.fpext(value, kind)
        pointer = element_pointer(context, builder, sig.args[0], *args[:2])
        pointer = builder.bitcast(pointer, kind.as_pointer())
        before = builder.load(pointer)
        before.align = types.float64.bitwidth // 8
        builder.store(builder.fadd(before, value), pointer).align = before.align
        return context.get_dummy_value()

    return types.void(sums, types.intp, value), codegen


@intrinsic
def load_where(typingctx: Any, array: Any, index: Any, inside: Any) -> Any:
    """`load`, or zeros if not `inside`, when nothing is read from the array; without a branch."""
    if not (_flat(array) and isinstance(index, types.Integer)):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        dtype = sig.args[0].dtype
        vector = llvm_vector(dtype)
        zeros = cgutils.global_constant(builder, "zeros", ir.Constant(vector, None))
        pointer = element_pointer(context, builder, sig.args[0], *args[:2])
        elsewhere = builder.bitcast(zeros, pointer.type)
        return emit_load(builder, builder.select(args[2], pointer, elsewhere), dtype)

    return VectorType(array.dtype)(array, types.intp, types.boolean), codegen


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of element `index`, which may lie beyond the array's end."""
    if not (_flat(array) and isinstance(index, types.Integer)):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, sig.args[0], *args)
        emit_prefetch(builder, pointer, write=False)
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def broadcast(typingctx: Any, array: Any, index: Any) -> Any:
    """One element of a flat array in every lane."""
    if not (_flat(array) and isinstance(index, types.Integer)):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, sig.args[0], *args)
        return emit_splat(builder, builder.load(pointer), sig.args[0].dtype)

    return VectorType(array.dtype)(array, types.intp), codegen


@intrinsic
def fill(typingctx: Any, like: Any, value: Any) -> Any:
    """A number in every lane, as a vector of `like`'s dtype (a flat array)."""
    if not (_flat(like) and isinstance(value, types.Number)):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_splat(builder, args[1], sig.args[0].dtype)

    return VectorType(like.dtype)(like, like.dtype), codegen


def _arithmetic(symbol: Any, emit: Any) -> None:
    """Give two vectors of one type an operator."""

    @infer_global(symbol)
    class Rule(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(symbol, VectorType, VectorType)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args)


_arithmetic(operator.add, lambda builder, a, b: builder.fadd(a, b))
_arithmetic(operator.sub, lambda builder, a, b: builder.fsub(a, b))
_arithmetic(operator.mul, lambda builder, a, b: builder.fmul(a, b))


@intrinsic
def fmuladd(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c for vectors."""
    if not (isinstance(a, VectorType) and a == b == c):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_fmuladd(builder, *args)

    return a(a, a, a), codegen


@intrinsic
def fnmuladd(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """c - a * b for vectors."""
    if not (isinstance(a, VectorType) and a == b == c):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_fmuladd(builder, builder.fneg(args[0]), *args[1:])

    return a(a, a, a), codegen


@intrinsic
def positive(typingctx: Any, v: Any) -> Any:
    """max(v, 0) lane by lane; NaN stays NaN."""
    if not isinstance(v, VectorType):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered("<=", args[0], zero), zero, args[0])

    return v(v), codegen


@intrinsic
def where_positive(typingctx: Any, condition: Any, v: Any) -> Any:
    """v in the lanes where `condition` > 0, else 0."""
    if not (isinstance(v, VectorType) and condition == v):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[1], zero)

    return v(v, v), codegen


@intrinsic
def transpose(
    typingctx: Any, x: Any, start: Any, row: Any, out: Any, out_start: Any, out_row: Any
) -> Any:
    """out[out_start + j*out_row + i] = x[start + i*row + j] for i, j < LANES, within registers.

    Blocks of 2d x 2d swap two of their quarters, for d = LANES / 2, ..., 2, 1.
    """
    if not (_flat(x) and x == out):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (xv, x0, x_row, ov, o0, o_row), dtype = args, sig.args[0].dtype
        lanes, integer = llvm_vector(dtype).count, x0.type
        source = element_pointer(context, builder, sig.args[0], xv, x0)
        target = element_pointer(context, builder, sig.args[3], ov, o0)

        def line(pointer: Any, stride: Any, i: int) -> Any:
            return builder.gep(pointer, [builder.mul(stride, integer(i))])

        v = [emit_load(builder, line(source, x_row, i), dtype) for i in range(lanes)]
        d = lanes // 2
        while d:
            upper = [j + (lanes - d if j & d else 0) for j in range(lanes)]
            lower = [j + d for j in upper]
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), lanes), m) for m in (upper, lower)]
            for i in range(lanes):
                if not i & d:
                    v[i], v[i + d] = (builder.shuffle_vector(v[i], v[i + d], m) for m in masks)
            d //= 2
        for i, value in enumerate(v):
            emit_store(builder, value, line(target, o_row, i), dtype)
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, i, out, i, i), codegen
