"""When operations are recorded: no_grad, enable_grad, set_grad_enabled, and threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import minires as mr

X = mr.Tensor([1.0, 2.0], requires_grad=True)


def recorded() -> bool:
    result = (X * 2).requires_grad
    assert result == mr.is_grad_enabled()
    return result


def test_blocks_nest() -> None:
    assert recorded()
    with mr.no_grad():
        assert not recorded()
        with mr.enable_grad():
            assert recorded()
            with mr.no_grad():
                assert not recorded()
            assert recorded()
        assert not recorded()
    assert recorded()


def test_one_object_may_be_entered_inside_itself() -> None:
    off = mr.no_grad()
    with off:
        with off:
            assert not recorded()
        assert not recorded()
    assert recorded()


def test_an_exception_restores_the_mode() -> None:
    with pytest.raises(KeyError), mr.no_grad():
        raise KeyError
    assert recorded()
    with pytest.raises(KeyError), mr.no_grad(), mr.enable_grad():
        raise KeyError
    assert recorded()


def test_decorators() -> None:
    @mr.no_grad()
    def depth(n: int) -> list[bool]:
        """Calls itself."""
        return [recorded(), *(depth(n - 1) if n else []), recorded()]

    @mr.enable_grad()
    def on() -> bool:
        return recorded()

    assert depth(2) == [False] * 6
    assert depth.__name__ == "depth"
    assert depth.__doc__ == "Calls itself."
    assert recorded()
    with mr.no_grad():
        assert on()
        assert not recorded()


def test_a_generator_cannot_be_decorated() -> None:
    def generator() -> Iterator[bool]:
        yield recorded()

    with pytest.raises(TypeError, match="no_grad would end before the generator generator runs"):
        mr.no_grad()(generator)


def test_set_grad_enabled() -> None:
    with mr.set_grad_enabled(False):
        assert not recorded()
        with mr.set_grad_enabled(True):
            assert recorded()
        assert not recorded()
    assert recorded()
    mr.set_grad_enabled(False)
    try:
        assert not recorded()
    finally:
        mr.set_grad_enabled(True)
    assert recorded()


def test_a_leaf_made_inside_no_grad_can_require_gradients() -> None:
    with mr.no_grad():
        x = mr.Tensor([1.0], requires_grad=True)
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_nothing_is_recorded_without_a_need() -> None:
    y = mr.Tensor([1.0]) * mr.Tensor([2.0])
    assert y.is_leaf
    assert y.grad_fn is None
    assert not y.requires_grad


def in_thread(function: Any) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_the_mode_belongs_to_the_thread() -> None:
    with mr.no_grad():
        assert in_thread(recorded)
        assert not recorded()

    def off() -> bool:
        mr.set_grad_enabled(False)
        return recorded()

    assert in_thread(off) is False
    assert recorded()


def test_a_decorated_function_may_run_in_two_threads_at_once() -> None:
    """With the mode to restore kept on the decorator, the second to leave would get it wrong."""
    first_in, second_in = threading.Event(), threading.Event()

    @mr.no_grad()
    def wait(mine: threading.Event, other: threading.Event) -> None:
        mine.set()
        assert other.wait(10)

    def starts_recording() -> bool:
        wait(first_in, second_in)
        return mr.is_grad_enabled()

    def starts_silent() -> bool:
        mr.set_grad_enabled(False)
        assert first_in.wait(10)
        wait(second_in, first_in)
        return mr.is_grad_enabled()

    results: dict[str, bool] = {}
    threads = [
        threading.Thread(target=lambda f=f: results.update({f.__name__: f()}))
        for f in (starts_recording, starts_silent)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"starts_recording": True, "starts_silent": False}


def test_backward_in_another_thread() -> None:
    x = mr.Tensor([3.0], requires_grad=True)
    y = (x * x).sum()
    in_thread(y.backward)
    assert x.grad.tolist() == [6]
    assert recorded()
