"""The real broker, its loop and all, on a simulated socket, clock and disk.

`broker.server.Server.run` runs as it stands. The names of its module that reach outside (zmq, the
clock, the operating system's dice) are replaced for the time of a run; where the loop would sleep,
the world goes on.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import zmq

import broker.server
from broker.config import Config
from broker.core.engine import Command, Effects, Engine
from broker.server import Server
from broker.store.base import StoreError
from tests.simulation.disks import Crash, Disk, FaultyStore, MemoryDisk, SqliteDisk
from tests.simulation.network import Frames, Network
from tests.simulation.plan import NEVER
from tests.simulation.referee import Referee
from tests.simulation.violation import Violation
from tests.simulation.world import World

_WAITS_MOST = 1000  # at one moment


class Over(BaseException):
    """The run has come to its end."""


class BrokerHost:
    """The machine that the broker runs on: starts it again whenever it stops."""

    def __init__(self, world: World, network: Network, referee: Referee) -> None:
        self.world = world
        self.network = network
        self.referee = referee
        self.disk: Disk = SqliteDisk(world) if world.plan.store == "sqlite" else MemoryDisk()
        self.config = config_of(world)
        self.starts = 0
        # Set by the run when all is done.
        self.is_over = False
        self._server: Server | None = None
        self._store: FaultyStore | None = None
        self._crash_asked = False
        self._is_woken = False
        self._storm = 0
        self._waited_at = 0.0
        self._waits_in_a_row = 0
        self._dice = world.dice("broker")
        world.now_and_then("broker_crash", self._ask_crash)
        world.now_and_then("broker_drains", self._drain)
        world.now_and_then("restart_storm", self._begin_storm)
        world.now_and_then("disk_full", self._fill_disk)
        world.now_and_then("clock_forward", lambda: self._step_clock(1))
        world.now_and_then("clock_back", lambda: self._step_clock(-1))

    def run(self) -> None:
        """Run brokers until the run is over."""
        with self._outside_world():
            try:
                while True:
                    self._run_one()
                    self._stopped()
                    self.world.run(self.world.now + self._pause(), _never)
            except Over:
                pass
            finally:
                if self._store is not None:
                    self._store.close()
                self.disk.remove()

    def _run_one(self) -> None:
        world = self.world
        self.starts += 1
        try:
            self._store = FaultyStore(self.disk, world, self.referee.committed)
            self._server = Server(self.config, self._store)
            self.referee.started(self._server._engine, self._store)
            self.network.is_broker_up = True
            world.tell(f"the broker starts, {len(self.referee.model.live)} live jobs")
            self._server.run()
            world.tell("the broker has drained")
            self._store.close()
        except Crash:
            world.tell("the broker crashes")
        except StoreError as error:
            world.tell(f"the broker stops: {error}")

    def _stopped(self) -> None:
        self._server = None
        self._store = None
        self._crash_asked = False
        self.network.broker_stopped()
        self.referee.stopped()
        self.disk.crashed()

    def _pause(self) -> float:
        if self._storm:
            self._storm -= 1
            self.world.after(self._dice.uniform(0.3, 0.6), self._ask_crash)
        return self._dice.choice((0.0, 0.05, 0.5, 3.0))

    # ---- faults ------------------------------------------------------------------------------

    def _ask_crash(self) -> None:
        self._crash_asked = True

    def _begin_storm(self) -> None:
        self._storm = 6
        self._crash_asked = True

    def _drain(self) -> None:
        if self._server is not None:
            self._server.drain()

    def _fill_disk(self) -> None:
        def full(is_full: bool) -> None:
            if self._store is not None:
                self._store.is_full = is_full

        full(True)
        self.world.after(self._dice.uniform(0, 2), full, False)

    def _step_clock(self, sign: int) -> None:
        step = sign * 10 ** self._dice.uniform(-2, 2)
        self.world.tell(f"the wall clock steps by {step:.2f} s")
        self.world.offset += step

    # ---- what the broker's loop finds instead of the world -------------------------------------

    @contextmanager
    def _outside_world(self) -> Iterator[None]:
        world, referee = self.world, self.referee
        host = self

        class WatchedEngine(Engine):
            def apply(self, commands: Iterable[Command], now: float, wall: float) -> Effects:
                commands = list(commands)
                effects = super().apply(commands, now, wall)
                referee.applied(commands, effects, now, wall)
                return effects

        fake_zmq = SimpleNamespace(
            Context=_Context,
            Again=zmq.Again,
            ZMQError=zmq.ZMQError,
            NOBLOCK=zmq.NOBLOCK,
            EAGAIN=zmq.EAGAIN,
            EHOSTUNREACH=zmq.EHOSTUNREACH,
        )
        clock = SimpleNamespace(
            monotonic=lambda: world.now,
            time=lambda: world.wall,
            # Before it leaves: the connections of this world need no such pause.
            sleep=lambda seconds: None,
        )
        system = SimpleNamespace(urandom=lambda size: world.plan.seed.to_bytes(size, "big"))
        outside: dict[str, Any] = {
            "zmq": fake_zmq,
            "time": clock,
            "os": system,
            "Engine": WatchedEngine,
            "Watch": lambda *_: _Watch(host),
            "Hoarders": lambda router, *_, **__: _Hoarders(router),
            "send_frames": lambda router, frames, _: router.send(frames),
            "bind_router": lambda *_: (_Router(host), ["simulated"]),
        }
        there = {name: new for name, new in outside.items() if hasattr(broker.server, name)}
        with mock.patch.multiple(broker.server, **there):
            yield

    def wait(self, until: float | None) -> None:
        """Let the world go on until there is something for the broker."""
        world, inbox = self.world, self.network.inbox
        self.referee.turn_over()
        self._waits_in_a_row = self._waits_in_a_row + 1 if world.now == self._waited_at else 0
        self._waited_at = world.now
        if self._waits_in_a_row > _WAITS_MOST:
            raise Violation("the broker's loop does not come to rest")
        if not inbox and not self._is_woken:
            world.run(NEVER if until is None else until, self._is_called)
        if inbox and self._dice.random() < 0.5:
            # More may come while the loop is on its way.
            pause = self._dice.expovariate(1000 / world.plan.speed)
            world.run(world.now + pause, lambda: self.is_over)
        if self.is_over:
            self.referee.compare()
            raise Over
        if self._crash_asked:
            raise Crash
        self._is_woken = False

    def _is_called(self) -> bool:
        called = self.network.inbox or self._is_woken or self._crash_asked or self.is_over
        return bool(called)

    def send(self, frames: Frames) -> None:
        """Send a message of the broker's, or fail as a ROUTER does."""
        world = self.world
        if world.strikes("crash_while_sending"):
            raise Crash
        identity = frames[0]
        self.referee.sent(tuple(frames[:-2]), frames[-1])
        connection = self.network.by_identity.get(identity)
        if connection is None or world.now >= connection.unroutable_from:
            raise zmq.ZMQError(errno.EHOSTUNREACH)
        if world.strikes("slow_peer"):
            connection.full_until = world.now + self._dice.uniform(0, 1)
        if world.now < connection.full_until:
            raise zmq.Again
        if world.story is not None:
            world.tell(f"  broker -> {connection.peer}: {frames[-1].decode()}")
        self.network.to_peer(connection, frames[1:])

    def wake(self) -> None:
        """Call the broker's loop."""
        self._is_woken = True


class _Context:
    def destroy(self, linger: int | None = None) -> None:
        pass

    def __class_getitem__(cls, item: Any) -> type[_Context]:
        return cls


class _Watch:
    """Stands for broker.watch.Watch."""

    def __init__(self, host: BrokerHost) -> None:
        self._host = host

    def has_input(self) -> bool:
        return bool(self._host.network.inbox)

    def wait(self, until: float | None) -> None:
        self._host.wait(until)

    def call(self) -> None:
        self._host.wake()

    def close(self) -> None:
        pass


class _Hoarders:
    """Stands for broker.hoarders.Hoarders: no peer here leaves more unread than it may."""

    due = NEVER
    limit_bytes = 0

    def __init__(self, router: _Router) -> None:
        self._router = router

    def receive(self, flags: int) -> tuple[Frames, None]:
        return self._router.receive(), None

    def posted(self, identity: bytes, size_bytes: int) -> None:
        pass

    def look(self, now: float) -> None:
        pass


class _Router:
    def __init__(self, host: BrokerHost) -> None:
        self._host = host

    def receive(self) -> Frames:
        inbox = self._host.network.inbox
        if not inbox:
            raise zmq.Again
        return inbox.popleft()

    def send(self, frames: Sequence[bytes]) -> None:
        self._host.send(list(frames))


def config_of(world: World) -> Config:
    """The settings of the run's broker."""
    plan = world.plan
    return Config(
        bind=("tcp://127.0.0.1:1",),
        store="memory",
        heartbeat_limit=plan.heartbeat_limit,
        grace=plan.grace,
        retention=plan.retention,
        max_ended=plan.max_ended,
        max_jobs=plan.max_jobs,
        max_waits=plan.max_waits,
        max_message=plan.max_message,
        inputs_limit=plan.inputs_limit,
        drain=1.0,
    )


def _never() -> bool:
    return False
