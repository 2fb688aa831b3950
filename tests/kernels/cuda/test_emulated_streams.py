"""The emulator's streams: one thread hands them work while another waits for it."""

from __future__ import annotations

import queue
import sys
import threading

from minires.kernels.cuda.emulate_cuda import Event, Stream


def test_what_an_event_stands_for_is_done_when_it_is_waited_for() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns in the middle of everything
    stream, done = Stream(), []
    given: queue.Queue[tuple[int, Event]] = queue.Queue()

    def hand_over() -> None:
        for i in range(3000):
            stream.add(lambda i=i: done.append(i))  # type: ignore[misc]
            given.put((i, stream.record(Event())))

    thread = threading.Thread(target=hand_over)
    try:
        thread.start()
        for _ in range(3000):
            i, event = given.get(timeout=30)
            event.synchronize()
            assert done[-1] >= i
    finally:
        thread.join()
        sys.setswitchinterval(interval)
    assert done == list(range(3000))
