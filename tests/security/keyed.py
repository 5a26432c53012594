"""A broker with keys and a policy, and peers that hold some of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from broker import LocalBroker, keyring
from broker.policy import Grant
from worker_sdk import Client, WorkerSession
from worker_sdk.encoding import pack
from worker_sdk.keys import Keys, new_pair, read_pair, read_public, write_pair
from worker_sdk.messages import Message

ALL = ("enqueue", "work", "read", "cancel")
PATIENCE_MS = 10_000


class House:
    """A folder with the broker's key, its policy and the keys of those whom it knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = folder / "policy.toml"
        write_pair(new_pair("broker"), folder)
        self.policy.write_text("")
        self.policy.chmod(0o600)

    @property
    def broker_key(self) -> Path:
        return self.folder / "broker.pub"

    def stranger(self, name: str) -> Path:
        """A key that the policy does not know."""
        return write_pair(new_pair(name), self.folder)[0]

    def key(
        self,
        name: str,
        *roles: str,
        channels: Sequence[str] = ("default",),
        types: Sequence[str] = ("*",),
    ) -> Path:
        """A key that the policy knows."""
        path = self.stranger(name)
        self.permit(name, *roles, channels=channels, types=types)
        return path

    def permit(
        self, name: str, *roles: str, channels: Sequence[str], types: Sequence[str] = ("*",)
    ) -> None:
        public = read_public(self.folder / f"{name}.pub").public
        grant = Grant(name, public, roles=roles, channels=channels, types=types)
        keyring.add(self.policy, grant)

    def keys(self, name: str) -> Keys:
        return Keys(read_pair(self.folder / f"{name}.key"), read_public(self.broker_key).public)

    def broker(self, **settings: Any) -> LocalBroker:
        return LocalBroker(key=str(self.folder / "broker.key"), policy=str(self.policy), **settings)

    def reload(self, broker: LocalBroker) -> None:
        """Have the broker take up the policy as it is now: what SIGHUP does."""
        server = broker._server
        assert server is not None
        guard = server._guard
        assert guard is not None
        before = guard._policy
        server.reload(broker._config)
        until(lambda: guard._policy is not before)

    def client(self, broker: LocalBroker, name: str, timeout: float = 10.0) -> Client:
        return Client(
            broker.endpoint,
            timeout,
            key=self.folder / f"{name}.key",
            broker_key=self.broker_key,
        )

    def session(
        self, broker: LocalBroker, name: str, *types: str, channels: Sequence[str] = ("default",)
    ) -> WorkerSession:
        return WorkerSession(
            types,
            broker.endpoint,
            channels=channels,
            key=self.folder / f"{name}.key",
            broker_key=self.broker_key,
        )


def until(condition: Callable[[], Any]) -> Any:
    """What ``condition`` gives as soon as that is true of anything."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
    return found


class RawPeer:
    """A DEALER that says what it likes, and reads answers as plain JSON."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self._numbers = itertools.count(1)

    def send(self, message: Message) -> None:
        self.socket.send_multipart(pack(message))

    def read(self, patience_ms: int = PATIENCE_MS) -> Any:
        """The next message of the broker; None if there comes none."""
        if not self.socket.poll(patience_ms):
            return None
        return msgspec.json.decode(self.socket.recv_multipart()[-1])

    def ask(self, message: Message) -> Any:
        """The answer to a message, whatever else comes before it."""
        number = next(self._numbers)
        message.req = msgspec.Raw(b"%d" % number)
        self.send(message)
        while True:
            answer = self.read()
            assert answer is not None, f"no answer to {message}"
            if answer.get("req") == number:
                return answer


@contextmanager
def raw_peer(
    endpoint: str, keys: Keys | None = None, *, routing_id: bytes = b"", connect: bool = True
) -> Iterator[RawPeer]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.sndtimeo = PATIENCE_MS
        if keys is not None:
            keys.put_on(socket)
        if routing_id:
            socket.setsockopt(zmq.ROUTING_ID, routing_id)
        if connect:
            socket.connect(endpoint)
        yield RawPeer(socket)


class Watcher:
    """Follows what becomes of a socket's connection."""

    def __init__(self, monitor: zmq.Socket[bytes]) -> None:
        self._monitor = monitor

    def wait_for(self, *events: zmq.Event) -> None:
        """Wait until one event has come after the other."""
        for event in events:
            found = None
            while found != event:
                assert self._monitor.poll(PATIENCE_MS), f"waited in vain for {event.name}"
                found = self._next()

    def seen(self) -> set[int]:
        """All that has come since."""
        seen = set()
        while self._monitor.poll(0):
            seen.add(self._next())
        return seen

    def _next(self) -> int:
        return recv_monitor_message(self._monitor)["event"]


@contextmanager
def watching(peer: RawPeer) -> Iterator[Watcher]:
    monitor = peer.socket.get_monitor_socket()
    try:
        yield Watcher(monitor)
    finally:
        peer.socket.disable_monitor()
        monitor.close(linger=0)
