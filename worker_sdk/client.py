"""The synchronous client: each method one exchange with the broker, over a REQ socket."""

import builtins
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast, overload
from uuid import UUID

import zmq

from worker_sdk import requests
from worker_sdk.connection import (
    MonitoredSocket,
    checked_timeout,
    chosen_endpoint,
    close_when_dropped,
)
from worker_sdk.errors import ClientClosed, PointsmanError
from worker_sdk.exchange import Call, Exchange
from worker_sdk.frames import receive_frames, send_frames
from worker_sdk.graph import AnyJob, Duration, JobSpec
from worker_sdk.ids import AnyId
from worker_sdk.keys import AnyPath, Keys, chosen_keys
from worker_sdk.limit import MessageLimit
from worker_sdk.requests import JobOptions, Page, Request, Steps
from worker_sdk.status import JobStatus

T = TypeVar("T")

LONGEST_BLOCK_S = 0.5
"""How long a call is deaf to a broken connection and to ``close()`` from another thread."""

PIPELINED = 2
"""Requests of one ``enqueue_many`` under way at a time: one is committed while one is sent."""


class Client:
    """Enqueues jobs, and asks and waits for them.

    The broker is at ``endpoint``, else where the environment's POINTSMAN_BROKER says, else at the
    default endpoint. A broker that does not answer a request within ``timeout`` seconds raises
    BrokerUnreachable; restarts and lost messages shorter than that are not noticed.

    ``key`` and ``broker_key``, for a broker with keys: the files of this side's secret key and of
    the broker's public one, else those that POINTSMAN_KEY and POINTSMAN_BROKER_KEY name. Without
    them nothing is encrypted.

    ``message_limit``, the most bytes that a message may have, is the broker's: left out, it is
    asked for by a ping before the first request of more than 1 KiB, and anew when the connection
    broke.

    A client can be used by many threads at once; none waits for another. In a forked child it
    goes on with connections of its own.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        timeout: float = 10.0,
        *,
        message_limit: int | None = None,
        key: AnyPath | None = None,
        broker_key: AnyPath | None = None,
    ) -> None:
        self.endpoint = chosen_endpoint(endpoint)
        self._keys = chosen_keys(key, broker_key)
        self.timeout = checked_timeout(timeout)
        self.message_limit = message_limit
        self._start_anew()
        _clients.add(self)

    def _start_anew(self) -> None:
        self._pool = _Pool(self.endpoint, self._keys, self.timeout, self.message_limit)
        close_when_dropped(self, f"Client of {self.endpoint}", self._pool.close_all)

    # ---- enqueue -----------------------------------------------------------------------------

    def enqueue(self, type: str, args: Any = None, **options: Unpack[JobOptions]) -> UUID:
        """Enqueue a job and return its id. The options are those of JobSpec.

        It is safely with the broker when this returns. Enqueuing the same content with the same
        ``id`` again changes nothing; JobConflict if the content differs.
        """
        spec = JobSpec(type, args, **options)
        return self._carry_out(requests.enqueue(spec, self._pool.limit))

    def enqueue_many(self, jobs: Iterable[AnyJob]) -> builtins.list[UUID]:
        """Enqueue JobSpecs (or mappings with the same keys), in any order; ids in that order.

        All or none, if they fit into one message of the broker; if not, all or none of those that
        hang together by dependencies. TooLarge if those do not fit; DependencyCycle names a cycle.
        """
        return self._carry_out(requests.enqueue_many(jobs, self._pool.limit))

    def run(
        self,
        type: str,
        args: Any = None,
        *,
        wait_timeout: Duration | None = None,
        **options: Unpack[JobOptions],
    ) -> Any:
        """Enqueue a job and return its result. Raises what ``result`` raises."""
        spec = JobSpec(type, args, **options)
        return self._carry_out(requests.run(spec, wait_timeout, self._pool.limit, time.monotonic))

    # ---- ask ---------------------------------------------------------------------------------

    @overload
    def status(self, ids: AnyId, *, args: bool = False) -> JobStatus: ...  # type: ignore[overload-overlap]
    @overload
    def status(self, ids: Iterable[AnyId], *, args: bool = False) -> builtins.list[JobStatus]: ...
    def status(self, ids: AnyId | Iterable[AnyId], *, args: bool = False) -> Any:
        """The status of a job, or of each of several, with its args if asked for."""
        return self._carry_out(requests.status(ids, args, self._pool.limit))

    @overload
    def wait(self, ids: AnyId, timeout: Duration | None = None) -> JobStatus: ...  # type: ignore[overload-overlap]
    @overload
    def wait(
        self, ids: Iterable[AnyId], timeout: Duration | None = None
    ) -> builtins.list[JobStatus]: ...
    def wait(self, ids: AnyId | Iterable[AnyId], timeout: Duration | None = None) -> Any:
        """The status of a job, or of each of several, when all have ended; else WaitTimeout."""
        return self._carry_out(requests.wait(ids, timeout, self._pool.limit, time.monotonic))

    def result(self, id: AnyId, timeout: Duration | None = None) -> Any:
        """The result of a job when it has finished; JobFailed, JobCanceled or WaitTimeout."""
        return self._carry_out(requests.result(id, timeout, self._pool.limit, time.monotonic))

    def list(
        self,
        *,
        state: str | Iterable[str] | None = None,
        type: str | None = None,
        channel: str | None = None,
        roots: bool = False,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> Page:
        """A page of jobs: live ones first, then ended ones, each newest first.

        ``roots``: only jobs without dependencies. ``since``, ``until``: when they were queued.
        ``after``: the ``.after`` of the page before.
        """
        return self._carry_out(
            requests.list_jobs(
                state=state,
                type=type,
                channel=channel,
                roots=roots,
                since=since,
                until=until,
                limit=limit,
                after=after,
            )
        )

    def iter_jobs(
        self,
        *,
        state: str | Iterable[str] | None = None,
        type: str | None = None,
        channel: str | None = None,
        roots: bool = False,
        since: datetime | None = None,
        until: datetime | None = None,
        page_size: int = 1000,
    ) -> Iterator[JobStatus]:
        """All jobs that ``list`` gives, page after page."""
        after: str | None = None
        states = state if state is None or isinstance(state, str) else tuple(state)
        while True:
            page = self.list(
                state=states,
                type=type,
                channel=channel,
                roots=roots,
                since=since,
                until=until,
                limit=page_size,
                after=after,
            )
            yield from page
            after = page.after
            if after is None:
                return

    def stats(self) -> dict[str, Any]:
        """The broker's counts."""
        return self._carry_out(requests.stats())

    def ping(self) -> str:
        """The broker's version."""
        return self._carry_out(requests.ping())

    # ---- change ------------------------------------------------------------------------------

    @overload
    def cancel(self, ids: AnyId) -> bool: ...  # type: ignore[overload-overlap]
    @overload
    def cancel(self, ids: Iterable[AnyId]) -> builtins.list[UUID]: ...
    def cancel(self, ids: AnyId | Iterable[AnyId]) -> Any:
        """End a job that has not ended: whether this call did; of several, those that it ended."""
        return self._carry_out(requests.cancel(ids, self._pool.limit))

    def retry(self, ids: AnyId | Iterable[AnyId]) -> builtins.list[UUID]:
        """Run failed or canceled jobs again; all that do, dependents too; ``ids`` if too many."""
        return self._carry_out(requests.retry(ids, self._pool.limit))

    def delete(self, ids: AnyId | Iterable[AnyId]) -> builtins.list[UUID]:
        """Have ended jobs forgotten that no live job depends on; those that are."""
        return self._carry_out(requests.delete(ids, self._pool.limit))

    # ---- connections -------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the broker. Calls of other threads that are under way raise ClientClosed."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.endpoint}{', closed' if self._pool.is_closed else ''}>"

    def _carry_out(self, steps: Steps[T]) -> T:
        step: Callable[[Any], Request[Any] | Iterator[Request[Any]]] = steps.send
        value: Any = None
        while True:
            try:
                wanted = step(value)
            except StopIteration as end:
                return cast(T, end.value)
            try:
                if isinstance(wanted, Request):
                    value = self._ask(wanted)
                else:
                    value = self._ask_all(wanted)
                step = steps.send
            except PointsmanError as error:
                value, step = error, steps.throw

    def _ask(self, request: Request[T]) -> T:
        pool = self._pool
        connection = pool.check_out()
        try:
            call = connection.begin(request)
            connection.finish(call)
        except BaseException:
            pool.discard(connection)
            raise
        pool.check_in(connection)
        return request.answer(call)

    def _ask_all(self, wanted: Iterator[Request[Any]]) -> Any:
        """Carry out all requests, some at a time; the newest answer, or the first error."""
        pool = self._pool
        under_way: deque[tuple[_Connection, Request[Any], Call]] = deque()
        answer: Any = None
        first_error: PointsmanError | None = None
        try:
            while True:
                request = next(wanted, None) if first_error is None else None
                if request is not None:
                    connection = pool.check_out()
                    under_way.append((connection, request, connection.begin(request)))
                if not under_way:
                    break
                if request is None or len(under_way) == PIPELINED:
                    connection, request, call = under_way[0]
                    connection.finish(call)
                    under_way.popleft()
                    pool.check_in(connection)
                    try:
                        answer = request.answer(call)
                    except PointsmanError as error:
                        first_error = first_error or error
        finally:
            for connection, *_ in under_way:
                pool.discard(connection)
        if first_error is not None:
            raise first_error
        return answer


class _Pool:
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
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []

    def check_out(self) -> "_Connection":
        """A connection for one call."""
        with self._lock:
            if self.is_closed:
                raise ClientClosed(
                    f"the client of {self._endpoint} was closed and cannot be used any more: "
                    "make a new one"
                )
            return self._idle.pop() if self._idle else self._connect()

    def _connect(self) -> "_Connection":
        if self._context is None:
            self._context = zmq.Context()
        connection = _Connection(
            self._context,
            self._endpoint,
            self._keys,
            self._timeout_s,
            lambda: self.is_closed,
            self.limit.forget,
        )
        self._open.add(connection)
        return connection

    def check_in(self, connection: "_Connection") -> None:
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

    def discard(self, connection: "_Connection") -> None:
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

    def _drop(self, connection: "_Connection") -> None:
        connection.close()
        self._open.discard(connection)
        self._leave_if_unused()

    def _leave_if_unused(self) -> None:
        if self.is_closed and not self._open and self._context is not None:
            self._context.destroy(linger=0)  # an error's traceback may still hold a socket
            self._context = None


class _Connection:
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


# ---- fork ------------------------------------------------------------------------------------

_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()


def _start_all_anew() -> None:
    """In a forked child: its parent's sockets must be neither used nor closed."""
    for client in _clients:
        is_closed = client._pool.is_closed
        client._start_anew()
        client._pool.is_closed = is_closed


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_anew)
