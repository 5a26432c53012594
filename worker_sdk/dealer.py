"""A worker's ZeroMQ socket: carries what its agent has to say, and gives it what came.

Any thread may use it that holds the worker's lock (which is the full fence that ZeroMQ asks for),
but waiting needs no lock: it is done on the bare file descriptors. Such a descriptor is readable
whenever something *may* have changed since the socket was last looked at, and stays silent about
anything older, so `exchange` always ends with a look at the socket that finds nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from time import monotonic

import zmq
from zmq.utils.monitor import parse_monitor_message

from worker_sdk.agent import Agent, Link
from worker_sdk.connection import REFUSALS, refusal
from worker_sdk.encoding import pack, unpack_worker_event
from worker_sdk.errors import ProtocolError
from worker_sdk.frames import NOBLOCK, Inputs, receive_frames, send_frames
from worker_sdk.keys import Keys
from worker_sdk.messages import Error

log = logging.getLogger("worker_sdk")

_EVENTS = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED | REFUSALS
_UNANSWERED_S = 5.0
"""How long to wait for a welcome before saying in the log that none comes."""


class Dealer:
    """The connection of one agent to its broker, made anew by ZeroMQ whenever it breaks."""

    def __init__(self, endpoint: str, agent: Agent, keys: Keys | None = None) -> None:
        self.endpoint = endpoint
        self._keys = keys
        self._agent = agent
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._open()
        self._monitor = self._socket.get_monitor_socket(_EVENTS, f"inproc://monitor-{id(self)}")
        try:
            self._socket.connect(endpoint)
        except (zmq.ZMQError, UnicodeEncodeError) as error:
            self.close(linger_s=0)
            raise ValueError(f"{endpoint!r} is not an endpoint to connect to: {error}") from None
        self._input = Inputs(self._socket)
        self._events = Inputs(self._monitor)
        # What wakes a thread that waits for news: readable when `exchange` may have work.
        self._monitor_descriptor = int(self._monitor.fd)
        self.descriptors = (int(self._socket.fd), self._monitor_descriptor)
        # Set when connections may have come or gone.
        self._look_at_monitor = True
        # Packed messages that did not fit into the queue yet.
        self._unsent: deque[list[bytes]] = deque()
        # When to complain that there is no broker; None while there is one.
        self._complain_at: float | None = monotonic() + _UNANSWERED_S
        self._has_complained = False

    def _open(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        # Messages for a connection die with it: the agent knows what to say again.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        # What comes in is bounded by the credit; the broker must never find this queue full.
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
        # A broker whose machine vanished is noticed by the agent, from the welcome on; before that
        # by ZeroMQ's own heartbeats. A thousand idle workers' cost its broker 0.4 % of a core.
        socket.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15_000)
        if self._keys is not None:
            self._keys.put_on(socket)
        return socket

    def woken_by(self, readable: list[int]) -> None:
        """Take note of which `descriptors` were found readable; needs no lock."""
        if self._monitor_descriptor in readable:
            self._look_at_monitor = True

    def exchange(self, now: float, *, until_ready: bool = False) -> None:
        """Send what the agent has to say and give it all that came, until neither has more.

        With `until_ready`, stop as soon as a job is ready: then nobody may rest on the descriptors
        before the next exchange, as they are silent about what was left.
        """
        agent = self._agent
        if self._look_at_monitor:
            self._look_at_monitor = False
            self._follow_connection(now)
        agent.flush(now)
        while True:
            if agent.outbox or self._unsent:
                self._send()
            if not self._input.has_any():
                if now < agent.next_due():
                    break
                agent.tick(now)
                if agent.reconnect:
                    self._reconnect()
                elif not agent.outbox:
                    break
                continue
            self._receive(now)
            if until_ready and agent.ready:
                break
            agent.flush(now)
        if self._complain_at is not None:
            self._watch_for_welcome(now)

    def _send(self) -> None:
        unsent = self._unsent
        outbox = self._agent.outbox
        if outbox:
            unsent.extend(map(pack, outbox))
            outbox.clear()
        while unsent:
            try:
                send_frames(self._socket, unsent[0], NOBLOCK)
            except zmq.Again:
                return
            unsent.popleft()

    def _receive(self, now: float) -> None:
        frames = receive_frames(self._socket, NOBLOCK)
        try:
            message = unpack_worker_event(frames)
        except ProtocolError as error:
            # It may have held jobs: on a new connection the broker learns that they are not here.
            log.error("message of the broker at %s dropped: %s", self.endpoint, error)
            self._agent.disconnected()
            self._reconnect()
        else:
            self._agent.receive(message, now)

    def _follow_connection(self, now: float) -> None:
        while self._events.has_any():
            message = parse_monitor_message(self._monitor.recv_multipart(NOBLOCK))
            event = message["event"]
            refused = refusal(event, message["value"], self.endpoint, self._keys)
            if refused is not None:
                self._agent.fault = Error(refused.code, str(refused))
            self._unsent.clear()
            if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                self._agent.connected(now)
            else:
                log.info("connection to the broker at %s lost", self.endpoint)
                self._agent.disconnected()
            self._complain_at = now + _UNANSWERED_S

    def _reconnect(self) -> None:
        """Have ZeroMQ make a new connection; the monitor will tell when it stands."""
        self._agent.reconnect = False
        self._unsent.clear()
        self._socket.disconnect(self.endpoint)
        self._socket.connect(self.endpoint)

    def _watch_for_welcome(self, now: float) -> None:
        if self._agent.link is Link.WELCOMED:
            self._complain_at = None
            self._has_complained = False
            version = self._agent.broker_version
            log.info("connected to the broker at %s, version %s", self.endpoint, version)
        elif not self._has_complained and self._complain_at and now >= self._complain_at:
            self._has_complained = True
            log.warning("no broker answers at %s; still trying", self.endpoint)

    def next_due(self) -> float:
        """When `exchange` has something to do at the latest, even if nothing comes."""
        due = self._agent.next_due()
        if self._complain_at is None or self._has_complained:
            return due
        return min(due, self._complain_at)

    def close(self, linger_s: float) -> None:
        """Close, after waiting so long for what was sent to go out."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=int(linger_s * 1000))
        self._context.term()
