"""Words of memory that several threads change: 64-bit integers with atomic operations, for Numba.

The words live in one block per process, at addresses that compiled code finds by name when it is
loaded, so that it can be kept on disk. Each lies in a cache line of its own. All operations are
sequentially consistent: every thread sees all changes, of all words, in one order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

COUNT = 16
NAME = "minires_words"
_LINE = 32  # integers: two cache lines, because processors fetch them in pairs
_I64 = ir.IntType(64)
_BLOCK = ir.ArrayType(_I64, COUNT * _LINE)

_room = np.zeros((COUNT + 1) * _LINE, np.int64)
_memory = _room[-_room.ctypes.data // 8 % _LINE :][: COUNT * _LINE].reshape(COUNT, _LINE)
binding.add_symbol(NAME, _memory.ctypes.data)


def clear() -> None:
    """Zeros everywhere, with what lies in the words' lines."""
    _memory[:] = 0


def value(word: int) -> int:
    """What is in a word."""
    return int(_memory[word, 0])


def where(word: int) -> int:
    """The address of a word."""
    return int(_memory[word].ctypes.data)


def _pointer(builder: Any, word: Any) -> Any:
    module = builder.module
    held = module.globals.get(NAME)
    if held is None:
        held = ir.GlobalVariable(module, _BLOCK, NAME)
        held.linkage = "external"
    return builder.gep(held, [_I64(0), builder.mul(word, _I64(_LINE))])


@intrinsic
def address(typingctx: Any, word: Any) -> Any:
    """Where a word lies; the line after it is free for whatever needs room."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ptrtoint(_pointer(builder, args[0]), _I64)

    return types.intp(types.intp), codegen


@intrinsic
def load_word(typingctx: Any, word: Any) -> Any:
    """What is in a word."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0]), "seq_cst", 8)

    return types.intp(types.intp), codegen


@intrinsic
def store_word(typingctx: Any, word: Any, value: Any) -> Any:
    """Write a word."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _pointer(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic
def add_to_word(typingctx: Any, word: Any, value: Any) -> Any:
    """Add to a word; returns the sum."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        before = builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], "seq_cst")
        return builder.add(before, args[1])

    return types.intp(types.intp, types.intp), codegen


@intrinsic
def swap_word(typingctx: Any, word: Any, expected: Any, value: Any) -> Any:
    """Write a word if it holds what is expected; returns whether it did."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pair = builder.cmpxchg(_pointer(builder, args[0]), *args[1:], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.intp, types.intp, types.intp), codegen
