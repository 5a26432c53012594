"""Cuts off connections that hoard the broker's memory in libzmq's queues.

libzmq bounds the size of a frame and the number of messages in a queue. That leaves three ways to
fill the memory from one connection, all found by measurement (tests/hostile): a message whose
frames never end, which is held until its last one (an empty frame takes 2 bytes on the wire and 64
in memory); a thousand messages of the largest size, sent faster than they are taken; and answers of
the largest size, asked for a thousand times and never read.

So what is read of each connection and what is posted to it is counted, and the loop looks at the
process's memory four times a second. As long as that grows by no more than what live jobs take,
that is all. If it grows further, the kernel is asked how many bytes each TCP connection has sent
and taken: the difference is what it hoards. Those that hoard the most are shut down, until the rest
is within the bound; libzmq then drops what is incomplete or not sent. A peer that meant no harm
connects again and says it again.

Linux only, and TCP only: elsewhere nobody is cut off. Whoever may connect to an ipc endpoint could
fill the broker's disk as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import zmq

from broker.codec import FRAMES_MOST
from broker.log import get_logger
from worker_sdk.frames import receive_frame

log = get_logger("hoarders")

_LOOK_EVERY_S = 0.25
_LOOKING_SHARE = 0.1
"""How much of the loop's time looking at connections may take."""
_AMPLIFIED_MOST = 32
"""How many bytes libzmq takes for a byte on the wire at most: 64 for an empty frame's two."""
_OVERHEAD_BYTES = 64
"""More than the wire has for a frame besides its content, encrypted or not."""
_IDLE_BYTES_A_S = 20
"""More than ZMTP's own heartbeats take, 16 bytes in 5 s, encrypted 82: libzmq keeps them."""
_JOB_BYTES = 1_500
"""About what a live job takes besides its args."""

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_DESCRIPTORS = Path("/proc/self/fd")
_TCP_INFO_BYTES = 152
_ESTABLISHED = 1
_COUNTERS = struct.Struct("=QQ")
_COUNTERS_AT = 120  # tcpi_bytes_acked and tcpi_bytes_received, since Linux 4.1


class _Account:
    """What passed between the loop and one connection."""

    __slots__ = ("fd", "identity", "opened", "posted_bytes", "read_at_last_look", "read_bytes")

    def __init__(self, identity: bytes, fd: int, opened: float) -> None:
        self.identity = identity
        self.fd = fd
        # When its first message was read, monotonic seconds.
        self.opened = opened
        # What the loop took of it, and gave to it; never less than what the kernel says of it.
        self.read_bytes = 0
        self.posted_bytes = 0
        # The former when connections were looked at last.
        self.read_at_last_look = 0


class _Hoard:
    """What one connection holds of the broker's memory, in bytes on the wire."""

    __slots__ = ("fd", "is_stuck", "unread", "untaken")

    def __init__(self, fd: int, unread: int, untaken: int, is_stuck: bool) -> None:
        self.fd = fd
        self.unread = unread
        self.untaken = untaken
        # Whether nothing that came could be read since the last look.
        self.is_stuck = is_stuck


class Hoarders:
    """Watches over the memory of one ROUTER, whose messages are taken through it.

    Used by the loop's thread alone. `limit_bytes` is what unread input and untaken output may take,
    `frame_bytes` the largest frame; `live_bytes` gives how much memory live jobs should take.
    """

    def __init__(
        self,
        router: zmq.Socket[bytes],
        endpoints: Sequence[str],
        *,
        limit_bytes: int,
        frame_bytes: int,
        live_bytes: Callable[[], int],
    ) -> None:
        self._router = router
        self._ports = {urlsplit(each).port for each in endpoints if each.startswith("tcp://")}
        self.limit_bytes = limit_bytes
        self._frame_bytes = frame_bytes
        self._live_bytes = live_bytes
        # How many connections were cut off.
        self.cut_off = 0
        # When to look again; never where there is nothing to be seen.
        self._first_due = 0.0 if self._ports and _STATM.exists() else math.inf
        self.due = self._first_due
        # What was posted to all connections since the last look.
        self._posted_bytes = 0
        # What the process takes besides live jobs and hoards, once that is known.
        self._floor_bytes: int | None = None
        # The connections that were heard, by identity and by descriptor.
        self._accounts: dict[bytes, _Account] = {}
        self._by_fd: dict[int, _Account] = {}

    # ---- what passes through ----

    def receive(self, flags: int) -> tuple[list[bytes], zmq.Frame]:
        """Give the next message and its last frame; of one with far too many frames, no more of
        them than show that.
        """
        router = self._router
        frames: list[bytes] = []
        size = 0
        while True:
            frame = receive_frame(router, flags, False)
            size += len(frame) + _OVERHEAD_BYTES
            if len(frames) <= FRAMES_MOST:
                frames.append(frame.bytes)
            if not frame.more:
                break
        account = self._accounts.get(frames[0])
        if account is None:
            account = self._open(frames[0], frame)
        account.read_bytes += size
        return frames, frame

    def posted(self, identity: bytes, size_bytes: int) -> None:
        """Note that so much was sent to a connection."""
        self._posted_bytes += size_bytes
        if self._posted_bytes > self.limit_bytes:
            # A fast machine could fill much more than that until the next look is due.
            self.due = min(self.due, self._first_due)
        # Plain bytes: with keys, an identity is only the same together with its key (see Peer).
        account = self._accounts.get(bytes(identity))
        if account is not None:
            account.posted_bytes += size_bytes

    def _open(self, identity: bytes, frame: zmq.Frame) -> _Account:
        try:
            fd = int(frame.get(zmq.SRCFD))
        except zmq.ZMQError:
            fd = -1
        account = _Account(identity, fd, time.monotonic())
        former = self._by_fd.get(fd)
        if former is not None:
            # Its connection has gone: another one has its descriptor.
            self._accounts.pop(former.identity, None)
        self._accounts[account.identity] = self._by_fd[fd] = account
        return account

    # ---- looks ----

    def look(self, now: float) -> None:
        """See whether memory grows, and if it does, through whom; almost free otherwise."""
        if now < self.due:
            return
        self.due = now + _LOOK_EVERY_S
        self._posted_bytes = 0
        try:
            self._look()
        except OSError as error:
            # Nothing can be opened while there are no descriptors; there is soon another look.
            log.debug("memory not looked at", why=str(error))

    def _look(self) -> None:
        taken = _own_memory_bytes() - self._live_bytes()
        if self._floor_bytes is None or taken < self._floor_bytes:
            self._floor_bytes = taken
        grown = taken - self._floor_bytes
        if grown < self.limit_bytes // 4:
            return
        began = time.monotonic()
        hoards = list(self._hoards(began))
        guilty = self._guilty(hoards, grown)
        if guilty:
            for hoard in guilty:
                self._cut_off(hoard)
            # What they had is free then, but libc keeps it: the next growth would be invisible.
            _give_back_memory()
        else:
            suspected = sum(
                hoard.untaken + hoard.unread * (_AMPLIFIED_MOST if hoard.is_stuck else 1)
                for hoard in hoards
            )
            # The rest is the broker's own: what it keeps of ended jobs, caches, fragments.
            self._floor_bytes += max(0, grown - suspected)
        self.due += (time.monotonic() - began) / _LOOKING_SHARE

    def _guilty(self, hoards: list[_Hoard], grown: int) -> list[_Hoard]:
        """Give those that must go for the rest to be within the bound, none if it is."""
        # An incomplete message of this size is longer than any that is taken.
        guilty = {each for each in hoards if each.is_stuck and each.unread > self._frame_bytes}
        unread = sum(each.unread for each in hoards)
        untaken = sum(each.untaken for each in hoards)
        guilty.update(_largest(hoards, lambda each: each.unread, unread - self.limit_bytes))
        guilty.update(_largest(hoards, lambda each: each.untaken, untaken - self.limit_bytes))
        unexplained = grown - unread - untaken
        if unexplained > self.limit_bytes // 2:
            # Small frames, then, by somebody who never comes to an end.
            stuck = [each for each in hoards if each.is_stuck]
            could_be = _AMPLIFIED_MOST * sum(each.unread for each in stuck)
            if could_be > unexplained // 2:
                guilty.update(
                    _largest(stuck, lambda each: each.unread, unexplained // _AMPLIFIED_MOST)
                )
        return list(guilty)

    def _hoards(self, now: float) -> Iterator[_Hoard]:
        """Ask the kernel about the TCP connections to the router's endpoints. 5 us each."""
        for name in os.listdir(_DESCRIPTORS):
            with contextlib.suppress(OSError), _borrowed(int(name)) as peer:
                info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                is_peer = info[:1] == bytes([_ESTABLISHED]) and len(info) == _TCP_INFO_BYTES
                if is_peer and peer.getsockname()[1] in self._ports:
                    acked, received = _COUNTERS.unpack_from(info, _COUNTERS_AT)
                    yield self._hoard(int(name), acked, received, now)

    def _hoard(self, fd: int, acked: int, received: int, now: float) -> _Hoard:
        account = self._by_fd.get(fd)
        if account is None:
            return _Hoard(fd, received, 0, is_stuck=True)  # it never came to an end
        if received < account.read_bytes:
            account.read_bytes = received  # what was added for overhead was too much
        account.posted_bytes = max(account.posted_bytes, acked)
        is_stuck = account.read_bytes <= account.read_at_last_look
        account.read_at_last_look = account.read_bytes
        heartbeats = int(_IDLE_BYTES_A_S * (now - account.opened))
        unread = max(0, received - account.read_bytes - heartbeats)
        return _Hoard(fd, unread, account.posted_bytes - acked, is_stuck)

    def _cut_off(self, hoard: _Hoard) -> None:
        with contextlib.suppress(OSError), _borrowed(hoard.fd) as peer:
            address = ":".join(map(str, peer.getpeername()[:2]))
            peer.shutdown(socket.SHUT_RDWR)
            self.cut_off += 1
            log.warning(
                "connection cut off: it takes too much memory",
                peer=address,
                unread=hoard.unread,
                untaken=hoard.untaken,
            )


def live_bytes(args_bytes: int, jobs: int) -> int:
    """Give about what live jobs take."""
    return args_bytes + jobs * _JOB_BYTES


def _largest(some: list[_Hoard], size: Callable[[_Hoard], int], excess: int) -> list[_Hoard]:
    """Give the largest of `some` that together make up for the excess; none if there is none."""
    found: list[_Hoard] = []
    if excess > 0:
        for each in sorted(some, key=size, reverse=True):
            if excess <= 0 or not size(each):
                break
            found.append(each)
            excess -= size(each)
    return found


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """Give a socket object for a descriptor that is libzmq's, and stays so."""
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _own_memory_bytes() -> int:
    """Give how much memory the process has for itself, files not counted.

    50 us in a process that has slept; through pathlib and io it is 130, four times a second.
    """
    descriptor = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _, resident, shared, *_ = os.read(descriptor, 200).split()
    finally:
        os.close(descriptor)
    return (int(resident) - int(shared)) * _PAGE_BYTES


def _give_back_memory() -> None:
    """Have libc return what is free to the system, where it knows how to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
