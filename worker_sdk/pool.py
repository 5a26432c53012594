"""The connections of the synchronous client: each serves one call at a time, over a REQ socket."""

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from worker_sdk.connection import MonitoredSocket
from worker_sdk.errors import ClientClosed
from worker_sdk.exchange import Call, Exchange
from worker_sdk.frames import receive_frames, send_frames
from worker_sdk.keys import Keys
from worker_sdk.limit import MessageLimit
from worker_sdk.requests import Request

LONGEST_BLOCK_S = 0.5
"""How long a call is deaf to a broken connection and to ``close()`` from another thread."""


class Pool:
    """The connections of a client: one serves one call at a time, and idle ones are kept.

    It knows nothing of the client, and so can outlive one that was dropped without ``close``.
    """

    def __init__(
        self, endpoint: str, keys: Keys | None, timeout_s: float, message_limit: int | None
    ) -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._timeout_s = timeout_s
        self.limit = MessageLimit(message_limit, self._drop_broken)
        self.is_closed = False
        # Guards all below.
        self._lock = threading.Lock()
        # There while connections are.
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        # All of them, and those that serve no call.
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []

    def check_out(self) -> "Connection":
        """A connection for one call."""
        with self._lock:
            if self.is_closed:
                raise ClientClosed(
                    f"the client of {self._endpoint} was closed and cannot be used any more: "
                    "make a new one"
                )
            return self._idle.pop() if self._idle else self._connect()

    def _connect(self) -> "Connection":
        if self._context is None:
            self._context = zmq.Context()
        connection = Connection(
            self._context,
            self._endpoint,
            self._keys,
            self._timeout_s,
            lambda: self.is_closed,
            self.limit.forget,
        )
        self._open.add(connection)
        return connection

    def check_in(self, connection: "Connection") -> None:
        """Take back a connection whose call is settled."""
        with self._lock:
            if self.is_closed or connection.is_broken:
                self._drop(connection)
            else:
                self._idle.append(connection)

    def _drop_broken(self) -> bool:
        """Close the idle connections that broke; whether the next one to be used did. Only then
        are the others looked at: a broker that restarts breaks them all.
        """
        with self._lock:
            if not self._idle or not self._idle[-1].breaks():
                return False
            broken = [each for each in self._idle if each.is_broken or each.breaks()]
            for connection in broken:
                self._idle.remove(connection)
                self._drop(connection)
        return True

    def discard(self, connection: "Connection") -> None:
        """Take back a connection that is not to be used again."""
        with self._lock:
            self._drop(connection)

    def close(self) -> None:
        """Give out nothing any more, and close what nobody uses; the rest when it comes back."""
        with self._lock:
            self.is_closed = True
            idle, self._idle = self._idle, []
            for connection in idle:
                self._drop(connection)
            self._leave_if_unused()

    def close_all(self) -> bool:
        """Close everything, for nobody uses it any more; whether there was anything."""
        with self._lock:
            self.is_closed = True
            left = [*self._open]
            self._idle.clear()
            for connection in left:
                self._drop(connection)
            self._leave_if_unused()
        return bool(left)

    def _drop(self, connection: "Connection") -> None:
        connection.close()
        self._open.discard(connection)
        self._leave_if_unused()

    def _leave_if_unused(self) -> None:
        if self.is_closed and not self._open and self._context is not None:
            self._context.destroy(linger=0)  # an error's traceback may still hold a socket
            self._context = None


class Connection:
    """One REQ socket with its Exchange; used by one thread at a time."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        keys: Keys | None,
        timeout_s: float,
        is_closed: Callable[[], bool],
        on_break: Callable[[], None],
    ) -> None:
        self._monitored = MonitoredSocket(context, zmq.REQ, endpoint, keys)
        self._socket = self._monitored.socket
        self._exchange = Exchange(endpoint, timeout_s, window=1)
        self._is_closed = is_closed
        self._on_break = on_break
        # What SNDTIMEO and RCVTIMEO are set to; setting them costs more than comparing.
        self._send_ms = self._receive_ms = -1
        # Set once its peer was lost: the call goes on with whoever comes next, and is the last.
        self.is_broken = False

    def begin(self, request: Request[Any]) -> Call:
        """Start a call, and send it if that is possible at once."""
        call = self._exchange.start(request.message, time.monotonic(), hold_s=request.hold_s)
        self._send(call, 0)
        return call

    def finish(self, call: Call) -> None:
        """Return when the call is settled."""
        exchange = self._exchange
        while True:
            now = time.monotonic()
            due = exchange.next_due()
            if due is not None and due <= now:
                exchange.tick(now)
            if call.outcome is not None:
                return
            if self._is_closed():
                exchange.abandon(call, ClientClosed("the client was closed during the call"))
                return
            limit_ms = math.ceil(1000 * min(LONGEST_BLOCK_S, max(0, (due or now) - now)))
            if exchange.is_under_way(call):
                self._receive(call, limit_ms)
            elif exchange.next_to_send() is call:
                self._send(call, limit_ms)
            else:
                time.sleep(limit_ms / 1000)

    def _send(self, call: Call, limit_ms: int) -> None:
        if limit_ms != self._send_ms:
            self._socket.setsockopt(zmq.SNDTIMEO, limit_ms)
            self._send_ms = limit_ms
        try:
            send_frames(self._socket, call.frames[1:])
        except zmq.Again:
            self._look_at_monitor(call)
            return
        self._exchange.sent(call, time.monotonic())

    def _look_at_monitor(self, call: Call) -> None:
        if self.breaks():
            self._exchange.disconnected()
            if self._monitored.refused is not None:
                self._exchange.abandon(call, self._monitored.refused)

    def breaks(self) -> bool:
        """Whether the connection broke since this was last asked."""
        broke = self._monitored.was_disconnected()
        if broke:
            self.is_broken = True
            self._on_break()
        return broke

    def _receive(self, call: Call, limit_ms: int) -> None:
        if limit_ms != self._receive_ms:
            self._socket.setsockopt(zmq.RCVTIMEO, limit_ms)
            self._receive_ms = limit_ms
        try:
            frames = receive_frames(self._socket)
        except zmq.Again:
            self._look_at_monitor(call)
            return
        self._exchange.receive(frames, time.monotonic())

    def close(self) -> None:
        """Close the socket at once."""
        self._monitored.close()
