"""How the broker's loop waits: for messages, for a time, and for calls from other threads."""

from __future__ import annotations

import contextlib
import math
import os
import select
from time import monotonic

import zmq

_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)


class Watch:
    """Waits until the socket has input, a call comes or a time has come.

    It waits awake for up to `busy_poll_s` before it sleeps, if its last wait was over in less:
    a thread that sleeps is woken 30 to 100 us late, and the processor that slept with it wakes
    late for everybody. An idle broker, or one with little to do, sleeps all the same.
    """

    def __init__(self, socket: zmq.Socket[bytes], busy_poll_s: float) -> None:
        self._busy_poll_s = busy_poll_s
        self._wakeup = Wakeup()
        # The bare descriptors: zmq.Poller asks each socket twice more, at a system call each. Such
        # a descriptor tells only what is new since its socket was asked, so that comes first.
        self._sockets: list[zmq.Socket[bytes]] = []
        self._poll = select.poll()
        self._poll.register(self._wakeup.fd, select.POLLIN)
        self.also(socket)
        # How long the last wait took.
        self._last_s = math.inf

    def also(self, socket: zmq.Socket[bytes]) -> None:
        """Have input of another socket end a wait too."""
        self._sockets.append(socket)
        self._poll.register(int(socket.fd), select.POLLIN)

    def _has_input(self) -> bool:
        for socket in self._sockets:  # noqa: SIM110 - a generator costs more than the look
            if int(socket.getsockopt(_EVENTS)) & _POLLIN:
                return True
        return False

    def wait(self, until: float | None) -> None:
        """Wait; not beyond the monotonic time `until`."""
        if self._has_input():
            return
        start = monotonic()
        if self._last_s < self._busy_poll_s:
            awake_until = start + self._busy_poll_s
            if until is not None:
                awake_until = min(awake_until, until)
            while not self._has_input():
                now = monotonic()
                if now >= awake_until:
                    self._last_s = math.inf
                    break
            else:
                return
        timeout_ms = None
        if until is not None:
            timeout_ms = max(0, math.ceil((until - monotonic()) * 1000))
        for descriptor, _ in self._poll.poll(timeout_ms):
            if descriptor == self._wakeup.fd:
                self._wakeup.clear()
        self._last_s = monotonic() - start

    def call(self) -> None:
        """End the wait, or the next one; from any thread, and from signal handlers."""
        self._wakeup.call()

    def close(self) -> None:
        """Let go of the descriptors; the socket is not this one's to close."""
        self._wakeup.close()


class Wakeup:
    """Wakes a loop that polls `fd`; may be called from any thread and from signal handlers."""

    def __init__(self) -> None:
        self.fd, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

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
