"""How the broker's loop waits: for messages, for a time, and for calls from other threads."""

from __future__ import annotations

import contextlib
import math
import os
import select
from time import monotonic

import zmq

from worker_sdk.frames import Inputs

_LONG_S = 0.001
"""Waits longer than this count as this: one of them is soon forgotten."""


class Watch:
    """Waits until the socket has input, a call comes or a time has come.

    It waits awake for up to `busy_poll_s` before it sleeps, if its last waits were over in less:
    a thread that sleeps is woken 30 to 100 us late, and the processor that slept with it wakes
    late for everybody. An idle broker, or one with little to do, sleeps all the same. Awake, it
    lets whoever else wants the processor go first.
    """

    def __init__(self, socket: zmq.Socket[bytes], busy_poll_s: float) -> None:
        self._busy_poll_s = busy_poll_s
        self._wakeup = Wakeup()
        # The bare descriptors: zmq.Poller asks each socket twice more, at a system call each. Such
        # a descriptor tells only what is new since its socket was asked, so that comes first.
        self._inputs = Inputs()
        self._poll = select.poll()
        self._poll.register(self._wakeup.fd, select.POLLIN)
        self.also(socket)
        # How long the last waits took, the newest a quarter of it.
        self._mean_s = _LONG_S

    def also(self, socket: zmq.Socket[bytes]) -> None:
        """Have input of another socket end a wait too."""
        self._inputs.also(socket)
        self._poll.register(int(socket.fd), select.POLLIN)

    def has_input(self) -> bool:
        """Say whether a socket has input."""
        return self._inputs.has_any()

    def wait(self, until: float | None) -> None:
        """Wait; not beyond the monotonic time `until`."""
        if self.has_input():
            return
        start = monotonic()
        if self._mean_s < self._busy_poll_s and self._wait_awake(start, until):
            return
        timeout_ms = None
        if until is not None:
            timeout_ms = max(0, math.ceil((until - monotonic()) * 1000))
        for descriptor, _ in self._poll.poll(timeout_ms):
            if descriptor == self._wakeup.fd:
                self._wakeup.clear()
        self._note(monotonic() - start)

    def _wait_awake(self, start: float, until: float | None) -> bool:
        """Wait for input without sleeping; say whether it came."""
        end = start + self._busy_poll_s
        if until is not None:
            end = min(end, until)
        now = start
        while now < end:
            os.sched_yield()
            now = monotonic()
            # The descriptors first: they tell in a third of the time that there is nothing new.
            if self._poll.poll(0) and self.has_input():
                self._note(now - start)
                return True
        return False

    def _note(self, wait_s: float) -> None:
        self._mean_s += (min(wait_s, _LONG_S) - self._mean_s) / 4

    def call(self) -> None:
        """End the wait, or the next one; from any thread, and from signal handlers."""
        self._wakeup.call()

    def close(self) -> None:
        """Let go of the descriptors; the socket is not this one's to close."""
        self._wakeup.close()


class Wakeup:
    """Wakes a loop that polls `fd`; may be called from any thread and from signal handlers."""

    def __init__(self) -> None:
        self.fd, self._writer = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._writer, False)

    def call(self) -> None:
        """Wake the loop; without effect once it is closed."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._writer, b"!")

    def clear(self) -> None:
        """Take note of all calls so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, 4096):
                pass

    def close(self) -> None:
        """Let go of the pipe."""
        writer, self._writer = self._writer, -1
        os.close(writer)
        os.close(self.fd)
