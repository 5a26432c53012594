"""A broker in a box: the core, its queries and a store, without sockets and with virtual time.

The box takes the server's part: it carries out turns, commits what they wrote, then delivers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from broker.config import Config
from broker.core.engine import Command, Effects, Engine, Undelivered
from broker.core.workers import Origin
from broker.queries import Queries
from broker.server import limits_of
from broker.store import Store, open_store
from tests.core.invariants import check
from worker_sdk.messages import (
    JSON_NULL,
    Assignment,
    Bye,
    Cancel,
    CancelRunning,
    Claim,
    Claiming,
    Delete,
    Dependency,
    Enqueue,
    Error,
    Fail,
    Failure,
    Finish,
    Heartbeat,
    Hello,
    Inputs,
    JobInfo,
    Jobs,
    List,
    Message,
    NewJob,
    Ok,
    Outcome,
    Progress,
    Release,
    Retry,
    Status,
    Step,
    Wait,
    Welcome,
)

CLIENT = b"client"
DEFAULTS = limits_of(Config())
START_WALL = 1_700_000_000.0


class Denied(Exception):
    """The broker answered with an error."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"{error.code}: {error.message}")
        self.code = error.code
        self.message = error.message
        self.ids = list(error.ids)
        self.codes = list(error.codes)


class Pending:
    """A request that may be answered later."""

    def __init__(self) -> None:
        self.answer: Message | None = None

    @property
    def is_answered(self) -> bool:
        return self.answer is not None

    def ok(self) -> Ok:
        """Give the answer; raises Denied if it is an error."""
        if isinstance(self.answer, Error):
            raise Denied(self.answer)
        assert isinstance(self.answer, Ok), f"not answered: {self.answer}"
        return self.answer

    @property
    def jobs(self) -> list[JobInfo]:
        jobs = self.ok().jobs
        assert jobs is not UNSET
        return list(jobs)

    @property
    def states(self) -> list[str]:
        return [job.state for job in self.jobs]

    @property
    def ids(self) -> list[str]:
        ids = self.ok().ids
        assert ids is not UNSET
        return list(ids)

    @property
    def done(self) -> bool:
        done = self.ok().done
        assert done is not UNSET
        return done


class Box:
    """Speaks for all clients. Times are seconds since the box was made."""

    def __init__(
        self,
        store: str | Store = "memory",
        *,
        seed: int = 1,
        inputs_limit: int = 1024**2,
        checked: bool = True,
        **limits: Any,
    ) -> None:
        self.limits = replace(DEFAULTS, **limits)
        self.inputs_limit = inputs_limit
        self.seed = seed
        # Whether every turn is followed by a look at all of the core's state.
        self.checked = checked
        self.now = 0.0
        self.turns = 0
        self.store = open_store(store) if isinstance(store, str) else store
        self._workers: dict[bytes, BoxWorker] = {}
        self._cut: set[bytes] = set()
        self._undelivered: list[Command] = []
        self._together: list[Command] | None = None
        self._asked: dict[int, Pending] = {}
        self._requests = 0
        self._client = CLIENT
        self._ids = 0
        # Everything sent, in order: (connection, message).
        self.sent: list[tuple[bytes, Message]] = []
        self.engine = self._start_engine()

    def _start_engine(self) -> Engine:
        engine = Engine(
            self.store, self.limits, seed=self.seed, last_seq=self.store.last_seq, version="box"
        )
        engine.restore(self.store.load(), self.now, START_WALL + self.now)
        self.queries = Queries(engine, self.store, self.inputs_limit)
        return engine

    def restart(self, *, down: float = 0.0, reopen: Callable[[], Store] | None = None) -> None:
        """Stop the broker without a word and start it again, on what the store kept."""
        self.now += down
        self._workers.clear()
        self._asked.clear()
        self._undelivered.clear()
        self.store.close()
        assert reopen is not None or hasattr(self, "reopen")
        self.store = (reopen or self.reopen)()
        self.engine = self._start_engine()
        self.turn()

    reopen: Callable[[], Store]

    # ---- time ----

    def advance(self, seconds: float) -> None:
        """Let time go on, from each moment that something is due to the next."""
        end = self.now + seconds
        while (at := self.engine.wake_at()) is not None and at <= end:
            self.now = max(self.now, at)
            self.turn()
        self.now = end
        self.turn()

    def jump(self, seconds: float) -> None:
        """Let time go on in one step, as if the broker had slept."""
        self.now += seconds
        self.turn()

    # ---- turns ----

    def turn(self, *commands: Command) -> Effects:
        """Carry out one turn, and those that follow from it at once."""
        effects = self._turn(commands)
        while self._undelivered or self.engine.wake_at() == 0.0:
            self._turn(())
        return effects

    def _turn(self, commands: Sequence[Command]) -> Effects:
        self.turns += 1
        commands = [*self._undelivered, *commands]
        self._undelivered = []
        effects = self.engine.apply(commands, self.now, START_WALL + self.now)
        if effects.writes:
            self.store.commit(effects.writes)
        if self.checked:
            check(self.engine)
        for origin, request in effects.over:
            self._deliver(origin, self.queries.answer(request))
        for origin, message in effects.replies:
            self._deliver(origin, message)
        for dispatch in effects.dispatches:
            for jobs, those in self.queries.assignments(dispatch):
                if not self._deliver(dispatch.origin, jobs):
                    ids = tuple([job.id for job in those])
                    lost = Undelivered(dispatch.origin[0], ids)
                    self._undelivered.append((dispatch.origin, lost))
        for origin, request in effects.reads:
            self._deliver(origin, self.queries.answer(request))
        return effects

    def _deliver(self, origin: Origin, message: Message) -> bool:
        connection = origin[0]
        if connection in self._cut:
            return False
        self.sent.append((connection, message))
        pending = None
        if isinstance(message, Ok | Error | Jobs | Welcome) and isinstance(message.req, Raw):
            pending = self._asked.pop(int(bytes(message.req)), None)
        if pending is not None:
            pending.answer = message
        if connection in self._workers:
            self._workers[connection].receive(message)
        return True

    @contextmanager
    def together(self) -> Iterator[None]:
        """Have all requests made inside arrive in one turn; none is answered before its end."""
        assert self._together is None
        self._together = []
        try:
            yield
            commands = self._together
        finally:
            self._together = None
        self.turn(*commands)

    def ask(self, connection: bytes, message: Message, *, req: bool = True) -> Pending:
        """Send a message, answered now or later."""
        pending = Pending()
        if req:
            self._requests += 1
            message.req = Raw(str(self._requests).encode())
            self._asked[self._requests] = pending
        command = ((connection, b""), message)
        if self._together is not None:
            self._together.append(command)
        else:
            self.turn(command)
        return pending

    def demand(self, message: Message) -> Pending:
        """Send a client's request; raises Denied if it is refused at once."""
        pending = self.ask(self._client, message)
        if pending.is_answered:
            pending.ok()
        return pending

    @contextmanager
    def speaking_as(self, connection: bytes) -> Iterator[None]:
        """Have clients' requests come from `connection`."""
        self._client = connection
        try:
            yield
        finally:
            self._client = CLIENT

    def cut(self, worker: BoxWorker) -> None:
        """Have everything that is sent to a worker fail from now on."""
        self._cut.add(worker.connection)

    def mend(self, worker: BoxWorker) -> None:
        self._cut.discard(worker.connection)

    # ---- clients ----

    def new_id(self) -> str:
        self._ids += 1
        return f"{self._ids:08x}-0000-7000-8000-000000000000"

    def spec(
        self,
        type: str = "work",
        args: object = None,
        after: Sequence[str | Dependency] = (),
        **more: Any,
    ) -> NewJob:
        """Give a job that is not enqueued yet."""
        raw = JSON_NULL if args is None else Raw(msgspec.json.encode(args))
        id = more.pop("id", None) or self.new_id()
        return NewJob(id, type, raw, tuple(after), **more)

    def enqueue(
        self,
        type: str = "work",
        args: object = None,
        after: Sequence[str | Dependency] = (),
        **more: Any,
    ) -> str:
        """Enqueue one job; give its id."""
        spec = self.spec(type, args, after, **more)
        self.enqueue_all(spec)
        return spec.id

    def enqueue_all(self, *specs: NewJob) -> Pending:
        """Enqueue jobs in one request."""
        return self.demand(Enqueue(specs))

    def cancel(self, *ids: str) -> list[str]:
        """Cancel jobs; give those that this ended."""
        pending = self.demand(Cancel(ids))
        return pending.ids if pending.is_answered else []

    def retry(self, *ids: str) -> list[str]:
        """Retry jobs; give those that live again."""
        pending = self.demand(Retry(ids))
        return pending.ids if pending.is_answered else []

    def delete(self, *ids: str) -> list[str]:
        """Delete ended jobs; give those that are gone."""
        pending = self.demand(Delete(ids))
        return pending.ids if pending.is_answered else []

    def wait(self, *ids: str, timeout: float | None = None) -> Pending:
        """Wait for jobs to end."""
        return self.demand(Wait(ids, timeout))

    def status(self, *ids: str, args: bool = False) -> list[JobInfo]:
        """Give the present state of jobs."""
        return self.demand(Status(ids, args)).jobs

    def info(self, id: str) -> JobInfo:
        return self.status(id, args=True)[0]

    def state_of(self, id: str) -> str:
        return self.info(id).state

    def states_of(self, *ids: str) -> list[str]:
        return [info.state for info in self.status(*ids)]

    def exists(self, id: str) -> bool:
        answer = self.ask(self._client, Status((id,))).answer
        return not (isinstance(answer, Error) and answer.code == "not_exist")

    def list(self, **filters: Any) -> Pending:
        return self.demand(List(**filters))

    # ---- workers ----

    def worker(
        self,
        *types: str,
        credit: int = 1,
        connection: bytes | None = None,
        running: Sequence[tuple[str, int]] = (),
        **more: Any,
    ) -> BoxWorker:
        """Have a worker say hello; it gets what is ready at once."""
        name = connection or b"\0worker-%d" % (len(self._workers) + 1)
        worker = self._workers[name] = BoxWorker(self, name)
        worker.hello(*types, credit=credit, running=running, **more)
        return worker


class BoxWorker:
    """A worker on one connection, and what came to it."""

    def __init__(self, box: Box, connection: bytes) -> None:
        self._box = box
        self.connection = connection
        # Attempts that it was given, and that are not over as far as it knows.
        self.held: dict[str, Assignment] = {}
        self.welcomes: list[Welcome] = []
        self.inbox: list[Message] = []
        self._got: list[str] = []
        self._canceled: list[tuple[str, str]] = []

    def receive(self, message: Message) -> None:
        self.inbox.append(message)
        match message:
            case Jobs():
                for job in message.jobs:
                    assert job.id not in self.held, f"{job.id} came while it is held"
                    self.held[job.id] = job
                    self._got.append(job.id)
            case CancelRunning():
                for id in message.ids:
                    self.held.pop(id, None)
                    self._canceled.append((id, message.reason))
            case Welcome():
                self.welcomes.append(message)

    def got(self) -> list[str]:
        """Give the ids of the jobs that came since this was asked last, in order."""
        got, self._got = self._got, []
        return got

    def canceled(self) -> list[tuple[str, str]]:
        """Give (id, reason) of what it was told to stop since this was asked last."""
        canceled, self._canceled = self._canceled, []
        return canceled

    def errors(self) -> list[Error]:
        return [message for message in self.inbox if isinstance(message, Error)]

    def attempt_of(self, id: str) -> int:
        return self.held[id].attempt

    def tokens(self) -> list[tuple[str, int]]:
        return [(id, job.attempt) for id, job in self.held.items()]

    # ---- what it says ----

    def tell(self, message: Message) -> Pending:
        """Say something, and want an answer; raises Denied if it is refused."""
        pending = self._box.ask(self.connection, message)
        if pending.is_answered and isinstance(pending.answer, Error):
            pending.ok()
        return pending

    def hello(
        self,
        *types: str,
        credit: int = 1,
        running: Sequence[tuple[str, int]] = (),
        **more: Any,
    ) -> None:
        claims = tuple([Claim(id, attempt) for id, attempt in running])
        self.tell(Hello(types or ("work",), credit=credit, running=claims, **more))

    def finish(
        self,
        *ids: str,
        result: object = None,
        attempt: int | None = None,
        credit: int | None = None,
    ) -> None:
        """Report jobs, in one message, as finished with one and the same result."""
        raw = Raw(msgspec.json.encode(result))
        outcomes = [
            Outcome(id, self._forget(id) if attempt is None else attempt, raw) for id in tuple(ids)
        ]
        self.tell(Finish(tuple(outcomes), credit))

    def fail(
        self,
        id: str,
        error: str = "it broke",
        *,
        retry: bool = True,
        attempt: int | None = None,
        credit: int | None = None,
    ) -> None:
        attempt = self._forget(id) if attempt is None else attempt
        self.tell(Fail((Failure(id, attempt, error, retry),), credit))

    def release(self, *ids: str, credit: int | None = None) -> None:
        claims = tuple([Claim(id, self._forget(id)) for id in ids])
        self.tell(Release(claims, credit))

    def progress(self, id: str, value: object, *, attempt: int | None = None) -> None:
        attempt = self.attempt_of(id) if attempt is None else attempt
        self.tell(Progress((Step(id, attempt, Raw(msgspec.json.encode(value))),)))

    def claim(self, id: str) -> Assignment | None:
        """Ask for one certain job; None if that is not answered yet."""
        pending = self.tell(Claiming(id))
        if not isinstance(pending.answer, Jobs):
            return None
        return pending.answer.jobs[0]

    def inputs(self, id: str, *ids: str, attempt: int | None = None) -> dict[str, Any]:
        attempt = self.attempt_of(id) if attempt is None else attempt
        results = self.tell(Inputs(id, attempt, ids)).ok().results
        assert results is not UNSET
        return {key: msgspec.json.decode(value) for key, value in results.items()}

    def heartbeat(self, *, credit: int | None = None) -> None:
        before = len(self.errors())
        self._box.ask(self.connection, Heartbeat(credit), req=False)
        errors = self.errors()[before:]
        if errors:
            raise Denied(errors[0])

    def bye(self) -> None:
        self.held.clear()
        self.tell(Bye())

    def _forget(self, id: str) -> int:
        """Give the attempt that is held of a job, and hold it no longer."""
        return self.held.pop(id).attempt
