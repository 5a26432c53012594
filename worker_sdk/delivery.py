"""Outcomes on their way to the broker: sent in batches, kept until confirmed, sent again if not.

A message is confirmed by the broker's answer to it, or to a later one on the same connection: the
broker works in order. So not every message needs to ask for an answer, which costs both sides the
time of a message: it is enough to ask now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from msgspec import UNSET, Raw, UnsetType

from worker_sdk.messages import Assignment, Error, Fail, Failure, Finish, Outcome, Step

BUSY_RETRY_S = 1.0
"""How long to wait before sending again what the broker refused with ``busy`` or ``internal``."""
ENVELOPE_BYTES = 256
"""More than what surrounds an outcome's JSON in its message, and a message's list in its frame."""
LONE_ENVELOPE_BYTES = 2 * ENVELOPE_BYTES
"""What an outcome that is alone in its message takes of the broker's limit besides its JSON."""
BATCH_JOBS = 4096
"""The most outcomes in one message."""
UNASKED_JOBS = 4096
"""The most outcomes on their way without having asked for an answer."""
UNASKED_BYTES = 65_536
"""A message of more than this asks for an answer of its own."""
NEVER = float("inf")
"""When something is due that is not to happen."""

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

    def __init__(
        self, held: dict[str, Assignment | Ending], numbers: Numbers, confirm_interval_s: float
    ) -> None:
        self._held = held
        self._numbers = numbers
        # How long outcomes may be under way without having asked for an answer; 0: always ask.
        self.confirm_interval_s = confirm_interval_s
        # Sent like that, in order, and when to ask after them.
        self._unasked: list[Ending] = []
        self._ask_at = NEVER
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
        self._postponed_until = NEVER

    def __bool__(self) -> bool:
        return bool(self._finished or self._failed)

    @property
    def due(self) -> float:
        """When `tick` has something to do at the latest."""
        return min(self._postponed_until, self._ask_at)

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
                req = self._register(outcomes, self._unsent_bytes, now)
                made.append(Finish(jobs=tuple(outcomes), req=req))
        if self._failed:
            failed, self._failed = self._failed, []
            for failures in split(failed, _failure_bytes, limit_bytes):
                req = self._register(failures, self._unsent_bytes, now)
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
            else:
                self._refuse_one(ending, code, error, now)
        return True

    def refuse_unasked(self, error: Error, now: float) -> None:
        """The broker has refused outcomes that had not asked for an answer."""
        codes = code_by_id(error)
        for id, code in codes.items():
            ending = self._held.get(id)
            if isinstance(ending, Ending):
                self._refuse_one(ending, code, error, now)
        if not codes:
            # It does not say which: all go again, after a while.
            self._again.update(ending.id for ending in self._unasked)
            self._postponed.extend(self._unasked)
            self._postponed_until = min(self._postponed_until, now + BUSY_RETRY_S)
            self._unasked = []
            self._ask_at = NEVER

    def _refuse_one(self, ending: Ending, code: str, error: Error, now: float) -> None:
        if code in _TRY_AGAIN:
            self._postponed.append(ending)
            self._postponed_until = min(self._postponed_until, now + BUSY_RETRY_S)
        elif ending.id in error.recorded:
            self._settle([ending])  # it had arrived before
        else:
            self._give_up(ending, code, error.message)

    def take_back(self) -> None:
        """What was sent without an answer is to be sent again."""
        for batch in self._sent.values():
            self._again.update(ending.id for ending in batch.endings)
            self._requeue(batch.endings)
        self._sent.clear()
        unasked, self._unasked = self._unasked, []
        self._ask_at = NEVER
        self._again.update(ending.id for ending in unasked)
        self._requeue(unasked)

    def question(self, now: float) -> Finish | None:
        """A message that asks after what is under way, if it is time to."""
        if not self._unasked or now < self._ask_at:
            return None
        return Finish(jobs=(), req=self._register((), 0, now))

    def ask_at_once(self) -> None:
        """Ask after what is under way, and from now on with every message."""
        self.confirm_interval_s = 0.0
        if self._unasked:
            self._ask_at = 0.0

    def tick(self, now: float, answer_limit_s: float) -> None:
        """Queue again what was postponed until now, and what has waited too long for an answer."""
        if now >= self._postponed_until:
            postponed, self._postponed = self._postponed, []
            self._postponed_until = NEVER
            self._requeue(postponed)
        if self._sent and now - next(iter(self._sent.values())).sent > answer_limit_s:
            self.take_back()

    def _register(self, endings: Sequence[Ending], size_bytes: int, now: float) -> Raw | UnsetType:
        """Note what goes out; give the `req` that it is to ask with, if it is."""
        unasked = self._unasked
        unasked.extend(endings)
        if self._ask_at == NEVER:
            self._ask_at = now + self.confirm_interval_s
        if now < self._ask_at and len(unasked) < UNASKED_JOBS and size_bytes < UNASKED_BYTES:
            return UNSET
        req = self._numbers.next()
        self._sent[bytes(req)] = Batch(unasked, now)
        self._unasked = []
        self._ask_at = NEVER
        return req

    def _settle(self, endings: Sequence[Ending]) -> None:
        held = self._held
        for ending in endings:
            if held.get(ending.id) is ending:
                del held[ending.id]
        if self._again:
            self._again.difference_update(ending.id for ending in endings)

    def _give_up(self, ending: Ending, code: str, message: str) -> None:
        # Of a failure that is followed by another attempt, the broker cannot tell.
        may_have_arrived = isinstance(ending, Failure) and ending.id in self._again
        is_held = self._held.get(ending.id) is ending
        self._settle([ending])
        if not is_held or (code == "not_running" and may_have_arrived):
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


def step_bytes(step: Step) -> int:
    """How many bytes a progress report takes in its message, or a few more."""
    return len(step.value) + ENVELOPE_BYTES


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
