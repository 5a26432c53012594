"""The loop: receive, decode, apply, commit, send."""

from __future__ import annotations

import math
import os
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import fields

import zmq
from msgspec import UNSET

from broker import __version__, exposure
from broker.codec import FRAMES_MOST, Malformed, decode, encode
from broker.config import Config, ConfigError
from broker.core.engine import Command, Effects, Engine, SignOfLife, Undelivered
from broker.core.limits import Limits
from broker.core.workers import Origin
from broker.guard import Guard
from broker.hoarders import Hoarders, live_bytes
from broker.log import get_logger
from broker.policy import Policy, load
from broker.queries import Queries
from broker.sockets import bind_router
from broker.store.base import Store
from broker.watch import Watch
from worker_sdk.frames import NOBLOCK, send_frames
from worker_sdk.messages import PROTOCOL, Error, Message, Ok

log = get_logger("server")

_RECEIVED_MOST = 1000  # messages in one turn
_RECEIVED_BYTES_MOST = 32 * 1024**2  # and their size; one more message may exceed it
_ANSWERED_BYTES_MOST = 32 * 1024**2  # the size of answers in one turn, likewise
_LATER_MOST = 10_000  # answers that wait for a later turn
_LINGER_MS = 1000  # for what is still to be sent when the broker leaves
# How long connections stay after the last answer of a drain: what a worker's socket has received
# and nobody has read yet is dropped by libzmq when the connection ends (ZMQ_IMMEDIATE).
_LAST_WORDS_S = 0.1


class Server:
    """A broker on its endpoints and its store, run by one thread.

    Raises zmq.ZMQError if an endpoint cannot be bound, StoreError if the store cannot be read,
    ConfigError if the settings would expose it.
    """

    def __init__(self, config: Config, store: Store) -> None:
        exposure.check(config)
        self._config = config
        self._store = store
        seed = int.from_bytes(os.urandom(8), "big")
        self._engine = Engine(
            store, limits_of(config), seed=seed, last_seq=store.last_seq, version=__version__
        )
        # What could not be sent, and who is to be shut out: told to the engine in the next turn.
        self._undelivered: list[Command] = []
        # What is to be answered in a later turn, since this one's answers are large already.
        self._later: deque[tuple[Origin, Message]] = deque()
        # The size of all that was sent in the last turn.
        self._answered_bytes = 0
        # How often what was wrong with what came in or went out: code or cause -> times.
        self.faults: Counter[str] = Counter()
        self._queries = Queries(self._engine, store, config.inputs_limit, self.faults)
        # Set from other threads and signal handlers, together with a wake-up.
        self._drain_asked = False
        self._leave_asked = False
        self._reload_to: tuple[Config, Policy | None] | None = None
        # While draining: until when running jobs may go on, monotonic seconds.
        self._drain_until: float | None = None
        self._engine.restore(store.load(), time.monotonic(), time.time())
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        # Who may do what; None without keys: everybody who can connect may do everything.
        self._guard: Guard | None = None
        try:
            self._guard = Guard.of(self._context, config, self._engine, self.faults)
            self._router, self.endpoints = bind_router(self._context, config, self._guard)
        except (zmq.ZMQError, ConfigError):
            self._context.destroy(linger=0)
            raise
        self._watch = Watch(self._router, config.busy_poll)
        life = self._engine.life
        self._hoarders = Hoarders(
            self._router,
            self.endpoints,
            limit_bytes=config.max_queued,
            frame_bytes=2 * config.max_message,
            live_bytes=lambda: live_bytes(life.args_bytes, len(life.jobs)),
        )
        if self._guard is not None:
            self._watch.also(self._guard.zap)

    def run(self) -> None:
        """Serve until told to leave; closes the sockets, not the store."""
        try:
            while not self._is_over():
                self._await()
                commands, refusals = self._receive()
                if self._guard is not None:
                    commands = self._guard.admit(commands, refusals)
                effects = self._engine.apply(commands, time.monotonic(), time.time())
                if effects.writes:
                    self._store.commit(effects.writes)
                self._send(effects, refusals)
                self._hoarders.look(time.monotonic())
            if self._answered_bytes and not self._leave_asked:
                time.sleep(_LAST_WORDS_S)
        finally:
            self._watch.close()
            self._context.destroy(linger=_LINGER_MS)
            self._engine.life.forget()

    # ---- the steps of a turn ----

    def _await(self) -> None:
        """Sleep until a message, a timer or a wake-up calls."""
        wake_at = self._engine.wake_at()
        if self._undelivered or self._later:
            wake_at = 0.0
        if self._hoarders.due < (math.inf if wake_at is None else wake_at):
            wake_at = self._hoarders.due
        if self._drain_until is not None:
            wake_at = self._drain_until if wake_at is None else min(wake_at, self._drain_until)
        self._watch.wait(wake_at)

    def _receive(self) -> tuple[Iterable[Command], list[tuple[Origin, Message]]]:
        """Take what is waiting, up to a bound; decode it, or say what is wrong with it."""
        commands, self._undelivered = self._undelivered, []
        refusals: list[tuple[Origin, Message]] = []
        if self._guard is not None:
            self._guard.let_in()
        limit = self._engine.limits.max_message
        size_bytes = 0
        for count in range(_RECEIVED_MOST):
            if size_bytes > _RECEIVED_BYTES_MOST:
                break
            # One message alone is what most turns at low load are about: asking for a second one
            # in vain takes 8 us then, this look 2.
            if count == 1 and not self._watch.has_input():
                break
            try:
                frames = self._take()
            except zmq.Again:
                break
            size_bytes += len(frames[-1])
            if len(frames) > FRAMES_MOST:
                self.faults["frames"] += 1
                log.warning("message with too many frames dropped", frames=len(frames))
                continue
            try:
                commands.append(decode(frames, limit))
            except Malformed as malformed:
                self.faults[malformed.error.code] += 1
                log.debug("message refused", why=malformed.error.message)
                refusals.append((malformed.origin, malformed.error))
                commands.append((malformed.origin, SignOfLife(malformed.origin[0])))
        return commands, refusals

    def _take(self) -> list[bytes]:
        """Take the next message, with the key that it came with if there are keys."""
        frames, last = self._hoarders.receive(NOBLOCK)
        if self._guard is not None:
            frames[0] = self._guard.sender(frames[0], last)
        return frames

    def _send(self, effects: Effects, refusals: list[tuple[Origin, Message]]) -> None:
        """Send what follows from the turn, now that it is committed."""
        guard = self._guard
        self._answered_bytes = 0
        self._answer_later()
        for origin, request in effects.over:
            self._answer(origin, request)
        for origin, refusal in refusals:
            self._post(origin, refusal)
        for origin, message in effects.replies:
            self._post(origin, message if guard is None else guard.veil(origin, message))
        for dispatch in effects.dispatches:
            for message, jobs in self._queries.assignments(dispatch):
                if not self._post(dispatch.origin, message):
                    lost = Undelivered(dispatch.origin[0], tuple([job.id for job in jobs]))
                    self._undelivered.append((dispatch.origin, lost))
        for origin, request in effects.reads:
            self._answer(origin, request)

    def _answer(self, origin: Origin, request: Message) -> None:
        """Answer a reading request, in a later turn if this one has answered enough."""
        if self._answered_bytes <= _ANSWERED_BYTES_MOST:
            if self._guard is None:
                self._post(origin, self._queries.answer(request))
            else:
                self._post(origin, self._guard.answer(self._queries, origin, request))
        elif len(self._later) < _LATER_MOST:
            self._later.append((origin, request))
        else:
            self.faults["busy"] += 1
            text = f"{_LATER_MOST} large answers are to be given first"
            self._post(origin, Error("busy", text, req=request.req))

    def _answer_later(self) -> None:
        """Answer what was left for a later turn."""
        while self._later and self._answered_bytes <= _ANSWERED_BYTES_MOST:
            self._answer(*self._later.popleft())

    def _post(self, origin: Origin, message: Message) -> bool:
        """Send one message; say whether it is on its way. Never blocks: a peer that has gone, or
        does not read, is its own loss.
        """
        payload = encode(message)
        if len(payload) > 2 * self._engine.limits.max_message and isinstance(message, Ok):
            # Twice the limit of what comes in, so that whatever came in can be shown.
            payload = self._excuse(message, len(payload))
        try:
            send_frames(self._router, (*origin, PROTOCOL, payload), NOBLOCK)
        except (zmq.Again, zmq.ZMQError) as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            cause = "slow peer" if error.errno == zmq.EAGAIN else "gone peer"
            self.faults[cause] += 1
            log.debug("message dropped", cause=cause)
            return False
        self._answered_bytes += len(payload)
        self._hoarders.posted(origin[0], len(payload))
        return True

    def _excuse(self, message: Ok, size_bytes: int) -> bytes:
        """Give the JSON of what to say in place of an answer that is too large."""
        self.faults["too_large"] += 1
        if message.jobs is UNSET and message.ids is not UNSET:
            # It was done: better a short answer than one that says no.
            return encode(Ok(req=message.req))
        limit = 2 * self._engine.limits.max_message
        text = f"the answer has {size_bytes} bytes, over the limit of {limit}: ask for less"
        return encode(Error("too_large", text, req=message.req))

    # ---- the end, and what other threads may call ----

    def _is_over(self) -> bool:
        if self._reload_to is not None:
            (self._config, policy), self._reload_to = self._reload_to, None
            if self._guard is not None and policy is not None:
                self._undelivered += self._guard.adopt(policy)
            self._engine.limits = limits_of(self._config)
            self._hoarders.limit_bytes = self._config.max_queued
            self._queries.inputs_limit = self._config.inputs_limit
        if self._leave_asked:
            return True
        if self._drain_asked and self._drain_until is None:
            self._engine.draining = True
            self._drain_until = time.monotonic() + self._config.drain
            log.info("draining", running=self._engine.life.running)
        if self._drain_until is None:
            return False
        return not self._engine.life.running or time.monotonic() >= self._drain_until

    def drain(self) -> None:
        """Leave soon: start nothing new, let running jobs end; called again: leave at once.

        Safe from any thread and from signal handlers.
        """
        if self._drain_asked:
            self._leave_asked = True
        self._drain_asked = True
        self._watch.call()

    def reload(self, config: Config) -> None:
        """Go on with the settings of `config`, as far as they can change while running, and with
        the policy as it is now. Safe from any thread. Raises ConfigError, and changes nothing.
        """
        exposure.check(config)
        self._reload_to = config, load(config.policy) if config.policy else None
        self._watch.call()


def limits_of(config: Config) -> Limits:
    """Give the part of the settings that the core works with."""
    return Limits(**{field.name: getattr(config, field.name) for field in fields(Limits)})
