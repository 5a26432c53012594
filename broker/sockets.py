"""The broker's socket, with the options that keep it safe."""

from __future__ import annotations

import zmq

from broker.config import Config

_HANDSHAKE_MS = 10_000  # for a peer to say who it is
_PING_MS = 5_000  # ZMTP heartbeats find half-open connections
_PING_TIMEOUT_MS = 15_000
_QUEUED_MOST = 1_000  # messages a connection, each way
_BACKLOG = 1_024  # connections that wait to be accepted

Context = zmq.Context[zmq.Socket[bytes]]


def bind_router(context: Context, config: Config) -> tuple[zmq.Socket[bytes], list[str]]:
    """Give the ROUTER socket bound to all of the configured endpoints, and where that is.

    Raises zmq.ZMQError, with the endpoint in its text.
    """
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
    router.set(zmq.SNDHWM, _QUEUED_MOST)
    router.set(zmq.RCVHWM, _QUEUED_MOST)
    router.set(zmq.BACKLOG, _BACKLOG)
    endpoints = []
    for endpoint in config.bind:
        # Only where it is asked for: it would show IPv4 addresses in a form that few can read.
        router.set(zmq.IPV6, int("[" in endpoint))
        try:
            router.bind(endpoint)
        except zmq.ZMQError as error:
            raise zmq.ZMQError(error.errno, f"{endpoint}: {error.strerror}") from None
        endpoints.append(router.get_string(zmq.LAST_ENDPOINT))
    return router, endpoints
