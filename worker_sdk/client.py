"""The synchronous client: each method one exchange with the broker, over a REQ socket."""

import builtins
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast, overload
from uuid import UUID

from worker_sdk import requests
from worker_sdk.connection import (
    checked_timeout,
    chosen_endpoint,
    close_when_dropped,
)
from worker_sdk.errors import PointsmanError
from worker_sdk.exchange import Call
from worker_sdk.graph import AnyJob, Duration, JobSpec
from worker_sdk.ids import AnyId
from worker_sdk.keys import AnyPath, chosen_keys
from worker_sdk.pool import Connection, Pool
from worker_sdk.requests import JobOptions, Page, Request, Steps
from worker_sdk.status import JobStatus

T = TypeVar("T")

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
        self._pool = Pool(self.endpoint, self._keys, self.timeout, self.message_limit)
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
        under_way: deque[tuple[Connection, Request[Any], Call]] = deque()
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
