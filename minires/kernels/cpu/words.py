"""Words of memory that several threads change: 64-bit integers with atomic operations, for Numba.

The words live in one block per process, at addresses that compiled code finds by name when it is
loaded, so that it can be kept on disk. Words that several threads want at a time should lie LINE
apart, each in a cache line of its own. All operations are sequentially consistent: every thread
sees all changes, of all words, in one order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

LINE = 32  # words: two cache lines, because processors fetch them in pairs
COUNT = 272 * LINE
NAME = "minires_words"
_I64 = ir.IntType(64)
_BLOCK = ir.ArrayType(_I64, COUNT)

_room = np.zeros(COUNT + LINE, np.int64)
_memory = _room[-_room.ctypes.data // 8 % LINE :][:COUNT]
binding.add_symbol(NAME, _memory.ctypes.data)


def clear() -> None:
    """Zeros everywhere."""
    _memory[:] = 0


def value(word: int) -> int:
    """What is in a word."""
    return int(_memory[word])


def write(word: int, value: int) -> None:
    """Write a word."""
    _memory[word] = value


def where(word: int) -> int:
    """The address of a word."""
    return int(_memory[word:].ctypes.data)


def _pointer(builder: Any, word: Any) -> Any:
    module = builder.module
    held = module.globals.get(NAME)
    if held is None:
        held = ir.GlobalVariable(module, _BLOCK, NAME)
        held.linkage = "external"
    return builder.gep(held, [_I64(0), word])


@intrinsic
def address(typingctx: Any, word: Any) -> Any:
    """Where a word lies."""

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
