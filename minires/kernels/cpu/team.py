"""The threads that share a kernel's work.

    @parallel
    def _double(worker, x, y, workers):
        for i in range(worker * x.size // workers, (worker + 1) * x.size // workers):
            y[i] = 2 * x[i]

    _double(x, y, workers)

runs the function for worker = 0, 1, ..., workers - 1, each its own share, on as many threads as
are there. What a share does depends on its number alone, so the result does not depend on who
does it, or when. Numba has such a loop, `prange`; three things are different here.

**Who does a share.** The caller writes down what is to be done, and then a ticket: how many shares
there are and how many are taken. Whoever replaces the ticket by the next one owns a share; who
read an old one fails to, and looks again. The caller takes shares like everybody else, so a thread
that comes late, because somebody else's program has its core, finds less to do or nothing, and
nobody waits for it.

**How one waits.** To wake a thread that sleeps takes 40 to 110 us on a virtual machine, a hundred
times per training step; a thread that spins, reading the ticket over and over, comes at once. But
it also uses up its share of the core, and where another program wants the core it is then sent
away when there is work: spinning threads made a step up to five times as long. So a thread spins
for a while, 200 us, about as long as what lies between two kernels at most, and looks at the clock.
If the clock has jumped, the core was taken away: for the next tenth of a second the thread sleeps
at once. Who sleeps is not woken on the caller's core (`cores.py`).

**What is compiled.** A loop of `prange` is compiled as a function of its own inside the one around
it and takes several times as long to compile as the same loop without.

Without POSIX's threads the caller does all the shares, as it does in a region inside another and
in a process that was forked off in the middle of one.
"""

from __future__ import annotations

import atexit
import ctypes
import inspect
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from minires.kernels import threads
from minires.kernels.cpu import cores, words
from minires.kernels.cpu.cores import leave_core, restore_set
from minires.kernels.cpu.words import LINE, add_to_word, address, load_word, store_word, swap_word

PATIENCE = 200_000  # ns that a thread spins before it sleeps
JUMP = 500_000  # ns between two looks at the clock that say that the core was taken away
REST = 100_000_000  # ns to sleep at once after that
LOOKS = 50  # at a word between two looks at the clock

# The words: what is to be done, the ticket, the shares done, whether one raised; whether a region
# runs, whether to leave; how many sleep until there is work, whether the caller sleeps until its
# end, and until when nobody spins. Then the lock, and the two conditions to sleep on.
FUNCTION, DATA, TICKET, DONE, FAILED, BUSY, LEAVE, ASLEEP, WAITING, CALM = range(0, 10 * LINE, LINE)
LOCK, WORK, END = range(10 * LINE, 13 * LINE, LINE)
HALF = 1 << 32  # a ticket is shares * HALF + shares taken

_I64 = ir.IntType(64)
_int = types.intp
_clock = types.ExternalFunction("clock_gettime", types.int32(types.int32, _int))
_lock = types.ExternalFunction("pthread_mutex_lock", types.int32(_int))
_unlock = types.ExternalFunction("pthread_mutex_unlock", types.int32(_int))
_sleep = types.ExternalFunction("pthread_cond_wait", types.int32(_int, _int))
_wake = types.ExternalFunction("pthread_cond_signal", types.int32(_int))
_MONOTONIC = 6 if sys.platform == "darwin" else 1
_RUN = "minires_run_region"
_POSIX = os.name == "posix"


@intrinsic
def _call(typingctx: Any, function: Any, data: Any, worker: Any) -> Any:
    """Do a share, by the function's address; 1 if it raised."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64, _I64]).as_pointer()
        return builder.call(builder.inttoptr(args[0], kind), args[1:])

    return _int(_int, _int, _int), codegen


@njit(error_model="numpy")
def _now(time):
    _clock(_MONOTONIC, time.ctypes.data)
    return time[0] * 1_000_000_000 + time[1]


@njit(error_model="numpy")
def _open(ticket):
    """Whether there is a share that nobody has taken."""
    return ticket % HALF < ticket // HALF


@njit(error_model="numpy")
def _wanted(count):
    """What a thread waits for: a share to take or the order to leave or, the caller, `count` shares
    done."""
    if count > 0:
        return load_word(DONE) == count
    return _open(load_word(TICKET)) or load_word(LEAVE) != 0


@njit(error_model="numpy")
def _spin(count):
    """Wait awake, for a while."""
    time = np.empty(2, np.int64)
    start = last = _now(time)
    while start >= load_word(CALM):
        for _ in range(LOOKS):
            if _wanted(count):
                return
        now = _now(time)
        if now - last > JUMP:
            store_word(CALM, now + REST)
        if now - start > PATIENCE:
            return
        last = now


@njit(error_model="numpy")
def _wait_for_work(place):
    """Spin, then sleep; place: the thread's line of `cores.py`."""
    _spin(0)
    if not _wanted(0):
        _lock(address(LOCK))
        store_word(place + cores.SLEEPS, 1)
        add_to_word(ASLEEP, 1)  # before the last look: who changes the ticket looks here after it
        while not _wanted(0):
            _sleep(address(WORK), address(LOCK))
            restore_set(place)
        add_to_word(ASLEEP, -1)
        store_word(place + cores.SLEEPS, 0)
        _unlock(address(LOCK))


@njit(error_model="numpy")
def _wait_for_end(count):
    """The same for the caller, until `count` shares are done."""
    _spin(count)
    if not _wanted(count):
        _lock(address(LOCK))
        store_word(WAITING, 1)
        while not _wanted(count):
            _sleep(address(END), address(LOCK))
        store_word(WAITING, 0)
        _unlock(address(LOCK))


@njit(error_model="numpy")
def _rouse(most):
    """Wake at most so many of those who sleep until there is work."""
    if load_word(ASLEEP) > 0:
        _lock(address(LOCK))
        leave_core()
        for _ in range(min(load_word(ASLEEP), most)):
            _wake(address(WORK))
        _unlock(address(LOCK))


@njit(error_model="numpy")
def _rouse_caller():
    if load_word(WAITING) != 0:
        _lock(address(LOCK))
        _wake(address(END))
        _unlock(address(LOCK))


@njit(error_model="numpy")
def _take_shares():
    """Do shares until all are taken."""
    while True:
        ticket = load_word(TICKET)
        if not _open(ticket):
            return
        if swap_word(TICKET, ticket, ticket + 1):
            if _call(load_word(FUNCTION), load_word(DATA), ticket % HALF) != 0:
                store_word(FAILED, 1)
            if add_to_word(DONE, 1) == ticket // HALF:
                _rouse_caller()


@njit(cache=True, nogil=True, error_model="numpy")
def _serve(place):
    """A thread's life; place: its line of `cores.py`."""
    while load_word(LEAVE) == 0:
        _take_shares()
        _wait_for_work(place)


@njit(error_model="numpy")
def _run_alone(function, data, count):
    """Do a region's shares one after the other; 1 if one of them raised."""
    failed = 0
    for share in range(count):
        failed |= _call(function, data, share)
    return failed


def _run(function, data, count):
    """Do a region of `count` shares; 1 if one of them raised."""
    if count <= 1 or not swap_word(BUSY, 0, 1):
        return _run_alone(function, data, count)
    store_word(FUNCTION, function)
    store_word(DATA, data)
    store_word(FAILED, 0)
    store_word(DONE, 0)
    store_word(TICKET, count * HALF)
    _rouse(count - 1)
    _take_shares()
    if not _wanted(count):
        _wait_for_end(count)
    failed = load_word(FAILED)
    store_word(BUSY, 0)
    return failed


_region = cfunc(_int(_int, _int, _int), cache=True, error_model="numpy")(
    _run if _POSIX else _run_alone.py_func
)
binding.add_symbol(_RUN, _region.address)


def _borrowed(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """An argument without the owners of its arrays, which the caller keeps.

    Otherwise the threads count references, in turns, where a share's code calls another function.
    """
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        for owner in ("meminfo", "parent"):
            setattr(array, owner, cgutils.get_null_value(getattr(array, owner).type))
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        members = cgutils.unpack_tuple(builder, value, len(kind))
        members = [_borrowed(context, builder, *pair) for pair in zip(kind, members, strict=True)]
        return context.make_tuple(builder, kind, members)
    return value


@intrinsic
def _each(typingctx: Any, count: Any, body: Any, arguments: Any) -> Any:
    """Call body(0, *arguments), ..., body(count - 1, *arguments); 1 if one of them raised."""
    kinds = (_int, *(types.unliteral(kind) for kind in arguments.types))
    body.dispatcher.compile(kinds)
    compiled = body.dispatcher.overloads[kinds]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        context.add_linking_libs([compiled.library])
        module, kind = builder.module, ir.FunctionType(_I64, [_I64, _I64])
        share = ir.Function(module, kind, module.get_unique_name("share"))
        share.linkage = "internal"
        inner = ir.IRBuilder(share.append_basic_block())
        held = inner.load(inner.inttoptr(share.args[0], args[2].type.as_pointer()))
        values = [
            _borrowed(context, inner, kind, inner.extract_value(held, i))
            for i, kind in enumerate(kinds[1:])
        ]
        status, _ = context.call_internal_no_propagate(
            inner, compiled.fndesc, compiled.signature, [share.args[1], *values]
        )
        inner.ret(inner.zext(status.is_error, _I64))
        data = cgutils.alloca_once_value(builder, args[2])
        run = cgutils.get_or_insert_function(module, ir.FunctionType(_I64, [_I64] * 3), _RUN)
        where = (builder.ptrtoint(pointer, _I64) for pointer in (share, data))
        return builder.call(run, [*where, args[0]])

    return _int(_int, body, arguments), codegen


def parallel(function: Callable[..., None]) -> Any:
    """Compile function(worker, ..., workers, ...): one call of the result, without `worker`, does
    it for every worker from 0 to workers - 1.

    The result can be called from Python and from compiled code, and is kept on disk. Its call
    raises RuntimeError if a share raised anything. Raises TypeError unless the parameters begin
    with `worker` and one of them is `workers`.
    """
    name, code = function.__name__, function.__code__
    first, *others = inspect.signature(function).parameters
    names = ", ".join(others)
    if first != "worker" or "workers" not in others:
        raise TypeError(
            f"{name}({first}, {names}) must have `worker`, the number of a share, as its first "
            "parameter, and `workers`, how many there are, among the others"
        )
    # Written out, because Numba's cache does not know a function again that closes over another.
    text = "\n" * (code.co_firstlineno - 1) + (
        f"def {name}_by_workers({names}):\n"
        f"    if _each(workers, _body, ({names},)): raise RuntimeError('{name} failed')\n"
    )
    space = {
        "_each": _each,
        "_body": njit(no_cpython_wrapper=True, error_model="numpy")(function),
        "__name__": function.__module__,
    }
    exec(compile(text, code.co_filename, "exec"), space)
    return njit(cache=True)(space[f"{name}_by_workers"])


@njit(cache=True, error_model="numpy")
def _order_to_leave(count):
    store_word(LEAVE, 1)
    _rouse(count)


def _live(number: int) -> None:
    """What a thread of the team does."""
    place = cores.FIRST + min(number, cores.MOST) * LINE
    if number < cores.MOST:
        words.write(place + cores.ID, threading.get_native_id())
    _serve(place)


class Team:
    """The threads besides the caller's: as many as `num_threads` says, less one."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def resize(self, count: int) -> None:
        """So many threads, not while they work."""
        if not _POSIX or count == len(self.threads):
            return
        self.dismiss()
        libc = ctypes.CDLL(None)
        libc.pthread_mutex_init(ctypes.c_void_p(words.where(LOCK)), None)
        for condition in (WORK, END):
            libc.pthread_cond_init(ctypes.c_void_p(words.where(condition)), None)
        for i in range(count):
            thread = threading.Thread(target=_live, args=(i,), name=f"minires-{i + 1}", daemon=True)
            thread.start()
            self.threads.append(thread)

    def dismiss(self) -> None:
        """Send all away; regions go on with the caller alone."""
        if self.threads:
            _order_to_leave(len(self.threads))
            for thread in self.threads:
                thread.join()
        self.threads.clear()
        words.clear()

    def after_fork(self) -> None:
        """In a process that was forked off the threads are not there: start others."""
        count = len(self.threads)
        self.threads.clear()
        self.resize(count)


def _as_many_as_asked_for() -> None:
    TEAM.resize(threads.num_threads() - 1)


TEAM = Team()
_as_many_as_asked_for()
threads.at_change(_as_many_as_asked_for)
atexit.register(TEAM.dismiss)
if _POSIX:
    os.register_at_fork(after_in_child=TEAM.after_fork)
