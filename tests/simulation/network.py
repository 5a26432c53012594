"""Connections between peers and the broker, as ZeroMQ gives them, and what can befall them.

Within one connection messages keep their order; nothing is repeated. What was under way when a
connection broke is lost from some point on. A new connection has a new identity at the broker.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from tests.simulation.plan import NEVER
from tests.simulation.world import World

Frames = list[bytes]


class Peer(Protocol):
    """A client or worker, as the network sees it."""

    connection: Connection | None
    is_gone: bool

    def connected(self) -> None:
        """A connection stands."""

    def disconnected(self) -> None:
        """The connection is known to have broken."""

    def arrived(self, frames: Frames) -> None:
        """A message came."""


class Connection:
    """One connection, until it breaks."""

    __slots__ = (
        "arrives_at_broker",
        "arrives_at_peer",
        "full_until",
        "identity",
        "is_cut",
        "is_mute",
        "last_sent",
        "leftovers",
        "lost_from",
        "peer",
        "unroutable_from",
    )

    def __init__(self, identity: bytes, peer: Peer) -> None:
        self.identity = identity
        self.peer = peer
        # When the newest message of each direction arrives: no later one may arrive before.
        self.arrives_at_broker = 0.0
        self.arrives_at_peer = 0.0
        self.is_cut = False
        # Half-open: both ends think that it stands, and nothing comes through.
        self.is_mute = False
        # What the broker gets of a connection that was cut is what arrives before this.
        self.lost_from = NEVER
        # From when on the broker knows that it is gone.
        self.unroutable_from = NEVER
        # Until when the broker finds its queue full.
        self.full_until = 0.0
        # Messages for the peer that outlived the connection, if any may.
        self.leftovers: list[Frames] | None = None
        # What the peer sent last on it, if that may come once more on the next one.
        self.last_sent: deque[Frames] = deque(maxlen=3)


class Network:
    """All connections to the one broker."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.inbox: deque[Frames] = deque()
        self.by_identity: dict[bytes, Connection] = {}
        self.is_broker_up = False
        self._dice = world.dice("network")
        self._latency = world.plan.speed / 1000
        self._connections = 0
        # Peers without a connection -> the number of the attempt to make one that counts.
        self._try_of: dict[Peer, int] = {}
        self._tries = 0
        # What comes to the broker for the second time as soon as a peer is connected again.
        self._twice: dict[Peer, list[Frames]] = {}
        world.now_and_then("cut", lambda: self._befall(self.cut))
        world.now_and_then("half_open", lambda: self._befall(self._mute))

    # ---- standing and breaking ---------------------------------------------------------------

    def connect(self, peer: Peer, leftovers: list[Frames] | None = None) -> None:
        """Have a connection made for a peer as soon as the broker is there."""
        delay = self._dice.uniform(0.001, 0.1)
        self.world.after(delay, self._try, peer, leftovers, True, self._newest_try(peer))

    def _newest_try(self, peer: Peer) -> int:
        self._tries += 1
        self._try_of[peer] = self._tries
        return self._tries

    def _try(self, peer: Peer, leftovers: list[Frames] | None, tell: bool, number: int) -> None:
        if peer.is_gone or self._try_of.get(peer) != number:
            return
        if not self.is_broker_up:
            delay = self._dice.uniform(0.05, 0.3)
            self.world.after(delay, self._try, peer, leftovers, tell, number)
            return
        del self._try_of[peer]
        self._connections += 1
        connection = Connection(b"\0c%03d" % self._connections, peer)
        self.by_identity[connection.identity] = connection
        peer.connection = connection
        for frames in self._twice.pop(peer, ()):
            self._deliver(connection, frames)
        if tell:
            peer.connected()
        for frames in leftovers or ():
            peer.arrived(frames)

    def cut(self, connection: Connection, *, silently: bool | None = None) -> None:
        """Break a connection; its peer is told soon, or gets another one without noticing."""
        if connection.is_cut:
            return
        now, dice, peer = self.world.now, self._dice, connection.peer
        connection.is_cut = True
        connection.lost_from = now + dice.choice((0.0, 1.0, 5.0)) * self._latency
        connection.unroutable_from = now + dice.choice((0.0, 0.01, 1.0))
        if peer.is_gone:
            return
        if connection.last_sent and self.world.strikes("duplicated", dice):
            self._twice[peer] = list(connection.last_sent)
        if self.world.strikes("old_messages_arrive", dice):
            connection.leftovers = []
        if silently is None:
            silently = self.world.strikes("silent_reconnect", dice)
        self.world.tell(f"{peer} loses {connection.identity!r}{' silently' * silently}")
        self.world.after(dice.uniform(0, 0.05), self._broken, connection, silently)

    def _broken(self, connection: Connection, silently: bool) -> None:
        peer = connection.peer
        if peer.is_gone or peer.connection is not connection:
            return
        peer.connection = None
        if silently:
            self._try(peer, connection.leftovers, False, self._newest_try(peer))
        else:
            peer.disconnected()
            self.connect(peer, connection.leftovers)

    def renew(self, peer: Peer) -> None:
        """The peer itself gives its connection up for another one."""
        if peer.connection is not None:
            connection, peer.connection = peer.connection, None
            self.cut(connection, silently=False)
        self.connect(peer)

    def _mute(self, connection: Connection) -> None:
        connection.is_mute = True
        longest = 2 * self.world.plan.heartbeat_limit
        self.world.after(self._dice.uniform(0, longest), self.cut, connection)

    def _befall(self, do: object) -> None:
        standing = [each for each in self.by_identity.values() if not each.is_cut]
        if standing and callable(do):
            do(self._dice.choice(standing))

    def broker_stopped(self) -> None:
        """All connections break, what the broker has not read is lost."""
        self.is_broker_up = False
        self.inbox.clear()
        for connection in list(self.by_identity.values()):
            connection.lost_from = connection.unroutable_from = 0.0
            self.cut(connection)
        self.by_identity.clear()

    def heal(self) -> None:
        """Make an end of what only looks like a connection."""
        for connection in list(self.by_identity.values()):
            if connection.is_mute:
                self.cut(connection)
            connection.full_until = 0.0

    # ---- messages ----------------------------------------------------------------------------

    def to_broker(self, connection: Connection, frames: Frames) -> None:
        """Send a message from a peer."""
        # A second hello could not be told from a new one: a transport that does this is none.
        if b'"op":"hello"' not in frames[-1]:
            connection.last_sent.append(frames)
        self._deliver(connection, frames)

    def _deliver(self, connection: Connection, frames: Frames) -> None:
        arrives = self._takes(connection, connection.arrives_at_broker)
        if arrives is not None:
            connection.arrives_at_broker = arrives
            self.world.at(arrives, self._at_broker, connection, frames)

    def _at_broker(self, connection: Connection, frames: Frames) -> None:
        if self.world.now < connection.lost_from:
            self.inbox.append([connection.identity, *frames])

    def to_peer(self, connection: Connection, frames: Frames) -> None:
        """Send a message from the broker."""
        arrives = self._takes(connection, connection.arrives_at_peer)
        if arrives is not None:
            connection.arrives_at_peer = arrives
            self.world.at(arrives, self._at_peer, connection, frames)

    def _at_peer(self, connection: Connection, frames: Frames) -> None:
        peer = connection.peer
        if peer.connection is connection and not connection.is_cut:
            peer.arrived(frames)
        elif connection.leftovers is not None:
            connection.leftovers.append(frames)

    def _takes(self, connection: Connection, no_earlier: float) -> float | None:
        """When a message sent now arrives; None for never."""
        world = self.world
        if connection.is_cut or connection.is_mute:
            return None
        delay = self._dice.expovariate(1.0) * self._latency
        if world.is_rough and world.rates:
            if world.strikes("lost"):
                self.cut(connection)
                return None
            if world.strikes("vanished"):
                self._mute(connection)
                return None
            if world.strikes("delayed"):
                delay += self._dice.uniform(0, 2)
        return max(no_earlier, world.now + delay)
