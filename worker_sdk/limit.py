"""How large a client's messages may be: the broker decides, and tells it in its answer to `ping`.

A broker of another limit may take over at any time, so what was told is good for no longer than the
connection that it came by; and beyond it the broker is asked again, before anything is refused.
"""

from collections.abc import Callable

from worker_sdk.errors import InvalidRequest
from worker_sdk.messages import DEFAULT_MESSAGE_LIMIT_BYTES, Ok

SMALLEST_LIMIT_BYTES = 1024
"""Every broker takes messages of this size."""


class MessageLimit:
    """What is known of the limit; ``given`` by the user, it is never asked for.

    ``is_outdated`` is asked before anything that was told is relied on.
    """

    def __init__(
        self, given: int | None = None, is_outdated: Callable[[], bool] = lambda: False
    ) -> None:
        if given is not None and (type(given) is not int or given < SMALLEST_LIMIT_BYTES):
            raise InvalidRequest(
                f"message_limit is at least {SMALLEST_LIMIT_BYTES} bytes, or None to ask the "
                f"broker for it, not {given!r}"
            )
        self._given = given
        self._is_outdated = is_outdated
        self._told: int | None = None

    def known_for(self, size_bytes: int) -> int | None:
        """The limit for a message of that size; None if the broker is to be asked first."""
        if self._given is not None:
            return self._given
        if size_bytes <= SMALLEST_LIMIT_BYTES:
            return SMALLEST_LIMIT_BYTES
        if self._told is not None and self._is_outdated():
            self._told = None
        told = self._told  # other threads may forget it
        return told if told is not None and size_bytes <= told else None

    def likely_bytes(self) -> int:
        """The limit as far as is known, else the usual one."""
        return self._given or self._told or DEFAULT_MESSAGE_LIMIT_BYTES

    def learn(self, pong: Ok) -> int:
        """Take the limit from an answer to `ping`."""
        told = pong.message_limit
        self._told = told if isinstance(told, int) else DEFAULT_MESSAGE_LIMIT_BYTES
        return self._told

    def forget(self) -> None:
        """The connection broke: the next one may be to another broker."""
        self._told = None
