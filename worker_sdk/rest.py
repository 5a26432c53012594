"""Where a thread rests until it is called."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable
from math import ceil

_LONGEST_S = 3600.0


class Rest:
    """A thread's place to rest until another one calls it, or one of `descriptors` is readable.

    A call is never missed: made while the thread is awake, it ends the thread's next rest.
    """

    def __init__(self, descriptors: Iterable[int] = ()) -> None:
        self._call_in, self._call_out = os.pipe()
        os.set_blocking(self._call_in, False)
        os.set_blocking(self._call_out, False)
        self._calls_only = select.poll()
        self._calls_only.register(self._call_in, select.POLLIN)
        self._everything = select.poll()
        self._everything.register(self._call_in, select.POLLIN)
        for descriptor in descriptors:
            self._everything.register(descriptor, select.POLLIN)

    def call(self) -> None:
        """End this rest, or the next one; from any thread or signal handler."""
        # A full pipe holds calls enough; a closed one has nobody resting any more.
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._call_out, b"\0")

    def rest(self, *, watching: bool = False, until_s: float | None = None) -> list[int]:
        """Rest for so many seconds at most; `watching`: the descriptors end it too.

        Gives those that are readable.
        """
        until_s = _LONGEST_S if until_s is None else min(until_s, _LONGEST_S)
        poll = self._everything if watching else self._calls_only
        readable = [descriptor for descriptor, _ in poll.poll(max(0, ceil(until_s * 1000)))]
        if self._call_in in readable:
            os.read(self._call_in, 4096)
        return readable

    def close(self) -> None:
        """Give the descriptors back; nobody may rest here any more."""
        out, self._call_out = self._call_out, -1
        if out >= 0:
            os.close(out)
            os.close(self._call_in)
