"""The ZeroMQ sockets of the clients, with the options that both need."""

import os

import zmq
from zmq.utils.monitor import recv_monitor_message

from worker_sdk.messages import DEFAULT_ENDPOINT

ENDPOINT_VARIABLE = "POINTSMAN_BROKER"


def chosen_endpoint(endpoint: str | None) -> str:
    """The endpoint given, else the environment's, else the default one."""
    return endpoint or os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT


class MonitoredSocket:
    """A socket connected to the broker that tells when its connection breaks."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str) -> None:
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
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED, f"inproc://monitor-{id(self)}"
        )
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"{endpoint!r} is not an endpoint to connect to: {error}") from None

    def was_disconnected(self) -> bool:
        """Whether the connection broke since this was last asked."""
        broke = False
        while True:
            try:
                recv_monitor_message(self.monitor, zmq.NOBLOCK)
            except zmq.Again:
                return broke
            broke = True

    def close(self) -> None:
        """Close at once; what has not been sent is dropped."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=0)
