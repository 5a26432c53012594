"""The ZeroMQ sockets of the clients, with the options that both need, and their end."""

import itertools
import os
import re
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from worker_sdk.errors import Denied, InvalidRequest
from worker_sdk.keys import Keys
from worker_sdk.messages import DEFAULT_ENDPOINT

ENDPOINT_VARIABLE = "POINTSMAN_BROKER"

LONGEST_IPC_PATH_BYTES = 107
"""What the kernel takes as the path of a socket."""
_TCP = re.compile(r"tcp://[^\s*/]+:([0-9]{1,5})")

REFUSALS = zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
"""What a socket's monitor tells when the broker does not let it in."""
_OTHER_MECHANISM = 0x11000002  # ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH


def chosen_endpoint(endpoint: str | None) -> str:
    """The endpoint given, else the environment's, else the default one.

    InvalidRequest if it is none that can be connected to: libzmq finds that out late, or never.
    """
    source = ""
    if endpoint is None or endpoint == "":
        endpoint, source = os.environ.get(ENDPOINT_VARIABLE), f", as {ENDPOINT_VARIABLE} says,"
    if endpoint is None or endpoint == "":
        return DEFAULT_ENDPOINT
    if not _can_be_connected_to(endpoint):
        raise InvalidRequest(
            f"{endpoint!r}{source} is not an endpoint to connect to: one is tcp://HOST:PORT, like "
            f"{DEFAULT_ENDPOINT}, or ipc://PATH, of at most {LONGEST_IPC_PATH_BYTES} bytes"
        )
    return endpoint


def _can_be_connected_to(endpoint: object) -> bool:
    if not isinstance(endpoint, str):
        return False
    if tcp := _TCP.fullmatch(endpoint):
        return 1 <= int(tcp[1]) <= 65_535
    path = endpoint.removeprefix("ipc://")
    size_bytes = len(path.encode(errors="surrogatepass"))
    # A * has the system choose, which is for those who listen.
    return (
        path not in (endpoint, "*")
        and "\0" not in path
        and 0 < size_bytes <= LONGEST_IPC_PATH_BYTES
    )


def checked_timeout(timeout: object) -> float:
    """A client's time-out; InvalidRequest if it is none."""
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not timeout > 0:
        raise InvalidRequest(f"timeout is a number of seconds above 0, not {timeout!r}")
    return timeout


def refusal(event: int, value: int, endpoint: str, keys: Keys | None) -> Denied | None:
    """What an event of a socket's monitor says of the broker's refusal, if that is what it says.

    libzmq does not try again by itself after one.
    """
    if event == zmq.Event.HANDSHAKE_FAILED_AUTH and keys is not None:
        return Denied(
            f"the broker at {endpoint} does not let in the key {keys.own.public} "
            f"({keys.own.name or 'without a name'})"
        )
    if event == zmq.Event.HANDSHAKE_FAILED_PROTOCOL and value == _OTHER_MECHANISM:
        if keys is None:
            return Denied(f"the broker at {endpoint} lets in none but keys that it knows")
        return Denied(f"the broker at {endpoint} has no key: it does not prove who it is")
    return None


_numbers = itertools.count()


class MonitoredSocket:
    """A socket connected to the broker that tells when its connection breaks."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        endpoint: str,
        keys: Keys | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._keys = keys
        # Set once the broker has refused the connection: this socket is of no use any more.
        self.refused: Denied | None = None
        self.socket: zmq.Socket[bytes] = context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        # Queue nothing for a broker that is not there: what is to be sent stays with the Exchange,
        # which sends it once, and not again for each time that it was tried in vain.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        # All answers that are to come fit, so the broker never finds this client's queue full.
        # What may be under way is bounded by the Exchange.
        self.socket.setsockopt(zmq.RCVHWM, 0)
        # A broker whose machine vanished is noticed by ZeroMQ's own heartbeats.
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15_000)
        if kind == zmq.REQ:
            # A request may be sent again, and only the newest one's answer counts.
            self.socket.setsockopt(zmq.REQ_RELAXED, 1)
            self.socket.setsockopt(zmq.REQ_CORRELATE, 1)
        if keys is not None:
            keys.put_on(self.socket)
        # A name that no other ever had: libzmq takes its time to give up that of a closed one.
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | REFUSALS, f"inproc://monitor-{next(_numbers)}"
        )
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise InvalidRequest(
                f"{endpoint!r} is not an endpoint to connect to: {error}"
            ) from None

    def was_disconnected(self) -> bool:
        """Whether the connection broke since this was last asked."""
        broke = False
        while True:
            try:
                message = recv_monitor_message(self.monitor, zmq.NOBLOCK)
            except zmq.Again:
                return broke
            broke = True
            refused = refusal(message["event"], message["value"], self.endpoint, self._keys)
            self.refused = refused or self.refused

    def close(self) -> None:
        """Close at once; what has not been sent is dropped."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=0)


# ---- of clients that nobody closes -----------------------------------------------------------


def close_when_dropped(
    owner: object, name: str, close: Callable[[], bool]
) -> "weakref.finalize[..., Any]":
    """Have ``close`` called, with a warning if it says that it was needed, once ``owner`` is gone.

    A garbage collector that meets a ZeroMQ context together with its sockets can hang: it may end
    the context first, and that waits for the sockets (pyzmq would close them then, but finds none,
    for its weak references to them are cleared by that time). What ``close`` refers to is held
    here, so that no collector meets it; of ``owner`` it must know nothing.
    """
    last_call = weakref.finalize(owner, _close_dropped, name, close, os.getpid())
    # At the interpreter's exit threads may still use the sockets; the system closes them then.
    last_call.atexit = False
    return last_call


_left_by_the_parent: list[Callable[[], bool]] = []


def _close_dropped(name: str, close: Callable[[], bool], pid: int) -> None:
    if pid != os.getpid():
        _left_by_the_parent.append(close)  # its sockets must be neither closed nor collected
    elif close():
        warnings.warn(f"unclosed {name}", ResourceWarning, stacklevel=3)
