"""Outcomes on their way to the broker: sent in batches, kept until answered, sent again if not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from msgspec import Raw

from worker_sdk.messages import Assignment, Error, Fail, Failure, Finish, Outcome

BUSY_RETRY_S = 1.0
"""How long to wait before sending again what the broker refused with ``busy`` or ``internal``."""
ENVELOPE_BYTES = 256
"""More than what surrounds an outcome's JSON in its message, and a message's list in its frame."""
BATCH_JOBS = 4096
"""The most outcomes in one message."""

_TRY_AGAIN = frozenset({"busy", "internal"})
_ATTEMPT_IS_OVER = frozenset({"not_running", "canceled", "not_exist"})

Ending = Outcome | Failure
Item = TypeVar("Item")


class Refused(NamedTuple):
    """An outcome that the broker did not take."""

    ending: Ending
    code: str
    message: str


class Batch(NamedTuple):
    """Outcomes that were sent in one message and are not answered yet."""

    endings: Sequence[Ending]
    sent: float


class Numbers:
    """The values of ``req`` on one connection after the other: no two are the same."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> Raw:
        """A new value."""
        self._last += 1
        return Raw(b"%d" % self._last)


class Delivery:
    """The outcomes that the broker has not confirmed yet.

    `held` is shared with the agent: an outcome stands there in its attempt's place for as long as
    it is under way, and nothing but that place says whether it still is.
    """

    def __init__(self, held: dict[str, Assignment | Ending], numbers: Numbers) -> None:
        self._held = held
        self._numbers = numbers
        # Outcomes that came to nothing; the driver takes them away.
        self.refused: list[Refused] = []
        # What waits to be sent, and no more than how many bytes that will be.
        self._finished: list[Outcome] = []
        self._failed: list[Failure] = []
        self._unsent_bytes = 0
        # What waits for its answer, by the `req` of its message, oldest first.
        self._sent: dict[bytes, Batch] = {}
        # The ids of what is being sent for the second time or more.
        self._again: set[str] = set()
        # What the broker could not take when it came, and when it is sent again.
        self._postponed: list[Ending] = []
        self.due = float("inf")

    def __bool__(self) -> bool:
        return bool(self._finished or self._failed)

    def finish(self, outcome: Outcome) -> None:
        """Take in an attempt that succeeded."""
        self._held[outcome.id] = outcome
        self._finished.append(outcome)
        self._unsent_bytes += len(outcome.result) + ENVELOPE_BYTES

    def fail(self, failure: Failure) -> None:
        """Take in an attempt that failed."""
        self._held[failure.id] = failure
        self._failed.append(failure)
        self._unsent_bytes += _failure_bytes(failure)

    def messages(self, limit_bytes: int, now: float) -> list[Finish | Fail]:
        """What is to be sent now, each message within the broker's limit."""
        made: list[Finish | Fail] = []
        if self._unsent_bytes <= limit_bytes - ENVELOPE_BYTES:
            limit_bytes = 0  # all fits: no need to look
        if self._finished:
            finished, self._finished = self._finished, []
            for outcomes in split(finished, _outcome_bytes, limit_bytes):
                req = self._register(outcomes, now)
                made.append(Finish(jobs=tuple(outcomes), req=req))
        if self._failed:
            failed, self._failed = self._failed, []
            for failures in split(failed, _failure_bytes, limit_bytes):
                req = self._register(failures, now)
                made.append(Fail(jobs=tuple(failures), req=req))
        self._unsent_bytes = 0
        return made

    def confirm(self, req: bytes) -> bool:
        """The broker has committed the outcomes of a message; false if it is none of these."""
        batch = self._sent.pop(req, None)
        if batch is None:
            return False
        self._settle(batch.endings)
        return True

    def refuse(self, req: bytes, error: Error, now: float) -> bool:
        """The broker has refused a message, as far as its ids say; false if it is none of these."""
        batch = self._sent.pop(req, None)
        if batch is None:
            return False
        codes = code_by_id(error)
        for ending in batch.endings:
            code = codes.get(ending.id) if error.ids else error.code
            if code is None:
                self._settle([ending])
            elif code in _TRY_AGAIN:
                self._postponed.append(ending)
                self.due = min(self.due, now + BUSY_RETRY_S)
            else:
                self._give_up(ending, code, error.message)
        return True

    def take_back(self) -> None:
        """What was sent without an answer is to be sent again."""
        for batch in self._sent.values():
            self._again.update(ending.id for ending in batch.endings)
            self._requeue(batch.endings)
        self._sent.clear()

    def tick(self, now: float, answer_limit_s: float) -> None:
        """Queue again what was postponed until now, and what has waited too long for an answer."""
        if now >= self.due:
            postponed, self._postponed = self._postponed, []
            self.due = float("inf")
            self._requeue(postponed)
        if self._sent and now - next(iter(self._sent.values())).sent > answer_limit_s:
            self.take_back()

    def _register(self, endings: Sequence[Ending], now: float) -> Raw:
        req = self._numbers.next()
        self._sent[bytes(req)] = Batch(endings, now)
        return req

    def _settle(self, endings: Sequence[Ending]) -> None:
        held = self._held
        for ending in endings:
            if held.get(ending.id) is ending:
                del held[ending.id]
        if self._again:
            self._again.difference_update(ending.id for ending in endings)

    def _give_up(self, ending: Ending, code: str, message: str) -> None:
        arrived_before = code == "not_running" and ending.id in self._again
        is_held = self._held.get(ending.id) is ending
        self._settle([ending])
        if not is_held or arrived_before:
            return
        self.refused.append(Refused(ending, code, message))
        if code not in _ATTEMPT_IS_OVER and isinstance(ending, Outcome):
            # The attempt still runs as far as the broker knows, and this result will never do.
            reason = f"the broker refused the result: {message}"
            self.fail(Failure(ending.id, ending.attempt, reason, retry=False))

    def _requeue(self, endings: Sequence[Ending]) -> None:
        for ending in endings:
            if self._held.get(ending.id) is not ending:
                continue
            if isinstance(ending, Outcome):
                self.finish(ending)
            else:
                self.fail(ending)


def code_by_id(error: Error) -> dict[str, str]:
    """The code of each job that an error names: its own, if they are not all at fault alike."""
    return dict(zip(error.ids, error.codes or [error.code] * len(error.ids), strict=False))


def _outcome_bytes(outcome: Outcome) -> int:
    return len(outcome.result) + ENVELOPE_BYTES


def _failure_bytes(failure: Failure) -> int:
    # A character takes six bytes at most: \\u0000.
    return 6 * len(failure.error) + ENVELOPE_BYTES


def split(
    items: list[Item], size_bytes: Callable[[Item], int], limit_bytes: int
) -> Iterator[list[Item]]:
    """Cut a list into parts that fit into a message each; at limit 0 only their number counts."""
    if not limit_bytes and len(items) <= BATCH_JOBS:
        if items:
            yield items
        return
    part: list[Item] = []
    part_bytes = ENVELOPE_BYTES
    for item in items:
        item_bytes = size_bytes(item)
        too_large = limit_bytes and part_bytes + item_bytes > limit_bytes
        if part and (too_large or len(part) >= BATCH_JOBS):
            yield part
            part = []
            part_bytes = ENVELOPE_BYTES
        part.append(item)
        part_bytes += item_bytes
    if part:
        yield part
