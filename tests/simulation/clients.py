"""Clients: the SDK's requests and exchange as they are, on a simulated connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.simulation.network import Connection, Frames, Network
from tests.simulation.plan import NEVER
from tests.simulation.violation import Violation
from tests.simulation.world import World
from worker_sdk.errors import InternalError, PointsmanError, ProtocolError
from worker_sdk.exchange import Call, Exchange
from worker_sdk.requests import Request, Steps

Done = Callable[[Any], None]


class Task:
    """One method call of a client: its requests one after the other, then what came of it."""

    def __init__(self, client: SimClient, steps: Steps[Any], done: Done) -> None:
        self.client = client
        self.done = done
        self.request: Request[Any] | None = None
        self._steps = steps
        self._queue: Iterator[Request[Any]] | None = None

    def go_on(self, value: Any = None, error: PointsmanError | None = None) -> None:
        """Take an answer, and start the next request."""
        try:
            if self._queue is not None and error is None:
                request = next(self._queue, None)
                if request is not None:
                    self._start(request)
                    return
                self._queue, value = None, None
            self._queue = None
            step = self._steps.throw(error) if error is not None else self._steps.send(value)
        except StopIteration as end:
            self.client.end(self, end.value)
        except (InternalError, ProtocolError) as broken:
            raise Violation(f"{self.client} got {broken!r}") from broken
        except PointsmanError as refused:
            self.client.end(self, refused)
        else:
            if isinstance(step, Request):
                self._start(step)
            else:
                self._queue = step
                self.go_on()

    def _start(self, request: Request[Any]) -> None:
        self.request = request
        client = self.client
        client.exchange.start(
            request.message, client.world.now, hold_s=request.hold_s, context=self
        )

    def answered(self, call: Call) -> None:
        """A request is settled."""
        assert self.request is not None
        try:
            value = self.request.answer(call)
        except PointsmanError as error:
            self.go_on(error=error)
        else:
            self.go_on(value)


class SimClient:
    """One client and its connection."""

    def __init__(self, world: World, network: Network, name: str) -> None:
        self.world = world
        self.network = network
        self.name = name
        self.connection: Connection | None = None
        self.is_gone = False
        self.exchange = Exchange("simulated", 15.0, jitter=world.dice(f"client/{name}").random)
        self.open: dict[Task, None] = {}
        self._tick_at = NEVER
        network.connect(self)

    def __repr__(self) -> str:
        return self.name

    def ask(self, steps: Steps[Any], done: Done) -> None:
        """Begin a call; `done` gets its value or its error."""
        task = Task(self, steps, done)
        self.open[task] = None
        task.go_on()
        self._pump()

    def end(self, task: Task, value: Any) -> None:
        """A call has come to its end."""
        del self.open[task]
        task.done(value)

    def crash(self) -> None:
        """Be gone; what was asked, nobody waits for."""
        self.is_gone = True
        self.open.clear()
        if self.connection is not None:
            self.network.cut(self.connection)

    def connected(self) -> None:
        self._pump()

    def disconnected(self) -> None:
        self.exchange.disconnected()

    def arrived(self, frames: Frames) -> None:
        if self.is_gone:
            return
        call = self.exchange.receive(frames, self.world.now)
        if call is not None:
            call.context.answered(call)
        self._pump()

    def _pump(self) -> None:
        exchange, world = self.exchange, self.world
        while self.connection is not None and (call := exchange.next_to_send()) is not None:
            if world.story is not None:
                world.tell(f"{self} -> broker: {call.frames[-1].decode()}")
            self.network.to_broker(self.connection, call.frames)
            exchange.sent(call, world.now)
        due = exchange.next_due()
        if due is not None and due < self._tick_at:
            self._tick_at = due if due > world.now else world.now + 1e-6
            world.at(self._tick_at, self._tick, self._tick_at)

    def _tick(self, at: float) -> None:
        if at != self._tick_at or self.is_gone:
            return
        self._tick_at = NEVER
        for call in self.exchange.tick(self.world.now):
            call.context.answered(call)
        self._pump()
