"""The asynchronous client: any number of requests under way at once, over one DEALER socket.

pyzmq's own asyncio sockets cost more for each message than all the rest of a call, so the socket
is tied to the loop here: ZeroMQ's file descriptor tells that something changed, once, and then
everything is sent and received until nothing more is to be had.
"""

import asyncio
import builtins
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
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
from worker_sdk.frames import NOBLOCK, receive_frames, send_frames
from worker_sdk.graph import AnyJob, Duration, JobSpec
from worker_sdk.ids import AnyId
from worker_sdk.keys import AnyPath, chosen_keys
from worker_sdk.limit import MessageLimit
from worker_sdk.requests import JobOptions, Page, Request, Steps
from worker_sdk.sharing import NewJob, Question, Shared, Sharing, fail_all
from worker_sdk.status import JobStatus

T = TypeVar("T")

PIPELINED = 4
"""Requests of one ``enqueue_many`` under way at a time."""


class AsyncClient:
    """The methods of Client, with ``await``, thousands at a time.

    It belongs to the event loop that first uses it. The broker is at ``endpoint``, else where the
    environment's POINTSMAN_BROKER says, else at the default endpoint. A broker that does not
    answer a request within ``timeout`` seconds raises BrokerUnreachable. Keys and ``message_limit``
    are as with Client.
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
        self._exchange = Exchange(self.endpoint, self.timeout)
        self._limit = MessageLimit(message_limit)
        self._sharing = Sharing(self._exchange, self._limit)
        self._turn_is_coming = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        # Set when the client is first used.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._monitored: MonitoredSocket
        self._connection: _Connection
        self._last_call: weakref.finalize[..., Any]

    # ---- enqueue -----------------------------------------------------------------------------

    async def enqueue(self, type: str, args: Any = None, **options: Unpack[JobOptions]) -> UUID:
        """Enqueue a job and return its id. The options are those of JobSpec.

        It is safely with the broker when this returns. Enqueuing the same content with the same
        ``id`` again changes nothing; JobConflict if the content differs.
        """
        spec = JobSpec(type, args, **options)
        encoded = spec.encoded()
        enqueued = self._running_loop().create_future()
        self._sharing.gather(NewJob(spec, encoded, enqueued))
        if not self._turn_is_coming:
            self._come_round()
        await enqueued
        return spec.id

    async def enqueue_many(self, jobs: Iterable[AnyJob]) -> builtins.list[UUID]:
        """Enqueue JobSpecs (or mappings with the same keys), in any order; ids in that order.

        All or none, if they fit into one message of the broker; if not, all or none of those that
        hang together by dependencies. TooLarge if those do not fit; DependencyCycle names a cycle.
        """
        return await self._carry_out(requests.enqueue_many(jobs, self._limit))

    async def run(
        self,
        type: str,
        args: Any = None,
        *,
        wait_timeout: Duration | None = None,
        **options: Unpack[JobOptions],
    ) -> Any:
        """Enqueue a job and return its result. Raises what ``result`` raises."""
        spec = JobSpec(type, args, **options)
        clock = self._running_loop().time
        return await self._carry_out(requests.run(spec, wait_timeout, self._limit, clock))

    # ---- ask ---------------------------------------------------------------------------------

    @overload
    async def status(self, ids: AnyId, *, args: bool = False) -> JobStatus: ...  # type: ignore[overload-overlap]
    @overload
    async def status(
        self, ids: Iterable[AnyId], *, args: bool = False
    ) -> builtins.list[JobStatus]: ...
    async def status(self, ids: AnyId | Iterable[AnyId], *, args: bool = False) -> Any:
        """The status of a job, or of each of several, with its args if asked for."""
        return await self._carry_out(requests.status(ids, args, self._limit))

    @overload
    async def wait(self, ids: AnyId, timeout: Duration | None = None) -> JobStatus: ...  # type: ignore[overload-overlap]
    @overload
    async def wait(
        self, ids: Iterable[AnyId], timeout: Duration | None = None
    ) -> builtins.list[JobStatus]: ...
    async def wait(self, ids: AnyId | Iterable[AnyId], timeout: Duration | None = None) -> Any:
        """The status of a job, or of each of several, when all have ended; else WaitTimeout."""
        clock = self._running_loop().time
        return await self._carry_out(requests.wait(ids, timeout, self._limit, clock))

    async def result(self, id: AnyId, timeout: Duration | None = None) -> Any:
        """The result of a job when it has finished; JobFailed, JobCanceled or WaitTimeout."""
        clock = self._running_loop().time
        return await self._carry_out(requests.result(id, timeout, self._limit, clock))

    async def list(
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
        return await self._carry_out(
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

    async def iter_jobs(
        self,
        *,
        state: str | Iterable[str] | None = None,
        type: str | None = None,
        channel: str | None = None,
        roots: bool = False,
        since: datetime | None = None,
        until: datetime | None = None,
        page_size: int = 1000,
    ) -> AsyncIterator[JobStatus]:
        """All jobs that ``list`` gives, page after page."""
        after: str | None = None
        states = state if state is None or isinstance(state, str) else tuple(state)
        while True:
            page = await self.list(
                state=states,
                type=type,
                channel=channel,
                roots=roots,
                since=since,
                until=until,
                limit=page_size,
                after=after,
            )
            for each in page:
                yield each
            after = page.after
            if after is None:
                return

    async def stats(self) -> dict[str, Any]:
        """The broker's counts."""
        return await self._carry_out(requests.stats())

    async def ping(self) -> str:
        """The broker's version."""
        return await self._carry_out(requests.ping())

    # ---- change ------------------------------------------------------------------------------

    @overload
    async def cancel(self, ids: AnyId) -> bool: ...  # type: ignore[overload-overlap]
    @overload
    async def cancel(self, ids: Iterable[AnyId]) -> builtins.list[UUID]: ...
    async def cancel(self, ids: AnyId | Iterable[AnyId]) -> Any:
        """End a job that has not ended: whether this call did; of several, those that it ended."""
        return await self._carry_out(requests.cancel(ids, self._limit))

    async def retry(self, ids: AnyId | Iterable[AnyId]) -> builtins.list[UUID]:
        """Run failed or canceled jobs again; all that do, dependents too; ``ids`` if too many."""
        return await self._carry_out(requests.retry(ids, self._limit))

    async def delete(self, ids: AnyId | Iterable[AnyId]) -> builtins.list[UUID]:
        """Have ended jobs forgotten that no live job depends on; those that are."""
        return await self._carry_out(requests.delete(ids, self._limit))

    # ---- life --------------------------------------------------------------------------------

    async def close(self) -> None:
        """Leave the broker. Calls under way raise ClientClosed."""
        self.close_now()

    def close_now(self) -> None:
        """What ``close`` does, for where nothing can be awaited."""
        if not self._closed:
            self._closed = True
            self._disconnect(ClientClosed("the client was closed during the call"))

    def _disconnect(self, why: PointsmanError) -> None:
        """Give up the connection, and all that waits for it."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        if not loop.is_closed():
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._sharing.give_up(why)
            for call in self._exchange.abandon_all(why):
                if isinstance(call.context, Shared):
                    fail_all(call.context.jobs, why)
                else:
                    self._settled(call, loop.time())
        self._last_call.detach()
        self._connection.hang_up()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close_now()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.endpoint}{', closed' if self._closed else ''}>"

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._open(loop)
        return loop

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._closed:
            raise ClientClosed(f"{self!r} cannot be used any more: make a new one")
        if self._loop is not None:
            raise RuntimeError(f"{self!r} belongs to another event loop: make one for each loop")
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._monitored = MonitoredSocket(context, zmq.DEALER, self.endpoint, self._keys)
        except BaseException:
            context.destroy(linger=0)
            raise
        self._connection = _Connection(loop, context, self._monitored)
        self._loop = loop
        self._last_call = close_when_dropped(
            self, f"AsyncClient of {self.endpoint}", self._connection.hang_up_dropped
        )
        # The loop does not hold the client by these, so that one that is dropped can be missed.
        loop.add_reader(self._monitored.socket.fileno(), _call, weakref.WeakMethod(self._turn))
        loop.add_reader(
            self._monitored.monitor.fileno(), _call, weakref.WeakMethod(self._on_monitor)
        )
        # Only after a look in vain does a ZeroMQ socket's descriptor tell of the next message.
        self._monitored.was_disconnected()

    # ---- requests ----------------------------------------------------------------------------

    async def _carry_out(self, steps: Steps[T]) -> T:
        step: Callable[[Any], Request[Any] | Iterator[Request[Any]]] = steps.send
        value: Any = None
        while True:
            try:
                wanted = step(value)
            except StopIteration as end:
                return cast(T, end.value)
            try:
                if isinstance(wanted, Request):
                    value = await self._ask(wanted)
                else:
                    value = await self._ask_all(wanted)
                step = steps.send
            except PointsmanError as error:
                value, step = error, steps.throw

    async def _ask(self, request: Request[T]) -> T:
        call, settled = self._start(request)
        try:
            await settled
        finally:
            if call.outcome is None:  # the caller was canceled
                self._exchange.abandon(call, ClientClosed("nobody waits for the answer"))
        return request.answer(call)

    async def _ask_all(self, wanted: Iterator[Request[Any]]) -> Any:
        """Carry out all requests, some at a time; the newest answer, or the first error."""
        under_way: deque[tuple[Request[Any], Call, asyncio.Future[None]]] = deque()
        answer: Any = None
        first_error: PointsmanError | None = None
        while True:
            request = next(wanted, None) if first_error is None else None
            if request is not None:
                under_way.append((request, *self._start(request)))
            if not under_way:
                break
            if request is None or len(under_way) == PIPELINED:
                request, call, settled = under_way.popleft()
                await settled
                try:
                    answer = request.answer(call)
                except PointsmanError as error:
                    first_error = first_error or error
        if first_error is not None:
            raise first_error
        return answer

    def _start(self, request: Request[Any]) -> tuple[Call, asyncio.Future[None]]:
        loop = self._running_loop()
        settled: asyncio.Future[None] = loop.create_future()
        call = self._exchange.start(
            request.message, loop.time(), hold_s=request.hold_s, context=settled
        )
        if not self._turn_is_coming:
            self._come_round()
        return call, settled

    def _settled(self, call: Call, now: float) -> None:
        """Tell whoever waits for the call."""
        context = call.context
        if isinstance(context, Shared):
            self._sharing.settled(call, context, now)
        elif isinstance(context, Question):
            self._sharing.answered(call, context, now)
        elif not context.done():
            context.set_result(None)

    # ---- the socket --------------------------------------------------------------------------

    def _come_round(self) -> None:
        if self._loop is not None:
            self._turn_is_coming = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Send and receive until nothing is left to be sent or received."""
        self._turn_is_coming = False
        loop = self._loop
        if loop is None:
            return
        now = loop.time()
        self._sharing.share(now)
        for call in self._exchange.tick(now):
            self._settled(call, now)
        # The descriptor tells of a change only once, and sending may use that up as receiving
        # does: so both go on until neither has anything left.
        while True:
            blocked = self._send_all(now)
            received = self._receive_all(now)
            if received and self._exchange.next_to_send() is not None:
                continue
            if not blocked or not self._is_writable():
                break
        self._set_timer(loop)

    def _send_all(self, now: float) -> bool:
        """Send what may be sent; whether the socket takes no more."""
        exchange, socket = self._exchange, self._monitored.socket
        while (call := exchange.next_to_send()) is not None:
            try:
                send_frames(socket, call.frames, NOBLOCK)
            except zmq.Again:
                return True
            exchange.sent(call, now)
        return False

    def _receive_all(self, now: float) -> bool:
        """Take in what has arrived; whether anything had."""
        received = False
        while True:
            try:
                frames = receive_frames(self._monitored.socket, NOBLOCK)
            except zmq.Again:
                return received
            received = True
            call = self._exchange.receive(frames, now)
            if call is not None:
                self._settled(call, now)

    def _is_writable(self) -> bool:
        events = self._monitored.socket.getsockopt(zmq.EVENTS)
        return isinstance(events, int) and bool(events & zmq.POLLOUT)

    def _on_monitor(self) -> None:
        if self._monitored.was_disconnected():
            self._exchange.disconnected()
            self._limit.forget()
            if self._monitored.refused is not None:  # the next call tries anew, on another socket
                self._disconnect(self._monitored.refused)
            self._turn()

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all calls: set earlier if need be, never later."""
        due = self._exchange.next_due()
        if due is None or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._turn()


class _Connection:
    """What a client leaves behind that is dropped without ``close``."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: zmq.Context[zmq.Socket[bytes]],
        monitored: MonitoredSocket,
    ) -> None:
        self._loop = loop
        self._context = context
        self._monitored = monitored

    def hang_up(self) -> None:
        """Close it all; in the loop's thread while the loop runs."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._monitored.socket.fileno())
            self._loop.remove_reader(self._monitored.monitor.fileno())
        self._monitored.close()
        self._context.term()

    def hang_up_dropped(self) -> bool:
        """Close it all, from whichever thread; that it was needed."""
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self.hang_up)
        else:
            self.hang_up()
        return True


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    function = method()
    if function is not None:
        function()
