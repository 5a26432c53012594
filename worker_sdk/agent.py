"""A worker's side of the protocol as a state machine, without sockets, clocks or threads.

Events go in by methods (a connection came or went, a message arrived, time passed, an attempt
ended); what is to be done comes out in a few public collections, which whoever drives the agent
empties after each event: messages to send, attempts to start, attempts to stop.

What it holds to, whatever is lost, late or sent twice:

- Every attempt it was given stays in its hands until the broker has confirmed the outcome or has
  said that the attempt is over, and each ``hello`` names all of them.
- An outcome is sent again after each reconnect until it is answered. If the broker then says
  ``not_running`` and that it is ``recorded``, it had arrived the first time.
- Jobs that arrive before a connection's ``welcome`` were given to the connection before it; the
  broker took them back when it read the ``hello``, so they are not started, but handed back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from msgspec import UNSET, Raw

from worker_sdk.delivery import NEVER, Delivery, Ending, Numbers, Refused, split, step_bytes
from worker_sdk.heartbeats import next_beat
from worker_sdk.messages import (
    DEFAULT_CHANNEL,
    DEFAULT_MESSAGE_LIMIT_BYTES,
    Assignment,
    Bye,
    CancelRunning,
    Claim,
    Error,
    Failure,
    Heartbeat,
    Hello,
    Jobs,
    Ok,
    Outcome,
    Progress,
    Release,
    Step,
    Welcome,
    WorkerEvent,
    WorkerRequest,
)

HELLO_RETRY_FIRST_S = 1.0
HELLO_RETRY_LIMIT_S = 10.0
PROGRESS_INTERVAL_S = 0.05
"""Progress reports within this time go as one message, of each attempt the newest."""

Reply = Ok | Error | Jobs | Heartbeat


class Link(Enum):
    """How far the agent has come with its present connection."""

    AWAY = "away"
    """There is none."""
    GREETING = "greeting"
    """Hello was said and not answered yet."""
    WELCOMED = "welcomed"
    LEFT = "left"
    """Bye was said and answered; nothing follows."""


class Stopped(NamedTuple):
    """An attempt that is no longer this worker's, before it had an outcome."""

    assignment: Assignment
    reason: str
    """As in the message ``cancel``."""


class Agent:
    """One worker's side of the protocol. `session` is unique to this worker, over all reconnects.

    Methods take `now` in seconds of a clock that never goes back. The cost of a job, from its
    arrival to the confirmation of its outcome, is that of a few dict operations.
    """

    def __init__(
        self,
        *,
        types: Iterable[str],
        session: str,
        channels: Iterable[str] = (DEFAULT_CHANNEL,),
        name: str = "",
        credit: int = 0,
        confirm_interval_s: float = 0.0,
    ) -> None:
        self.types = tuple(types)
        self.channels = tuple(channels)
        self.session = session
        self.name = name

        # What the driver takes away after each event:
        # messages for the present connection, in order;
        self.outbox: list[WorkerRequest] = []
        # attempts to start, in order, each only if `holds` is true when its turn comes;
        self.ready: deque[Assignment] = deque()
        # attempts to stop, whether started or not;
        self.stopped: list[Stopped] = []
        # answers to `request`, by its key;
        self.replies: dict[bytes, Reply] = {}
        # set when the connection is of no use any more: the driver opens another one;
        self.reconnect = False
        # set when the broker refuses this worker for good.
        self.fault: Error | None = None

        self.link = Link.AWAY
        # What the last welcome said; before the first, values that do no harm.
        self.broker_version = ""
        self.heartbeat_s = 1.0
        self.heartbeat_limit_s = NEVER
        self.message_limit_bytes = DEFAULT_MESSAGE_LIMIT_BYTES

        self._numbers = Numbers()
        # Whether this connection has had a welcome: from then on its jobs are meant.
        self._introduced = False
        # The `req` of this connection's hello, when it is said again, and how long after that.
        self._greeting = b""
        self._hello_due = NEVER
        self._hello_wait_s = HELLO_RETRY_FIRST_S
        # When the broker was heard last, when something was sent last, and when a heartbeat was.
        self._heard = 0.0
        self._spoke = 0.0
        self._beat = 0.0
        # How many jobs the worker wants to hold at most, and what the broker knows of it.
        self._credit = credit
        self._credit_told = -1
        # All that is in this worker's hands: id -> the attempt until it has an outcome, then the
        # outcome until the broker has confirmed it.
        self._held: dict[str, Assignment | Ending] = {}
        self._delivery = Delivery(self._held, self._numbers, confirm_interval_s)
        # Attempts that go back unstarted as soon as the broker can be told.
        self._released: list[Claim] = []
        # The newest progress of each attempt that was not sent yet, and when it may be.
        self._progress: dict[str, Step] = {}
        self._progress_due = 0.0
        # Requests that wait for their answer, by `req`; sent again after each reconnect.
        self._pending: dict[bytes, WorkerRequest] = {}
        # When each of them was sent last, on this connection.
        self._asked: dict[bytes, float] = {}
        # Set by `leave`; and the `req` of the bye.
        self._leaving = False
        self._bye = b""

    # ---- the connection ----------------------------------------------------------------------

    def connected(self, now: float) -> None:
        """A new connection stands: say hello on it, with all that is in this worker's hands."""
        if self.link is Link.LEFT:
            return
        self.disconnected()
        self.reconnect = False
        self._heard = now
        self._greeting = bytes(self._numbers.next())
        self._introduce(now)

    def disconnected(self) -> None:
        """The connection is gone, and with it whatever was under way in either direction."""
        if self.link is Link.LEFT:
            return
        self.link = Link.AWAY
        self._introduced = False
        self._asked.clear()
        self.outbox.clear()
        self._delivery.take_back()

    def receive(self, message: WorkerEvent, now: float) -> None:
        """Take in a message of the broker."""
        self._heard = now
        if isinstance(message, Jobs):
            self._on_jobs(message)
        elif isinstance(message, Ok):
            self._on_ok(message)
        elif isinstance(message, Heartbeat):
            self._on_reply(message)
        elif isinstance(message, CancelRunning):
            self._on_cancel(message)
        elif isinstance(message, Welcome):
            self._on_welcome(message, now)
        else:
            self._on_error(message, now)

    def tick(self, now: float) -> None:
        """Do what has fallen due; to be called at `next_due` at the latest."""
        if self.link is Link.GREETING and now >= self._hello_due:
            self._greet(now)
        if self.link is not Link.WELCOMED:
            return
        if now - self._heard > self.heartbeat_limit_s:
            self.disconnected()
            self.reconnect = True
            return
        self._delivery.tick(now, self.heartbeat_limit_s)
        for key, asked in list(self._asked.items()):
            # Its answer may have been lost alone: the broker drops what does not fit.
            if now - asked > self.heartbeat_limit_s:
                self._ask(key, now)
        self.flush(now)
        if now >= self._beat_due():
            self._send_heartbeat(now)

    def next_due(self) -> float:
        """When `tick` has something to do at the latest."""
        if self.link is Link.GREETING:
            return self._hello_due
        if self.link is not Link.WELCOMED:
            return NEVER
        due = min(self._beat_due(), self._delivery.due)
        return min(due, self._progress_due) if self._progress else due

    def _introduce(self, now: float) -> None:
        self.link = Link.GREETING
        self._hello_wait_s = HELLO_RETRY_FIRST_S
        self._greet(now)

    def _greet(self, now: float) -> None:
        held = (Claim(id, attempt.attempt) for id, attempt in self._held.items())
        self._credit_told = self._credit
        self._send(
            Hello(
                req=Raw(self._greeting),
                types=self.types,
                channels=self.channels,
                credit=self._credit,
                name=self.name,
                session=self.session,
                running=(*held, *self._released),
            ),
            now,
        )
        self._hello_due = now + self._hello_wait_s
        self._hello_wait_s = min(2 * self._hello_wait_s, HELLO_RETRY_LIMIT_S)

    def _on_welcome(self, message: Welcome, now: float) -> None:
        if self.link is not Link.GREETING or key_of(message) not in (b"", self._greeting):
            return
        self.link = Link.WELCOMED
        self._introduced = True
        self.broker_version = message.version
        self.heartbeat_s = message.heartbeat
        self.heartbeat_limit_s = message.heartbeat_limit
        self.message_limit_bytes = message.message_limit
        for key in self._pending:
            self._ask(key, now)
        self.flush(now)
        if self._leaving:
            self._say_bye(now)

    def _on_ok(self, message: Ok) -> None:
        key = key_of(message)
        if self._delivery.confirm(key):
            return
        if key and key == self._bye:
            self.link = Link.LEFT
        else:
            self._on_reply(message)

    def _on_error(self, message: Error, now: float) -> None:
        key = key_of(message)
        if self.link is Link.GREETING:
            # Whatever else it answers was said before this hello, and is answered anew after it.
            if key == self._greeting and message.code not in ("busy", "internal"):
                self.fault = message
        elif message.code in ("unsupported", "denied"):
            if self.link is Link.WELCOMED:
                # The broker does not know this worker: it was away too long. Or it may not go on
                # as it is, which the answer to another hello will say for good.
                self._delivery.take_back()
                self._introduce(now)
        elif not key:
            self._delivery.refuse_unasked(message, now)
        elif not self._delivery.refuse(key, message, now):
            self._on_reply(message)

    def _on_reply(self, message: Reply) -> None:
        key = key_of(message)
        self._asked.pop(key, None)
        if key and self._pending.pop(key, None) is not None:
            self.replies[key] = message

    # ---- attempts that come and go -----------------------------------------------------------

    def holds(self, assignment: Assignment) -> bool:
        """Whether this attempt is the worker's and has no outcome yet."""
        return self._held.get(assignment.id) is assignment

    def awaits(self, ending: Ending) -> bool:
        """Whether this outcome still waits for the broker's word."""
        return self._held.get(ending.id) is ending

    @property
    def settled(self) -> bool:
        """Whether nothing is in this worker's hands: no attempt, no outcome, none to hand back."""
        return not self._held and not self._released

    @property
    def refused(self) -> list[Refused]:
        """Outcomes that came to nothing; the driver takes them away."""
        return self._delivery.refused

    def _on_jobs(self, message: Jobs) -> None:
        if not self._introduced:
            self._released += [Claim(each.id, each.attempt) for each in message.jobs]
            return  # perhaps the welcome alone was lost: the broker must learn of it
        if message.req is not UNSET and key_of(message):
            self._on_claimed(message)
            return
        held = self._held
        for assignment in message.jobs:
            if assignment.id not in held:
                held[assignment.id] = assignment
            elif not self._take(assignment):
                continue
            self.ready.append(assignment)

    def _on_claimed(self, message: Jobs) -> None:
        """Take the answer to a claim; if nobody waits for it any more, hand the job back."""
        is_awaited = key_of(message) in self._pending
        for assignment in message.jobs:
            if self._take(assignment):
                if not is_awaited:
                    self.release([assignment])
            elif is_awaited and self._held[assignment.id] == assignment:
                # It was waiting in `ready`: now it is the claimer's.
                self._held[assignment.id] = assignment
        self._on_reply(message)

    def _take(self, assignment: Assignment) -> bool:
        """Hold an attempt, in place of an older one of the same job; false for a repetition.

        An outcome gives way to any attempt: the broker gives a job out again only once it is done
        with that outcome. The number is no higher if the job was forgotten and enqueued anew.
        """
        known = self._held.get(assignment.id)
        if isinstance(known, Assignment):
            if known.attempt >= assignment.attempt:
                return False
            self.stopped.append(Stopped(known, "lost"))
        self._held[assignment.id] = assignment
        return True

    def _on_cancel(self, message: CancelRunning) -> None:
        for id in message.ids:
            held = self._held.get(id)
            # One that has an outcome already is settled by the answer to that outcome.
            if isinstance(held, Assignment):
                del self._held[id]
                self.stopped.append(Stopped(held, message.reason))

    # ---- what the worker has to say: all of it is sent by the next `flush` ---------------------

    def finish(self, assignment: Assignment, result: bytes) -> Outcome | None:
        """End an attempt with its result, JSON; None if the attempt is not held any more."""
        if self._held.get(assignment.id) is not assignment:
            return None
        outcome = Outcome(assignment.id, assignment.attempt, Raw(result))
        self._delivery.finish(outcome)
        return outcome

    def fail(self, assignment: Assignment, error: str, *, retry: bool = True) -> Failure | None:
        """End an attempt with an error; None if the attempt is not held any more."""
        if self._held.get(assignment.id) is not assignment:
            return None
        failure = Failure(assignment.id, assignment.attempt, error, retry)
        self._delivery.fail(failure)
        return failure

    def release(self, assignments: Iterable[Assignment]) -> None:
        """Hand back attempts that were not started; it costs their jobs no attempt."""
        for assignment in assignments:
            if self._held.get(assignment.id) is assignment:
                del self._held[assignment.id]
                self._released.append(Claim(assignment.id, assignment.attempt))

    def report(self, assignment: Assignment, value: bytes) -> None:
        """Report progress, JSON; of what comes too fast to be sent singly, the newest counts."""
        if self._held.get(assignment.id) is assignment:
            self._progress[assignment.id] = Step(assignment.id, assignment.attempt, Raw(value))

    def confirm_at_once(self) -> None:
        """From now on ask after every outcome: nothing more is to come after it."""
        self._delivery.ask_at_once()

    def set_credit(self, credit: int) -> None:
        """Change how many jobs the worker holds at most."""
        self._credit = credit

    # ---- sending -----------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Put all that waits to be said into the outbox, in as few messages as will do."""
        if self.link is not Link.WELCOMED:
            return
        last: WorkerRequest | None = None
        if self._delivery:
            for last in self._delivery.messages(self.message_limit_bytes, now):
                self._send(last, now)
        elif question := self._delivery.question(now):
            last = question
            self._send(last, now)
        if self._released:
            last = Release(jobs=tuple(self._released))
            self._released.clear()
            self._send(last, now)
        if self._credit != self._credit_told:
            if last is None:
                self._send_heartbeat(now)
            else:
                last.credit = self._credit  # type: ignore[union-attr]
                self._credit_told = self._credit
        if self._progress and now >= self._progress_due:
            self._send_progress(now)

    def request(self, message: WorkerRequest, now: float) -> bytes:
        """Send a message that is answered; give the key under which `replies` will have the answer.

        It is sent again after each reconnect, and when it has waited for too long, until it is
        answered or withdrawn by `forget`.
        """
        message.req = self._numbers.next()
        key = bytes(message.req)
        self._pending[key] = message
        if self.link is Link.WELCOMED:
            self._ask(key, now)
        return key

    def _ask(self, key: bytes, now: float) -> None:
        self._asked[key] = now
        self._send(self._pending[key], now)

    def barrier(self, now: float) -> bytes:
        """Tell the credit and ask for an answer: all that was sent before it arrives before it."""
        if self._credit != self._credit_told:
            self._send_heartbeat(now)
        return self.request(Heartbeat(), now)

    def forget(self, key: bytes) -> None:
        """Wait no longer for the answer to a request."""
        self._pending.pop(key, None)
        self._asked.pop(key, None)
        self.replies.pop(key, None)

    def declare(self, types: Iterable[str], now: float) -> None:
        """Change the types that this worker takes."""
        self.types = tuple(types)
        if self.link is Link.WELCOMED:
            self._greet(now)

    def leave(self, now: float) -> None:
        """Say bye, as soon as there is a connection; what is still held is handed back by it."""
        self._leaving = True
        self._credit = 0
        self.confirm_at_once()
        if self.link is Link.WELCOMED:
            self.flush(now)
            self._say_bye(now)

    def _say_bye(self, now: float) -> None:
        bye = Bye(req=self._numbers.next())
        self._bye = key_of(bye)
        self._send(bye, now)

    def _send(self, message: WorkerRequest, now: float) -> None:
        self.outbox.append(message)
        self._spoke = now

    def _send_heartbeat(self, now: float) -> None:
        if self.link is Link.WELCOMED:
            self._send(Heartbeat(credit=self._credit), now)
            self._credit_told = self._credit
            self._beat = now

    def _send_progress(self, now: float) -> None:
        running = []
        for step in self._progress.values():
            held = self._held.get(step.id)
            if isinstance(held, Assignment) and held.attempt == step.attempt:
                running.append(step)
        self._progress.clear()
        for steps in split(running, step_bytes, self.message_limit_bytes):
            self._send(Progress(jobs=tuple(steps)), now)
        self._progress_due = now + PROGRESS_INTERVAL_S

    def _beat_due(self) -> float:
        # The broker's silence counts too: only what it answers shows that it is there.
        return next_beat(max(self._beat, min(self._spoke, self._heard)), self.heartbeat_s)


def key_of(message: Reply | Welcome | WorkerRequest) -> bytes:
    """The `req` of a message, b"" for none or null."""
    key = b"" if message.req is UNSET else bytes(message.req)
    return b"" if key == b"null" else key
