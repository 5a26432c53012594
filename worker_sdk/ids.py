"""Job ids: UUIDs of version 7, made by the client, in the order in which they were made."""

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID, SafeUUID

import msgspec

from worker_sdk.errors import InvalidRequest

AnyId = UUID | str
"""An id as the public API takes it."""

_COUNT_BITS: Final = 14
_RANDOM_BITS: Final = 48
_LAST_COUNT: Final = (1 << _COUNT_BITS) - 1

_new_object = object.__new__
_plain = msgspec.to_builtins
# The slots of UUID, set as its own __init__ does, whose checks take longer than all the rest.
_set_int = UUID.int.__set__  # type: ignore[attr-defined, misc]
_set_is_safe = UUID.is_safe.__set__  # type: ignore[attr-defined, misc]
_IS_SAFE_UNKNOWN = SafeUUID.unknown


class IdMaker:
    """Makes ids that only ever grow, also when the clock steps back.

    An id is ``ms (48 bits) | 7 | block (12) | 0b10 | count (14) | random (48)``. Milliseconds and
    block are one number that only grows: each millisecond starts at a random block in the lower
    half of its range, and when a block's counts are used up the next block follows, carrying into
    the milliseconds if it must.
    """

    def __init__(
        self,
        clock_ns: Callable[[], int] = time.time_ns,
        random_bits: Callable[[int], int] | None = None,
    ) -> None:
        self._clock_ns = clock_ns
        self._random_bits = random_bits or random.Random(os.urandom(32)).getrandbits
        # Only for the change to a new block. Counting needs no lock (it would take a third of the
        # time): a block's counter gives each number once, whichever threads share it.
        self._lock = threading.Lock()
        self._newest_block = 0
        # The present block: an id's bits above the count, its counter, when its ms are over.
        self._block: tuple[int, Callable[[], int], int] = (0, itertools.count().__next__, 0)

    def next_int(self) -> int:
        """The next id as a 128-bit number."""
        while True:
            block = self._block
            head, next_count, until_ns = block
            if self._clock_ns() < until_ns and (count := next_count()) <= _LAST_COUNT:
                return head | count << _RANDOM_BITS | self._random_bits(_RANDOM_BITS)
            self._leave(block)

    def _leave(self, block: tuple[int, Callable[[], int], int]) -> None:
        with self._lock:
            if self._block is not block:
                return  # another thread was faster
            now_ms = self._clock_ns() // 1_000_000
            number = max(now_ms << 12 | self._random_bits(11), self._newest_block + 1)
            self._newest_block = number
            ms, low = number >> 12, number & 0xFFF
            head = ms << 80 | 7 << 76 | low << 64 | 0b10 << 62
            start = self._random_bits(_COUNT_BITS - 1)
            self._block = (head, itertools.count(start).__next__, (ms + 1) * 1_000_000)


_next_int = IdMaker().next_int


def _start_anew() -> None:
    """A forked child must neither repeat its parent's ids nor find its lock held."""
    global _next_int
    _next_int = IdMaker().next_int


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def new_uuid() -> UUID:
    """A new id, greater than all that this process made before. About 0.5 µs."""
    new = _new_object(UUID)
    _set_int(new, _next_int())
    _set_is_safe(new, _IS_SAFE_UNKNOWN)
    return new


def new_id() -> str:
    """A new id in the wire's form, greater than all that this process made before."""
    text: str = _plain(new_uuid())
    return text


def as_uuid(id: AnyId) -> UUID:
    """The id as a UUID; InvalidRequest naming it if it is none."""
    if type(id) is UUID:
        return id
    if isinstance(id, str):
        try:
            return msgspec.convert(id, UUID)
        except msgspec.ValidationError:
            raise InvalidRequest(f"{id!r} is not a job id: an id is a UUID") from None
    if isinstance(id, UUID):
        return id
    raise InvalidRequest(
        f"{id!r} is not a job id: expected a UUID or its text, not {type(id).__name__}"
    )


def as_text(id: AnyId) -> str:
    """The id in the wire's form (lower case, with hyphens); InvalidRequest as of `as_uuid`."""
    text: str = _plain(as_uuid(id))
    return text


def as_texts(ids: Iterable[AnyId]) -> tuple[str, ...]:
    """All ids in the wire's form, each once, in the order given."""
    return tuple(dict.fromkeys(map(as_text, ids)))
