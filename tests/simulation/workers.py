"""Workers: the SDK's agent and workload as they are, with handlers that take virtual time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from tests.simulation.network import Connection, Frames
from tests.simulation.plan import NEVER
from tests.simulation.violation import Violation
from worker_sdk.agent import Agent, Link
from worker_sdk.encoding import pack, unpack_worker_event
from worker_sdk.messages import Assignment, Claiming, Error, Fail, Finish, Inputs, Jobs, Ok
from worker_sdk.workload import Workload

if TYPE_CHECKING:
    from tests.simulation.crew import Crew


_ROUNDS_MOST = 50


class Script(msgspec.Struct):
    """What a job does, as its args say."""

    does: str = "ok"
    takes: float = 0.01
    fails: int = 0
    """How many attempts fail before one succeeds."""


_decode_script = msgspec.json.Decoder(Script).decode


class SimWorker:
    """One worker process, from its start to its end."""

    def __init__(self, crew: Crew, place: int, life: int) -> None:
        self.crew = crew
        self.world = crew.world
        self.network = crew.network
        self.ledger = crew.ledger
        self.name = f"w{place}.{life}"
        self.place = place
        self.dice = crew.world.dice(f"worker/{self.name}")
        self.types, self.channels = crew.trade(place)
        self.agent = Agent(
            types=self.types,
            session=self.name,
            channels=self.channels,
            name=self.name,
            confirm_interval_s=self.dice.choice((0.0, 0.2)),
        )
        self.concurrency = crew.world.plan.concurrency
        self.workload = Workload(self.agent, self.concurrency)
        self.connection: Connection | None = None
        self.is_gone = False
        self.is_leaving = False
        self.paused_until = 0.0
        self._connection_before: Connection | None = None
        # What comes while it is paused.
        self._backlog: list[Frames] = []
        # Handlers that run: `id` of the assignment -> whether it counts as a place. Not id and
        # attempt of the job: one that was deleted and enqueued anew has the same ones.
        self._running: dict[int, bool] = {}
        # Attempts whose handler was told to stop and goes on.
        self._stuck: set[int] = set()
        self._hanging: list[tuple[Assignment, float]] = []
        # Requests for what a dispatch left out.
        self._asked: dict[bytes, Assignment] = {}
        self._claims: set[bytes] = set()
        # Outcomes that were sent, by the `req` of their message.
        self._sent: dict[bytes, Finish | Fail] = {}
        self._tick_at = NEVER

    def __repr__(self) -> str:
        return self.name

    def hands(self) -> str:
        """What is left in its hands, for people."""
        return f"{self.name} {self.agent.link.value}: {list(self.agent._held)}, {self._running}"

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left in its hands."""
        return self.is_gone or (self.agent.settled and not self._running)

    # ---- the network's side ------------------------------------------------------------------

    def connected(self) -> None:
        if not self.is_paused:
            self.agent.connected(self.world.now)
            self.act()

    def disconnected(self) -> None:
        if not self.is_paused:
            self.agent.disconnected()

    def arrived(self, frames: Frames) -> None:
        if self.is_paused:
            self._backlog.append(frames)
        elif not self.is_gone:
            self._receive(frames)
            self.act()

    def _receive(self, frames: Frames) -> None:
        message = unpack_worker_event(frames)
        if isinstance(message, Ok) and message.req is not UNSET:
            self._confirmed(self._sent.pop(bytes(message.req), None))
        self.agent.receive(message, self.world.now)

    def _confirmed(self, outcomes: Finish | Fail | None) -> None:
        """The broker has said that it has these."""
        if isinstance(outcomes, Finish):
            for outcome in outcomes.jobs:
                self.ledger.confirmed(outcome.id, bytes(outcome.result))
        elif outcomes is not None:
            for failure in outcomes.jobs:
                if not failure.retry:
                    self.ledger.confirmed(failure.id, None, failure.error)

    # ---- what it does ------------------------------------------------------------------------

    def act(self) -> None:
        """Start, stop, answer and send what is to be."""
        if self.is_gone or self.is_paused:
            return
        agent, workload, now = self.agent, self.workload, self.world.now
        for _ in range(_ROUNDS_MOST):
            self._take_replies()
            self._stop_stopped()
            while (assignment := workload.take(now)) is not None:
                self._begin(assignment, takes_place=True)
            workload.adjust(now)
            agent.flush(now)
            self._send()
            if agent.reconnect:
                agent.reconnect = False
                self.network.renew(self)
            if now < agent.next_due():
                break
            agent.tick(now)
            if agent.link is Link.AWAY and not agent.reconnect:
                break
        else:
            raise Violation(f"{self} has always something due, and nothing to do")
        agent.refused.clear()
        if agent.fault is not None:
            raise Violation(f"{self} is refused for good: {agent.fault}")
        if agent.link is Link.LEFT:
            self.crew.left(self)
        due = min(agent.next_due(), workload.next_due())
        if due < self._tick_at:
            # Real clocks go on by themselves.
            self._tick_at = due if due > now else now + 1e-6
            self.world.at(self._tick_at, self._tick, self._tick_at)

    def _tick(self, at: float) -> None:
        if at == self._tick_at:
            self._tick_at = NEVER
            if not self.is_gone and not self.is_paused:
                self.act()

    def _send(self) -> None:
        outbox = self.agent.outbox
        if not outbox:
            return
        for message in outbox:
            frames = pack(message)
            if isinstance(message, Finish | Fail) and message.req is not UNSET:
                self._sent[bytes(message.req)] = message
            if self.world.story is not None:
                self.world.tell(f"{self} -> broker: {frames[-1].decode()}")
            if self.connection is not None:
                self.network.to_broker(self.connection, frames)
        outbox.clear()

    def _take_replies(self) -> None:
        replies = self.agent.replies
        while replies:
            key, reply = replies.popitem()
            if key in self._asked:
                self._take_inputs(key, reply)
            elif key in self._claims:
                self._claims.discard(key)
                if isinstance(reply, Jobs):
                    for assignment in reply.jobs:
                        if self.agent.holds(assignment):
                            self._begin(assignment, takes_place=False)

    def _stop_stopped(self) -> None:
        agent = self.agent
        for stopped in agent.stopped:
            token = id(stopped.assignment)
            if token in self._running:
                self._stuck.add(token)
                if self._running[token]:
                    self.workload.canceled()
                if not self.world.strikes("handler_late", self.dice):
                    self.world.after(
                        self.dice.uniform(0, 0.01), self._end, stopped.assignment, self.world.now
                    )
        agent.stopped.clear()

    # ---- handlers ----------------------------------------------------------------------------

    def _begin(self, assignment: Assignment, *, takes_place: bool) -> None:
        self.ledger.given(assignment)
        self._running[id(assignment)] = takes_place
        if sum(self._running.values()) > self.concurrency:
            raise Violation(f"{self} runs more than {self.concurrency} jobs at a time")
        if assignment.inputs_left_out:
            self._ask(assignment)
        else:
            self._run(assignment)

    def _ask(self, assignment: Assignment) -> None:
        ids = assignment.dependencies
        request = Inputs(id=assignment.id, attempt=assignment.attempt, ids=ids)
        self._asked[self.agent.request(request, self.world.now)] = assignment

    def _take_inputs(self, key: bytes, reply: object) -> None:
        assignment = self._asked.pop(key)
        if not self.agent.holds(assignment) or isinstance(reply, Error):
            self._end(assignment, self.world.now)
        elif isinstance(reply, Ok) and isinstance(reply.results, dict):
            self._run(assignment)

    def _run(self, assignment: Assignment) -> None:
        now = self.world.now
        script = _decode_script(assignment.args)
        if script.does == "poison":
            self.world.after(script.takes / 2, self.crew.crash, self)
            return
        if script.does == "progress":
            self.world.after(script.takes / 2, self._report, assignment)
        if self.world.strikes("handler_hangs", self.dice):
            self._hanging.append((assignment, now))
            return
        self.world.after(script.takes, self._end, assignment, now)

    def _report(self, assignment: Assignment) -> None:
        if not self.is_gone:
            self.agent.report(assignment, b"0.5")
            self.act()

    def _end(self, assignment: Assignment, began: float) -> None:
        """A handler returns."""
        token = id(assignment)
        if self.is_gone or token not in self._running:
            return
        if self.is_paused:
            self.world.at(self.paused_until, self._end, assignment, began)
            return
        agent = self.agent
        takes_place = self._running.pop(token)
        is_stuck = token in self._stuck
        self._stuck.discard(token)
        if takes_place:
            self.workload.ended(assignment, self.world.now - began, was_canceled=is_stuck)
        script = _decode_script(assignment.args)
        result = b'{"of":"%s","attempt":%d}' % (assignment.id.encode(), assignment.attempt)
        final = script.does == "final"
        if script.does == "fail" or final or assignment.attempt <= script.fails:
            agent.fail(assignment, f"failed in {assignment.attempt}", retry=not final)
        else:
            agent.finish(assignment, result)
        self.act()

    # ---- faults and ends ---------------------------------------------------------------------

    @property
    def is_paused(self) -> bool:
        """Whether the process stands still."""
        return self.world.now < self.paused_until

    def pause(self, seconds: float) -> None:
        """Stand still, and then go on as if nothing had been."""
        if not self.is_paused:
            self.world.tell(f"{self} stands still for {seconds:.2f} s")
            self.paused_until = self.world.now + seconds
            self._connection_before = self.connection
            self.world.at(self.paused_until, self._resume)

    def _resume(self) -> None:
        if self.is_gone or self.is_paused:
            return
        now = self.world.now
        if self.connection is not self._connection_before:
            self.agent.disconnected()
            if self.connection is not None:
                self.agent.connected(now)
            else:
                self.network.connect(self)
        backlog, self._backlog = self._backlog, []
        for frames in backlog:
            self._receive(frames)
        self.act()

    def claim(self, id: str) -> None:
        """Ask for one certain job."""
        if not self.is_paused and not self.is_leaving and self.agent.link is Link.WELCOMED:
            self._claims.add(self.agent.request(Claiming(id=id), self.world.now))
            self.act()

    def leave(self) -> None:
        """Hand back what has not started, end the rest, and go."""
        if self.is_paused or self.is_leaving:
            return
        self.is_leaving = True
        self.workload.drain()
        self.act()
        self._leave_when_settled()

    def _leave_when_settled(self) -> None:
        if self.is_gone:
            return
        if self.is_settled:
            self.agent.leave(self.world.now)
            self.act()
        else:
            self.world.after(0.05, self._leave_when_settled)

    def heal(self) -> None:
        """Come back from what would hold for ever."""
        hanging, self._hanging = self._hanging, []
        for assignment, began in hanging:
            self.world.after(0.0, partial(self._end, assignment, began))
        if self.is_paused:
            self.paused_until = self.world.now
            self.world.after(0.0, self._resume)
