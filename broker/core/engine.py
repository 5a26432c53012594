"""The one door into the core: commands of one turn in, what to write and to send out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, Struct

from broker.core.dispatch import Dispatch, give_out
from broker.core.history import History, restore
from broker.core.intake import Intake
from broker.core.life import Life
from broker.core.limits import Limits
from broker.core.records import Archive, Record, Writes
from broker.core.refusal import Refused
from broker.core.service import Service
from broker.core.workers import Crew, Origin
from worker_sdk.messages import (
    Bye,
    Cancel,
    CancelRunning,
    Claiming,
    Delete,
    Enqueue,
    Error,
    Fail,
    Finish,
    Heartbeat,
    Hello,
    Inputs,
    List,
    Message,
    Ok,
    Ping,
    Progress,
    Release,
    Retry,
    Stats,
    Status,
    Wait,
)

_LONGEST_WAIT_S = 3600.0
_PRUNE_EVERY_S = 1.0
_PRUNE_ON_S = 0.01
_AWAITED_A_WAIT = 10
"""How many jobs open waits are for on average, at most: each takes some 200 bytes."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A command of the server's own: these jobs could not be sent to a worker."""

    connection: bytes
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """A command of the server's own: something came from this connection that goes no further."""

    connection: bytes


@dataclass(frozen=True, slots=True)
class Expel:
    """A command of the server's own: the worker on this connection may not go on."""

    connection: bytes


Command = tuple[Origin, "Message | Undelivered | SignOfLife | Expel"]


class Effects(Struct, eq=False):
    """What follows from a turn: first commit `writes`, then send the rest, in this order."""

    writes: Writes
    over: list[tuple[Origin, Message]] = []
    """Waits that are over, to be answered like `reads`, but first: somebody waits for them."""
    replies: list[tuple[Origin, Message]] = []
    dispatches: list[Dispatch] = []
    reads: list[tuple[Origin, Message]] = []
    """Requests that change nothing, to be answered from what is committed."""


class Engine:
    """The state machine: deterministic, without sockets, files, clocks, threads or randomness."""

    def __init__(
        self, archive: Archive, limits: Limits, *, seed: int, last_seq: int, version: str
    ) -> None:
        self.limits = limits
        self.life = Life(seed, last_seq)
        self.crew = Crew()
        self.version = version
        # Set once the broker is about to leave: nothing new starts or comes in.
        self.draining = False
        self._history = History(self.life, archive)
        self._intake = Intake(self.life, self._history)
        self._service = Service(self.life, self.crew, self._history, version)
        # Commands that have to run at the start of a turn, and came later in one.
        self._postponed: list[Command] = []
        # Claims of this turn.
        self._claims: list[tuple[Origin, Claiming]] = []
        self._effects = Effects(self.life.writes)
        # Any: each takes the one type it stands beside.
        self._handlers: dict[type, Callable[[Origin, Any], None]] = {
            Enqueue: self._enqueue,
            Wait: self._wait,
            Cancel: self._cancel,
            Retry: self._retry,
            Delete: self._delete,
            Status: self._read,
            List: self._read,
            Stats: self._read,
            Ping: self._ping,
            Hello: self._hello,
            Finish: self._finish,
            Fail: self._fail,
            Release: self._release,
            Progress: self._progress,
            Claiming: self._claim,
            Inputs: self._inputs,
            Heartbeat: self._heartbeat,
            Bye: self._bye,
            Undelivered: self._undelivered,
            SignOfLife: self._heard,
            Expel: self._expel,
        }

    def restore(self, records: Iterable[Record], now: float, wall: float) -> None:
        """Take in what a store kept. Running attempts get a time of grace to be claimed in."""
        life = self.life
        life.now, life.wall = now, wall
        for record in records:
            restore(life, record)
        life.timers.set(now + self.limits.grace, self._end_grace)
        life.timers.set(now + _PRUNE_EVERY_S, self._prune)

    def apply(self, commands: Iterable[Command], now: float, wall: float) -> Effects:
        """Carry out one turn: what is due, then `commands`, then give out what is ready.

        The writes of the turn before must have been committed.
        `now` is monotonic, `wall` the time since the epoch, both in seconds.
        """
        life = self.life
        self._history.settle()
        effects = self._effects = Effects(life.begin_turn(now, wall))
        postponed, self._postponed = self._postponed, []
        # Before anything ends in this turn: else they might have to wait for ever.
        self._carry_out(postponed)
        for call in life.timers.due(now):
            call()
        self._carry_out(commands)
        life.time_out_overdue()
        self._service.lose_silent()
        self._grant_claims()
        if not self.draining:
            effects.dispatches += give_out(life)
        for (worker, reason), ids in life.stops.items():
            effects.replies.append((worker.origin, CancelRunning(tuple(ids), reason)))
        life.stops.clear()
        effects.over.extend(life.waits.over)
        life.waits.over.clear()
        life.end_turn()
        life.lanes.sweep()
        return effects

    def _carry_out(self, commands: Iterable[Command]) -> None:
        # Not a list: each command may be made only when its turn comes.
        for origin, message in commands:
            try:
                self._handlers[type(message)](origin, message)
            except Refused as refused:
                assert isinstance(message, Message)
                self._service.heard(origin[0])
                self._refuse(origin, message, refused)

    def wake_at(self) -> float | None:
        """Give the time of the next turn that is due without any message; in the past: at once."""
        return 0.0 if self._postponed else self.life.timers.next_at()

    def stats(self) -> dict[str, object]:
        """Give counts of what is live now, and of what has happened since the start."""
        life = self.life
        ready = sum(lane.ready for lane in life.lanes)
        blocked = len(life.jobs) - ready - life.running - life.scheduled
        return {
            "jobs": {
                "blocked": blocked,
                "scheduled": life.scheduled,
                "ready": ready,
                "running": life.running,
            },
            "args_bytes": life.args_bytes,
            "workers": len(self.crew.workers),
            "waits": len(life.waits),
            "totals": {**life.totals, "workers_lost": self._service.lost_total},
            "lanes": [
                {
                    "channel": lane.channel,
                    "type": lane.type,
                    "live": lane.live,
                    "ready": lane.ready,
                    "workers": sum(pool.size for pool in lane.pools),
                }
                for lane in life.lanes
            ],
        }

    def read_ended(self, ids: Sequence[str]) -> Iterator[Record]:
        """Give those of `ids` that are ended jobs, as of the end of this turn; read as they are
        taken.
        """
        return self._history.read(ids)

    def lanes_of(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Give channel and type of those of `ids` that are jobs, as of this moment."""
        jobs = self.life.jobs
        lanes: dict[str, tuple[str, str]] = {}
        for id in ids:
            job = jobs.get(id)
            if job is not None:
                lanes[id] = (job.terms.lane.channel, job.terms.lane.type)
        elsewhere = [id for id in ids if id not in lanes]
        if elsewhere:
            for record in self._history.read(elsewhere):
                lanes[record.id] = (record.channel, record.type)
        return lanes

    # ---- client requests ----

    def _enqueue(self, origin: Origin, message: Enqueue) -> None:
        self._check_client(origin, "enqueue")
        if self.draining:
            raise Refused("busy", "the broker is about to stop")
        if message.wait is not None:
            self._check_waits(len(message.jobs))
        ids = self._intake.enqueue(message, self.limits)
        if message.wait is None:
            self._reply(origin, Ok(ids=ids, req=message.req))
        else:
            self._wait(origin, Wait(ids, timeout=message.wait, req=message.req))

    def _wait(self, origin: Origin, message: Wait) -> None:
        self._check_client(origin, "wait")
        life = self.life
        open = [id for id in message.ids if id in life.jobs]
        patience = _LONGEST_WAIT_S if message.timeout is None else message.timeout
        if not open or not patience:
            self._effects.reads.append((origin, message))
        else:
            self._check_waits(len(open))
            if len(open) < len(message.ids):
                self._history.check_exist([id for id in message.ids if id not in life.jobs])
            life.waits.add(origin, message, open, life.now + min(patience, _LONGEST_WAIT_S))

    def _check_waits(self, jobs: int) -> None:
        waits, most = self.life.waits, self.limits.max_waits
        if len(waits) >= most:
            raise Refused("busy", f"{len(waits)} waits are open, the most there may be")
        # Small ones are always let in: a few large ones must not keep everybody else out.
        is_large = jobs > _AWAITED_A_WAIT and waits.awaited
        if is_large and waits.awaited + jobs > most * _AWAITED_A_WAIT:
            raise Refused(
                "busy",
                f"open waits are for {waits.awaited} jobs, with this one they would be for more "
                f"than {most * _AWAITED_A_WAIT}",
            )

    def _cancel(self, origin: Origin, message: Cancel) -> None:
        self._check_client(origin, "cancel")
        jobs = self.life.jobs
        self._history.check_exist([id for id in message.ids if id not in jobs])
        live = tuple(dict.fromkeys(id for id in message.ids if id in jobs))
        for id in live:
            # It may have gone with one canceled before it.
            job = jobs.get(id)
            if job is not None:
                self.life.cancel(job, "request")
        self._reply(origin, Ok(ids=live, req=message.req))

    def _retry(self, origin: Origin, message: Retry) -> None:
        self._check_client(origin, "retry")
        if not self._history.can_retry:
            self._postponed.append((origin, message))
            return
        ids = self._history.retry(message.ids, self.limits)
        self._reply(origin, Ok(ids=ids, req=message.req))

    def _delete(self, origin: Origin, message: Delete) -> None:
        self._check_client(origin, "delete")
        if not self._history.can_delete(message.ids):
            self._postponed.append((origin, message))
            return
        self._reply(origin, Ok(ids=self._history.delete(message.ids), req=message.req))

    def _ping(self, origin: Origin, message: Message) -> None:
        self._check_client(origin, "ping")
        limit = self.limits.max_message
        self._reply(origin, Ok(version=self.version, message_limit=limit, req=message.req))

    def _read(self, origin: Origin, message: Message) -> None:
        self._check_client(origin, str(message.__struct_config__.tag))
        self._effects.reads.append((origin, message))

    def _check_client(self, origin: Origin, op: str) -> None:
        if origin[0] in self.crew.workers:
            raise Refused(
                "unsupported",
                f"{op} is for clients, and this connection said hello as a worker: "
                "use a connection of its own",
            )

    # ---- worker requests ----

    def _hello(self, origin: Origin, message: Hello) -> None:
        welcome, *cancels = self._service.hello(origin, message, self.limits)
        welcome.req = message.req
        for answer in (welcome, *cancels):
            self._reply(origin, answer)

    def _finish(self, origin: Origin, message: Finish) -> None:
        self._service.finish(origin, message)
        self._acknowledge(origin, message)

    def _fail(self, origin: Origin, message: Fail) -> None:
        self._service.fail(origin, message)
        self._acknowledge(origin, message)

    def _release(self, origin: Origin, message: Release) -> None:
        self._service.release(origin, message)
        self._acknowledge(origin, message)

    def _progress(self, origin: Origin, message: Progress) -> None:
        self._service.progress(origin, message)

    def _claim(self, origin: Origin, message: Claiming) -> None:
        if self.draining:
            raise Refused("busy", "the broker is about to stop")
        self._service.worker(origin, "claim")
        self._claims.append((origin, message))

    def _grant_claims(self) -> None:
        """Give workers the jobs that they ask for: last in a turn, so that none is taken away
        again before it is sent.
        """
        for origin, message in self._claims:
            try:
                job = self._service.claim(origin, message)
                self._effects.dispatches.append(Dispatch(origin, [job], message.req))
            except Refused as refused:
                self._refuse(origin, message, refused)
        self._claims.clear()

    def _inputs(self, origin: Origin, message: Inputs) -> None:
        self._service.check_inputs(origin, message)
        self._effects.reads.append((origin, message))

    def _heartbeat(self, origin: Origin, message: Heartbeat) -> None:
        self._reply(origin, self._service.heartbeat(origin, message))

    def _bye(self, origin: Origin, message: Bye) -> None:
        self._service.bye(origin)
        self._acknowledge(origin, message)

    def _undelivered(self, origin: Origin, message: Undelivered) -> None:
        self._service.undelivered(message.connection, message.ids)

    def _heard(self, origin: Origin, message: SignOfLife) -> None:
        self._service.heard(message.connection)

    def _expel(self, origin: Origin, message: Expel) -> None:
        self._service.expel(message.connection)

    def _acknowledge(self, origin: Origin, message: Message) -> None:
        if message.req is not UNSET:
            self._reply(origin, Ok(req=message.req))

    def _reply(self, origin: Origin, message: Message) -> None:
        self._effects.replies.append((origin, message))

    def _refuse(self, origin: Origin, message: Message, refused: Refused) -> None:
        error = Error(refused.code, refused.message, refused.ids, refused.codes, req=message.req)
        error.recorded = refused.recorded
        self._reply(origin, error)

    # ---- duties that come with time ----

    def _end_grace(self) -> None:
        """Take attempts that nobody has claimed since the restart for lost."""
        for job in self.life.unclaimed():
            error = "the worker did not come back after the broker's restart"
            self.life.attempt_failed(job, error, retry=True, backoff=False)

    def _prune(self) -> None:
        more = self._history.prune(self.limits)
        pause = _PRUNE_ON_S if more else _PRUNE_EVERY_S
        self.life.timers.set(self.life.now + pause, self._prune)
