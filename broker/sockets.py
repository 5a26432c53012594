"""The broker's socket, with the options that keep it safe."""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path

import zmq

from broker.config import Config, ConfigError
from broker.exposure import is_private
from broker.guard import Guard

_HANDSHAKE_MS = 10_000  # for a peer to say who it is
_PING_MS = 10_000  # ZMTP heartbeats find half-open connections
_PING_TIMEOUT_MS = 15_000
_UNREAD_MOST = 1_000  # messages of a connection that wait to be read
_UNSENT_MOST = 100_000
"""Messages that wait to be sent to a connection: one turn may end as many waits of a peer that
reads all the time. Their bytes are what the hoarders' watch bounds."""
_BACKLOG = 1_024  # connections that wait to be accepted

Context = zmq.Context[zmq.Socket[bytes]]


def bind_router(
    context: Context, config: Config, guard: Guard | None
) -> tuple[zmq.Socket[bytes], list[str]]:
    """Give the ROUTER socket bound to all of the configured endpoints, and where that is.

    Raises zmq.ZMQError, with the endpoint in its text.
    """
    _make_ids_unpredictable()
    context.set(zmq.MAX_SOCKETS, 65_535)
    router = context.socket(zmq.ROUTER)
    # A send to a peer that has gone or does not read fails at once, instead of being dropped.
    router.set(zmq.ROUTER_MANDATORY, 1)
    # Twice the limit: what is a little too large gets an answer, what is far too large is cut off.
    router.set(zmq.MAXMSGSIZE, 2 * config.max_message)
    router.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    router.set(zmq.HEARTBEAT_IVL, _PING_MS)
    router.set(zmq.HEARTBEAT_TIMEOUT, _PING_TIMEOUT_MS)
    router.set(zmq.HEARTBEAT_TTL, _PING_TIMEOUT_MS)
    router.set(zmq.SNDHWM, _UNSENT_MOST)
    router.set(zmq.RCVHWM, _UNREAD_MOST)
    router.set(zmq.BACKLOG, _BACKLOG)
    if guard is not None:
        guard.secure(router)
    endpoints = [_bind(router, endpoint, config) for endpoint in config.bind]
    if guard is not None:
        for endpoint in endpoints:
            guard.heard.listens_on(endpoint)
    return router, endpoints


def _bind(router: zmq.Socket[bytes], endpoint: str, config: Config) -> str:
    """Bind to one endpoint; give it as it turned out."""
    ipc = endpoint.startswith("ipc://")
    if ipc:
        _refuse_if_used(endpoint)
    # Only where it is asked for: it would show IPv4 addresses in a form that few can read.
    router.set(zmq.IPV6, int("[" in endpoint))
    # The socket's file is its owner's alone from its first moment on.
    before = os.umask(0o177) if ipc else None
    try:
        router.bind(endpoint)
    except zmq.ZMQError as error:
        raise zmq.ZMQError(error.errno, f"{endpoint}: {error.strerror}") from None
    finally:
        if before is not None:
            os.umask(before)
    bound = router.get_string(zmq.LAST_ENDPOINT)
    if ipc and not bound.startswith("ipc://@"):
        Path(bound.removeprefix("ipc://")).chmod(config.ipc_mode)
    if is_private(endpoint) and not is_private(bound):  # localhost, on a machine where it is not
        router.unbind(bound)
        raise ConfigError(f"bind: {endpoint} is {bound} here, which is no loopback address")
    return bound


def _refuse_if_used(endpoint: str) -> None:
    """Raise zmq.ZMQError if somebody listens on an ipc endpoint: libzmq would just take it over."""
    path = endpoint.removeprefix("ipc://")
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address)
        except OSError:
            return
    raise zmq.ZMQError(zmq.EADDRINUSE, f"{endpoint}: {os.strerror(zmq.EADDRINUSE)}")


def _make_ids_unpredictable() -> None:
    """Have libzmq begin to number connections anywhere: it draws the first number from rand().

    Not seeded, that is the same in every process. A peer that speaks ZMTP by itself can claim any
    number, and one that claims the next brings libzmq to abort (as of 4.3.5); nobody is ever told
    which number a connection has.
    """
    ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4), "big")))
