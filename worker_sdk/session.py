"""The pull style of a worker: take a job, work on it, say how it ended.

A session asks for jobs only while somebody waits in `dequeue`: its credit is what it holds plus
who waits. So nothing is given to it that nobody asked for, and a job that arrives when the last
one has just stopped waiting goes back at once. A thread in the background keeps the connection.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from threading import TIMEOUT_MAX
from time import monotonic
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from msgspec import UNSET, Raw

from worker_sdk.agent import Agent, Link, Reply
from worker_sdk.connection import chosen_endpoint, close_when_dropped
from worker_sdk.dealer import Dealer
from worker_sdk.delivery import LONE_ENVELOPE_BYTES, Ending
from worker_sdk.encoding import encode_value
from worker_sdk.errors import (
    ClientClosed,
    JobCanceled,
    JobNotReady,
    JobNotRunning,
    PointsmanError,
    TooLarge,
    WaitTimeout,
    from_wire,
)
from worker_sdk.handlers import checked_name, checked_names, unicode_only
from worker_sdk.ids import AnyId, as_text
from worker_sdk.job import Job
from worker_sdk.keeper import ANSWER_S, LINGER_S, is_gone, keep
from worker_sdk.keys import AnyPath, chosen_keys
from worker_sdk.messages import (
    DEFAULT_CHANNEL,
    Assignment,
    Claiming,
    Error,
    Inputs,
    Jobs,
    Ok,
)
from worker_sdk.requests import seconds
from worker_sdk.rest import Rest
from worker_sdk.worker import default_name

CONNECT_S = 1.0
"""How long a session that was just made waits for its broker even without any time-out.

As long may a broker that is there take to hear of a wish whose time is over.
"""


class SessionJob(Job):
    """A job that `WorkerSession.dequeue` gave: a Job, to be ended by `finish` or `fail`."""

    __slots__ = ("_session",)

    def __init__(self, assignment: Assignment, session: WorkerSession) -> None:
        super().__init__(assignment, session)
        self._session = session

    def finish(self, result: Any = None, *, timeout: float | None = None) -> None:
        """Record the result; returns when that is committed.

        Raises what the broker answered: `JobNotRunning` if this attempt is over, `JobCanceled` if
        the job was canceled, `JobNotExist` if it is forgotten. After `timeout` seconds it raises
        `WaitTimeout`, and the result goes on being delivered.
        """
        encoded = encode_value(result, "result")
        self._session.end(
            self, lambda agent: agent.finish(self._assignment, encoded), len(encoded), timeout
        )

    def fail(self, error: str, *, retry: bool = True, timeout: float | None = None) -> None:
        """Record that the attempt failed; returns and raises as `finish` does.

        `retry` false: no more attempts, however many are left.
        """
        text = unicode_only(str(error))
        self._session.end(
            self,
            lambda agent: agent.fail(self._assignment, text, retry=retry),
            6 * len(text),
            timeout,
        )


class WorkerSession:
    """Takes jobs of some types one by one; may be used by several threads at the same time.

    `key` and `broker_key`, for a broker with keys, are those of Client.

    ```
    with WorkerSession(types=["resize"]) as session:
        while job := session.dequeue(timeout=60):
            job.finish(resize(job.args))
    ```
    """

    def __init__(
        self,
        types: Iterable[str],
        endpoint: str | None = None,
        *,
        channels: Iterable[str] = (DEFAULT_CHANNEL,),
        name: str | None = None,
        key: AnyPath | None = None,
        broker_key: AnyPath | None = None,
    ) -> None:
        self.endpoint = chosen_endpoint(endpoint)
        keys = chosen_keys(key, broker_key)
        self._agent = Agent(
            types=checked_names("job type", types),
            channels=checked_names("channel", channels),
            name=checked_name("a worker's name", name or default_name()),
            session=uuid4().hex,
        )
        self._dealer = Dealer(self.endpoint, self._agent, keys)
        self._pid = os.getpid()
        # Guards all that follows, the agent and the socket; told when anything has come.
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        # Jobs that were given out and have no outcome yet, by id.
        self._jobs: dict[str, SessionJob] = {}
        # How many threads wait for any job, and so take what comes.
        self._waiting = 0
        # Of those, how many are about to give up: they take what comes, and ask for nothing more.
        self._giving_up = 0
        # Outcomes that somebody waits for: what they were refused with, by the outcome's identity.
        self._refusals: dict[int, PointsmanError | None] = {}
        # Set by `close` at its start, and once it has said bye, answered or not.
        self._is_closed = False
        self._is_over = False
        self._connected_by = monotonic() + CONNECT_S
        # Where the background thread rests, and until when.
        self._rest = Rest(self._dealer.descriptors)
        self._resting_until = 0.0
        self._last_call = close_when_dropped(
            self, f"WorkerSession of {self.endpoint}", partial(_call, self._rest)
        )
        self._thread = threading.Thread(
            target=keep,
            args=(weakref.ref(self), self._agent, self._dealer, self._rest),
            name="pointsman-session",
            daemon=True,
        )
        try:
            self._thread.start()
        except BaseException:
            self._last_call.detach()
            self._rest.close()
            self._dealer.close(linger_s=0)
            raise

    # ---- for its users -------------------------------------------------------------------------

    def dequeue(
        self, timeout: float | None = None, *, id: AnyId | None = None
    ) -> SessionJob | None:
        """Wait for a job, at most `timeout` seconds; None if none came, or the session was closed.

        With `id`, take just that job, beyond all order: raises `JobNotReady` if it waits for
        something, runs elsewhere or has ended, `JobCanceled`, or `JobNotExist`. Raises
        `ClientClosed` on a session that was closed before, and what the broker says if it refuses
        this worker for good.

        A `timeout` of 0 takes what is ready; only a session that was just made is given a second
        then to find its broker.
        """
        deadline = _deadline(timeout)
        with self._lock:
            self._check_usable()
            if id is not None:
                return self._claim(as_text(id), deadline)
            self._waiting += 1
            try:
                job = self._await_job(deadline)
            finally:
                self._waiting -= 1
            # The credit falls with the next message at the latest; here if nothing else is said.
            self._exchange()
            return job

    def close(self) -> None:
        """Hand back what is held, and leave; whoever waits in `dequeue` gets None."""
        if self._pid != os.getpid():
            return  # a fork's copy: nothing of it works, and the original goes on
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._last_call.detach()
            self._agent.leave(monotonic())
            self._exchange()
            deadline = monotonic() + ANSWER_S
            while not is_gone(self._agent) and (left_s := deadline - monotonic()) > 0:
                self._news.wait(left_s)
            self._is_over = True
            for job in self._jobs.values():
                job._stop("leaving")
            self._jobs.clear()
            self._news.notify_all()
        self._rest.call()
        self._thread.join()
        with self._lock:
            self._rest.close()
            self._dealer.close(LINGER_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = ", closed" if self._is_closed else ""
        return f"<WorkerSession of {self.endpoint} for {', '.join(self._agent.types)}{closed}>"

    # ---- taking --------------------------------------------------------------------------------

    def _await_job(self, deadline: float | None) -> SessionJob | None:
        if deadline is not None:
            # The broker must have heard of the wish before its time can be over, if there is one.
            self._await_answer(self._hearing_deadline(deadline))
        while True:
            self._wait_for(lambda: self._is_closed or bool(self._agent.ready), deadline)
            if self._is_closed:
                return None
            if not self._agent.ready:
                break
            job = self._take()
            if job is not None:
                return job
        if self._agent.link is Link.WELCOMED:
            # A job may be under way: whatever was sent before this answer arrives before it.
            self._giving_up += 1
            try:
                self._await_answer(monotonic() + ANSWER_S)
            finally:
                self._giving_up -= 1
        return self._take()

    def _hearing_deadline(self, deadline: float) -> float:
        now = monotonic()
        if self._agent.link is Link.WELCOMED:
            return max(deadline, now + CONNECT_S)
        return deadline if deadline > now else self._connected_by

    def _await_answer(self, deadline: float) -> None:
        """Tell the broker the credit, and wait for its answer, or a job if one comes first."""
        self._agent.set_credit(self._credit())
        key = self._agent.barrier(monotonic())
        self._await_reply(key, deadline, or_job=True)

    def _take(self) -> SessionJob | None:
        while self._agent.ready and not self._is_closed:
            assignment = self._agent.ready.popleft()
            if self._agent.holds(assignment):
                return self._give_out(assignment)
        return None

    def _give_out(self, assignment: Assignment) -> SessionJob:
        job = SessionJob(assignment, self)
        self._jobs[assignment.id] = job
        return job

    def _claim(self, id: str, deadline: float | None) -> SessionJob:
        if id in self._jobs:
            raise JobNotReady(f"job {id} is running, in this session", ids=[UUID(id)])
        reply = self._await_reply(self._agent.request(Claiming(id=id), monotonic()), deadline)
        if isinstance(reply, Error):
            raise from_wire(reply)
        if isinstance(reply, Jobs):
            for assignment in reply.jobs:
                if self._agent.holds(assignment):
                    return self._give_out(assignment)
            raise JobNotRunning(f"job {id} was taken and lost at once")
        if self._is_closed:
            raise ClientClosed("this session was closed")
        raise WaitTimeout(
            f"the broker at {self.endpoint} has not answered to the claim of job {id}"
        )

    def _credit(self) -> int:
        return len(self._jobs) + self._waiting - self._giving_up

    # ---- ending --------------------------------------------------------------------------------

    def end(
        self,
        job: SessionJob,
        say: Callable[[Agent], Ending | None],
        size_bytes: int,
        timeout_s: float | None,
    ) -> None:
        """Deliver the outcome of one of this session's jobs; for `SessionJob`."""
        deadline = _deadline(timeout_s)
        with self._lock:
            self._check_usable()
            limit_bytes = self._agent.message_limit_bytes
            if size_bytes + LONE_ENVELOPE_BYTES > limit_bytes:
                raise TooLarge(
                    f"an outcome of {size_bytes:,} bytes: the broker takes {limit_bytes:,} at most"
                )
            ending = say(self._agent)
            if ending is None:
                raise why_not_held(job)
            if self._jobs.get(ending.id) is job:
                del self._jobs[ending.id]
            refusal = self._await_word(ending, deadline)
            if refusal is not None:
                raise refusal
            if self._agent.awaits(ending):
                said = (
                    f"the broker at {self.endpoint} has not confirmed the outcome of job {job.id}"
                )
                raise ClientClosed(said) if self._is_over else WaitTimeout(said)

    def _await_word(self, ending: Ending, deadline: float | None) -> PointsmanError | None:
        """Wait until the broker has confirmed an outcome; what it refused it with, if it did."""
        key = id(ending)
        self._refusals[key] = None
        try:
            self._wait_for(
                lambda: (
                    not self._agent.awaits(ending)
                    or self._refusals[key] is not None
                    or self._is_over
                ),
                deadline,
            )
            return self._refusals[key]
        finally:
            del self._refusals[key]

    # ---- the connection ------------------------------------------------------------------------

    def tend(self) -> float | None:
        """Do what is due, in the background; for how long nothing is. None: it is all over."""
        with self._lock:
            if self._is_over:
                return None
            self._exchange()
            self._resting_until = self._dealer.next_due()
            return self._resting_until - monotonic()

    def _exchange(self) -> None:
        """Send all there is to send and take in all that came; with the lock held."""
        if self._is_over:
            return  # the socket is closed, or about to be
        agent = self._agent
        if not self._is_closed:
            agent.set_credit(self._credit())
        self._dealer.exchange(monotonic())
        if agent.ready and not self._waiting:
            agent.release(agent.ready)
            agent.ready.clear()
            self._dealer.exchange(monotonic())
        for assignment, reason in agent.stopped:
            job = self._jobs.get(assignment.id)
            if job is not None and job._assignment is assignment:
                del self._jobs[assignment.id]
                job._stop(reason)
        agent.stopped.clear()
        for ending, code, message in agent.refused:
            if id(ending) in self._refusals:
                error = Error(code=code, message=message, ids=(ending.id,))
                self._refusals[id(ending)] = from_wire(error)
        agent.refused.clear()
        self._news.notify_all()
        if self._dealer.next_due() < self._resting_until:
            self._rest.call()

    def _wait_for(self, is_done: Callable[[], bool], deadline: float | None) -> None:
        """Wait with the lock held until `is_done` or the deadline; raises if the broker refuses."""
        self._exchange()
        while not is_done():
            if self._agent.fault is not None:
                raise from_wire(self._agent.fault)
            left_s = None if deadline is None else deadline - monotonic()
            if left_s is not None and left_s <= 0:
                return
            self._news.wait(None if left_s is None else min(left_s, TIMEOUT_MAX))

    def _await_reply(
        self, key: bytes, deadline: float | None, *, or_job: bool = False
    ) -> Reply | None:
        """The answer to a request; None if there is none in time, or a job came first."""
        agent = self._agent
        try:
            self._wait_for(
                lambda: key in agent.replies or self._is_closed or (or_job and bool(agent.ready)),
                deadline,
            )
            return agent.replies.get(key)
        finally:
            agent.forget(key)

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"this session was made in process {self._pid}, and process {os.getpid()} was "
                "forked from it: threads and sockets do not survive that; make sessions after "
                "forking"
            )
        if self._is_closed:
            raise ClientClosed("this session was closed")

    # ---- what jobs ask for (see job.Desk) ------------------------------------------------------

    def report(self, job: Job, value: bytes) -> None:
        """Pass progress on to the broker; with `close`, all attempts are over."""
        with self._lock:
            if self._is_closed:
                return
            self._check_usable()
            self._agent.report(job._assignment, value)
            self._exchange()

    def fetch_inputs(self, job: Job, ids: tuple[str, ...]) -> dict[str, Raw]:
        """Ask the broker for results of dependencies."""
        assignment = job._assignment
        with self._lock:
            self._check_usable()
            request = Inputs(id=assignment.id, attempt=assignment.attempt, ids=ids)
            reply = self._await_reply(self._agent.request(request, monotonic()), None)
        if isinstance(reply, Error):
            raise from_wire(reply)
        if isinstance(reply, Ok) and reply.results is not UNSET:
            return reply.results
        raise ClientClosed("this session was closed")

    def wait_stopped(self, job: Job, timeout_s: float | None) -> bool:
        """Wait until the job is stopped from outside; whether it is."""
        left_s = None if timeout_s is None else min(seconds(timeout_s, "timeout"), TIMEOUT_MAX)
        with self._lock:
            self._news.wait_for(lambda: job.canceled or self._is_closed, left_s)
        return job.canceled


def _deadline(timeout: float | None) -> float | None:
    """When a time-out that begins now is over."""
    return None if timeout is None else monotonic() + seconds(timeout, "timeout")


def _call(rest: Rest) -> bool:
    rest.call()
    return True


def why_not_held(job: SessionJob) -> PointsmanError:
    """The error for an outcome of an attempt that is over already."""
    reason = job._stop_reason
    if reason in ("request", "dependency"):
        return JobCanceled(f"job {job.id} was canceled", ids=[job.id], reason=reason)
    said = "has its outcome already" if reason is None else f"is over ({reason})"
    return JobNotRunning(
        f"job {job.id} is not running: its attempt {job.attempt} {said}", ids=[job.id]
    )
