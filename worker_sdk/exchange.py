"""Requests and their answers over one connection: what to send, when to send it again, when to
give up.

No sockets, no clock, no threads: ``now`` is an argument, frames come in and go out. A shell (the
synchronous client, the asynchronous one, a simulator) sends what ``next_to_send`` gives, reports
it with ``sent``, hands in what arrives with ``receive``, and calls ``tick`` when ``next_due`` says.

All requests may be sent again: ids are made by the client, so that nothing happens twice.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import UNSET, Raw, Struct

from worker_sdk.encoding import pack, req_of, unpack_reply
from worker_sdk.errors import (
    BrokerBusy,
    BrokerUnreachable,
    PointsmanError,
    ProtocolError,
    from_wire,
)
from worker_sdk.messages import ClientRequest, Error, Ok

FIRST_BUSY_PAUSE_S = 0.02
LONGEST_BUSY_PAUSE_S = 1.0
ASSUMED_BYTES_PER_S = 2 * 1024 * 1024
"""A large request is given this much more time: the broker's slowest measured intake, halved."""


class Call(Struct, eq=False):
    """A request on its way to its answer. The shell reads it and leaves the changes to Exchange."""

    req: int
    frames: list[bytes]
    size_bytes: int
    hold_s: float
    """How long the broker may take on purpose, over and above its work (waits)."""
    context: Any
    """Whatever the shell wants to find again when the call is settled."""
    deadline: float
    attempts: int = 0
    sent_at: float = 0.0
    patience_s: float = 0.0
    due: float = 0.0
    """When tick must look at the call next; timers with another time are out of date."""
    busy: PointsmanError | None = None
    """The newest answer `busy`."""
    busy_count: int = 0
    outcome: Ok | PointsmanError | None = None
    """Set once, when the call is settled."""


class Exchange:
    """All calls of one connection.

    ``timeout_s`` bounds the time from a request's first sending to its answer. An attempt that is
    not answered after ``patience_s`` (twice as long each time, counted from the broker's last sign
    of life) is sent again. At most ``window`` requests of ``window_bytes`` together are under way,
    those that wait on purpose not counted.
    """

    def __init__(
        self,
        endpoint: str,
        timeout_s: float,
        *,
        window: int = 64,
        window_bytes: int = 8 * 1024 * 1024,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._patience_s = min(2.5, timeout_s / 4)
        self._window = window
        self._window_bytes = window_bytes
        self._jitter = jitter
        self._last_req = 0
        # Every call that is not settled, by its number.
        self._open: dict[int, Call] = {}
        # Calls to be sent; some may have been settled meanwhile.
        self._outbox: deque[Call] = deque()
        # Calls whose newest attempt has been sent and not answered, oldest first.
        self._under_way: dict[int, Call] = {}
        # Of those, the ones that count against the window.
        self._in_window = 0
        self._in_window_bytes = 0
        self._timers: list[tuple[float, int]] = []
        self._last_heard = float("-inf")
        # The newest message that was none, and belonged to no call that could be made out.
        self._garbage: ProtocolError | None = None

    def start(
        self, message: ClientRequest, now: float, *, hold_s: float = 0.0, context: Any = None
    ) -> Call:
        """A new call, ready to be sent."""
        self._last_req += 1
        message.req = Raw(b"%d" % self._last_req)
        frames = pack(message)
        size_bytes = sum(map(len, frames))
        deadline = now + self.timeout_s
        call = Call(self._last_req, frames, size_bytes, hold_s, context, deadline)
        self._open[call.req] = call
        self._outbox.append(call)
        self._look_again(call, call.deadline)
        return call

    def next_to_send(self) -> Call | None:
        """The call whose frames are to be sent now, if there is one and the window is open."""
        while self._outbox and self._outbox[0].outcome is not None:
            self._outbox.popleft()
        if not self._outbox:
            return None
        call = self._outbox[0]
        if call.hold_s or not self._in_window:
            return call
        if self._in_window >= self._window:
            return None
        return call if self._in_window_bytes + call.size_bytes <= self._window_bytes else None

    def sent(self, call: Call, now: float) -> None:
        """The call that ``next_to_send`` gave has been sent."""
        self._outbox.popleft()
        extra_s = call.hold_s + call.size_bytes / ASSUMED_BYTES_PER_S
        if not call.attempts:
            call.deadline = now + self.timeout_s + extra_s
        call.patience_s = self._patience_s * 2**call.attempts + extra_s
        call.attempts += 1
        call.sent_at = now
        self._under_way[call.req] = call
        if not call.hold_s:
            self._in_window += 1
            self._in_window_bytes += call.size_bytes
        self._look_again(call, now + call.patience_s)

    def receive(self, frames: Sequence[bytes], now: float) -> Call | None:
        """Take what arrived; the call that it settled, if it settled one.

        Late and repeated answers are dropped. An answer without a number, or one that cannot be
        read, is taken for that of the only call under way if there is only one.
        """
        self._last_heard = now
        outcome: Ok | PointsmanError
        try:
            reply = unpack_reply(frames)
        except ProtocolError as error:
            outcome, req = error, req_of(frames)
        else:
            outcome = from_wire(reply) if isinstance(reply, Error) else reply
            req = None if reply.req is UNSET else _number(reply.req)
        call = self._sole_under_way() if req is None else self._open.get(req)
        if call is None:
            if isinstance(outcome, ProtocolError):
                self._garbage = outcome
            return None
        if isinstance(outcome, BrokerBusy):
            self._put_off(call, outcome, now)
            return None
        return self._settle(call, outcome)

    def tick(self, now: float) -> list[Call]:
        """Do what is due; the calls that were given up."""
        given_up: list[Call] = []
        again: list[Call] = []
        while self._timers and self._timers[0][0] <= now:
            due, req = heapq.heappop(self._timers)
            call = self._open.get(req)
            if call is None or call.due != due:
                continue
            if now >= call.deadline:
                # What has not even been sent waits behind others: no fault of the broker's as
                # long as that answers those.
                if not call.attempts and self._last_heard + self.timeout_s > now:
                    call.deadline = self._last_heard + self.timeout_s
                    self._look_again(call, call.deadline)
                else:
                    given_up.append(self._settle(call, self._why_given_up(call)))
            elif call.req not in self._under_way:
                again.append(call)
                self._look_again(call, call.deadline)
            elif (again_at := self._again_at(call)) > now:
                self._look_again(call, again_at)
            else:
                self._take_back(call)
                again.append(call)
                self._look_again(call, call.deadline)
        self._put_in_front(again)
        return given_up

    def next_due(self) -> float | None:
        """When to call ``tick`` at the latest."""
        return self._timers[0][0] if self._timers else None

    def disconnected(self) -> None:
        """The connection broke: what was under way is lost, and goes out again before the rest."""
        lost = list(self._under_way.values())
        for call in lost:
            self._take_back(call)
            self._look_again(call, call.deadline)
        self._put_in_front(lost)

    def is_under_way(self, call: Call) -> bool:
        """Whether an answer to the call is to be expected."""
        return call.req in self._under_way

    def abandon(self, call: Call, why: PointsmanError) -> None:
        """Nobody waits for the call any longer."""
        if call.outcome is None:
            self._settle(call, why)

    def abandon_all(self, why: PointsmanError) -> list[Call]:
        """Settle all calls with ``why``; those calls."""
        return [self._settle(call, why) for call in list(self._open.values())]

    def _again_at(self, call: Call) -> float:
        """When to send the call again.

        As long as the broker answers other calls it is at work, and sending the same again would
        only add to that; but an answer may be lost alone, so there is an end to such patience.
        """
        patient = min(self._last_heard + self._patience_s, call.sent_at + 4 * call.patience_s)
        return max(call.sent_at + call.patience_s, patient)

    def _put_in_front(self, calls: list[Call]) -> None:
        """What was sent before goes out again before what was not, in the order of its start."""
        self._outbox.extendleft(sorted(calls, key=lambda call: call.req, reverse=True))

    def _put_off(self, call: Call, busy: BrokerBusy, now: float) -> None:
        if call.req not in self._under_way:
            return  # a second answer to the same request, which waits already
        self._take_back(call)
        call.busy = busy
        pause_s = min(FIRST_BUSY_PAUSE_S * 2.0**call.busy_count, LONGEST_BUSY_PAUSE_S)
        call.busy_count = min(call.busy_count + 1, 60)
        self._look_again(call, now + pause_s * (0.5 + self._jitter()))

    def _settle(self, call: Call, outcome: Ok | PointsmanError) -> Call:
        del self._open[call.req]
        self._take_back(call)
        call.outcome = outcome
        return call

    def _take_back(self, call: Call) -> None:
        if self._under_way.pop(call.req, None) is not None and not call.hold_s:
            self._in_window -= 1
            self._in_window_bytes -= call.size_bytes

    def _look_again(self, call: Call, at: float) -> None:
        call.due = min(at, call.deadline)
        heapq.heappush(self._timers, (call.due, call.req))
        if len(self._timers) > 1000 + 4 * len(self._open):  # mostly timers of settled calls
            self._timers = [(each.due, req) for req, each in self._open.items()]
            heapq.heapify(self._timers)

    def _sole_under_way(self) -> Call | None:
        return next(iter(self._under_way.values())) if len(self._under_way) == 1 else None

    def _why_given_up(self, call: Call) -> PointsmanError:
        if call.busy is not None:
            return call.busy
        if self._garbage is not None:
            return self._garbage
        return BrokerUnreachable(f"no broker answered at {self.endpoint} in {self.timeout_s:g} s")


def _number(req: Raw) -> int | None:
    try:
        return int(bytes(req))
    except ValueError:
        return None
