"""What goes wrong, one class for each of the wire's error codes, and some of the client's own."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import msgspec

from worker_sdk.messages import Error


class PointsmanError(Exception):
    """All errors of this package. ``code`` is the broker's word for it, ``ids`` the culprits."""

    code: str = ""

    def __init__(self, message: str, *, ids: Iterable[UUID] = ()) -> None:
        super().__init__(message)
        self.ids: tuple[UUID, ...] = tuple(ids)


# ---- what the broker answers -----------------------------------------------------------------


class JobNotExist(PointsmanError):
    """There is no job with this id, or no longer."""

    code = "not_exist"


class JobNotRunning(PointsmanError):
    """This attempt of the job is not the one that is running."""

    code = "not_running"


class JobNotReady(PointsmanError):
    """The job cannot be taken: it waits, is running elsewhere or has ended."""

    code = "not_ready"


class JobCanceled(PointsmanError):
    """The job was canceled.

    From ``result()``: ``reason`` is ``request``, ``dependency`` or ``expired``, and ``culprit``
    the dependency whose end canceled the job, if one did.
    """

    code = "canceled"

    def __init__(
        self,
        message: str,
        *,
        ids: Iterable[UUID] = (),
        reason: str | None = None,
        culprit: UUID | None = None,
    ) -> None:
        super().__init__(message, ids=ids)
        self.reason = reason
        self.culprit = culprit


class JobConflict(PointsmanError):
    """The id is taken by a job with other content, or the job's state does not allow this."""

    code = "conflict"


class InvalidRequest(PointsmanError, ValueError):
    """The request breaks a rule; the message says which."""

    code = "invalid"


class TooLarge(PointsmanError):
    """The request, or its answer, exceeds the size of message that the broker takes or sends."""

    code = "too_large"


class BrokerBusy(PointsmanError):
    """The broker was at one of its bounds for longer than the client's time-out."""

    code = "busy"


class Denied(PointsmanError):
    """The broker's policy does not allow this."""

    code = "denied"


class Unsupported(PointsmanError):
    """The broker does not know this request, or not on this connection."""

    code = "unsupported"


class InternalError(PointsmanError):
    """The broker could not carry out the request, by its own fault."""

    code = "internal"


# ---- what the client finds by itself ---------------------------------------------------------


class DependencyCycle(InvalidRequest):
    """Jobs that depend on each other in a circle; ``ids`` is the circle."""


class NotEncodable(InvalidRequest, TypeError):
    """A value that JSON cannot carry; the message names where it stands and its type."""


class JobFailed(PointsmanError):
    """The job failed for good; ``error`` is what its last attempt said."""

    def __init__(self, message: str, *, ids: Iterable[UUID] = (), error: str = "") -> None:
        super().__init__(message, ids=ids)
        self.error = error

    @property
    def id(self) -> UUID:
        """The job that failed."""
        return self.ids[0]


class WaitTimeout(PointsmanError, TimeoutError):
    """The time is over and some jobs have not ended: ``ids``."""


class BrokerUnreachable(PointsmanError, ConnectionError):
    """No broker answered within the client's time-out."""


class ProtocolError(PointsmanError):
    """What answered does not speak the protocol."""


class ClientClosed(PointsmanError, RuntimeError):
    """The client was closed before or during this call."""


_BY_CODE: dict[str, type[PointsmanError]] = {
    error.code: error
    for error in (
        JobNotExist,
        JobNotRunning,
        JobNotReady,
        JobCanceled,
        JobConflict,
        InvalidRequest,
        TooLarge,
        BrokerBusy,
        Denied,
        Unsupported,
        InternalError,
    )
}


def from_wire(error: Error) -> PointsmanError:
    """The exception for what the broker answered."""
    kind = _BY_CODE.get(error.code)
    ids = _readable(error.ids)
    if kind is not None:
        return kind(error.message, ids=ids)
    unknown = PointsmanError(f"{error.code}: {error.message}", ids=ids)
    unknown.code = error.code
    return unknown


def _readable(ids: Iterable[Any]) -> tuple[UUID, ...]:
    """Those that are ids: the broker repeats what it was sent, whatever that was."""
    found = []
    for id in ids:
        try:
            found.append(msgspec.convert(id, UUID))
        except msgspec.ValidationError:
            continue
    return tuple(found)
