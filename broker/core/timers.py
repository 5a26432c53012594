"""Everything that waits for a time, in one heap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

from msgspec import Struct


class Timer(Struct, eq=False):
    """One wait: what to call, once, when its time has come."""

    at: float
    call: Callable[[], None] | None
    """None once it has fired or was canceled."""


class Timers:
    """A heap of timers, by monotonic time in seconds. Setting and firing cost O(log n).

    A canceled timer stays in the heap until its time, or until canceled ones are the larger half:
    then they are swept out together, so that canceling costs O(1) on average.
    """

    def __init__(self) -> None:
        # The number behind the time keeps timers of one moment in the order they were set.
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._canceled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._canceled

    def set(self, at: float, call: Callable[[], None]) -> Timer:
        """Have `call` called at the time `at`."""
        timer = Timer(at, call)
        self._count += 1
        heappush(self._heap, (at, self._count, timer))
        return timer

    def cancel(self, timer: Timer) -> None:
        """Take `timer` back; one that has fired is left alone."""
        if timer.call is None:
            return
        timer.call = None
        self._canceled += 1
        if self._canceled > 64 and self._canceled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapify(self._heap)
            self._canceled = 0

    def clear(self) -> None:
        """Take all timers back."""
        for *_, timer in self._heap:
            timer.call = None
        self._heap.clear()
        self._canceled = 0

    def next_at(self) -> float | None:
        """Give the time of the earliest timer."""
        heap = self._heap
        while heap and heap[0][2].call is None:
            heappop(heap)
            self._canceled -= 1
        return heap[0][0] if heap else None

    def due(self, now: float) -> Iterator[Callable[[], None]]:
        """Hand out what is due, earliest first; calls may set and cancel timers meanwhile."""
        while True:
            at = self.next_at()
            if at is None or at > now:
                return
            timer = heappop(self._heap)[2]
            call, timer.call = timer.call, None
            assert call is not None
            yield call
