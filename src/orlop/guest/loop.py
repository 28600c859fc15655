"""The event loop: epoll, timers, and word of ended children. It sleeps whenever nothing happens.

A callback that raises must not end process 1 of the VM: the exception goes to ``on_error``.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import time
from collections.abc import Callable

IN = select.EPOLLIN
OUT = select.EPOLLOUT
EDGE = select.EPOLLET

Callback = Callable[[int], None]


class Timer:
    """A call that is due at a time of the monotonic clock; :meth:`cancel` takes it back."""

    def __init__(self, due: float, action: Callable[[], None]) -> None:
        self.due = due
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Do not call. Idempotent."""
        self.action = None

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due


class Loop:
    """Calls back when descriptors are ready, time has come, or children have ended."""

    def __init__(self, on_error: Callable[[str], None]) -> None:
        self._on_error = on_error
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[Timer] = []
        self._soon: list[Callable[[], None]] = []
        self._running = False

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call ``callback(events)`` whenever ``fd`` is ready. Watching again changes events and callback."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching; to be called before ``fd`` is closed. Idempotent."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def watch_children(self, callback: Callable[[], None]) -> None:
        """Call back when a child may have ended."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def on_signal(events: int) -> None:
            os.read(reader, 4096)
            callback()

        self.watch(reader, IN, on_signal)

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call ``action`` once, in ``seconds``."""
        timer = Timer(time.monotonic() + seconds, action)
        heapq.heappush(self._timers, timer)
        return timer

    def call_soon(self, action: Callable[[], None]) -> None:
        """Call ``action`` after the callbacks of this round."""
        self._soon.append(action)

    def run(self) -> None:
        """Run until :meth:`stop`."""
        self._running = True
        while self._running:
            self.run_once(None)

    def stop(self) -> None:
        """Return from :meth:`run` after this round."""
        self._running = False

    def run_once(self, limit: float | None) -> None:
        """Wait for something to happen, at most ``limit`` seconds, and serve it."""
        try:
            ready = self._epoll.poll(self._timeout(limit))
        except InterruptedError:
            ready = []
        for fd, events in ready:
            callback = self._callbacks.get(fd)
            if callback is not None:
                self._guard(lambda callback=callback, events=events: callback(events))  # type: ignore[misc]
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            action = heapq.heappop(self._timers).action
            if action is not None:
                self._guard(action)
        while self._soon:
            soon, self._soon = self._soon, []
            for action in soon:
                self._guard(action)

    def _timeout(self, limit: float | None) -> float | None:
        if self._soon:
            return 0
        while self._timers and self._timers[0].action is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return limit
        wait = max(0.0, self._timers[0].due - time.monotonic())
        return wait if limit is None else min(wait, limit)

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            import traceback

            self._on_error(traceback.format_exc())
