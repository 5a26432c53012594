"""Cuts off open connections: which libzmq has no call for, but the kernel has.

libzmq tells of each message which file descriptor it came over. When a key is revoked, the
connections that were heard with it are shut down; libzmq then takes them for broken.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from urllib.parse import urlsplit


class Heard:
    """The connections that messages came over, each with the key that it was let in with."""

    def __init__(self) -> None:
        # descriptor -> key. Descriptors are used again, so there are never many.
        self._keys: dict[int, str] = {}
        # Where connections come in: the ports, and the paths of ipc sockets.
        self._ports: set[int | None] = set()
        self._paths: set[str] = set()

    def listens_on(self, endpoint: str) -> None:
        """Take note of one of the broker's endpoints."""
        if endpoint.startswith("ipc://"):
            self._paths.add(endpoint.removeprefix("ipc://"))
        else:
            self._ports.add(urlsplit(endpoint).port)

    def note(self, descriptor: int, key: str) -> None:
        """Take note of a message."""
        self._keys[descriptor] = key

    def cut_off(self, is_unwanted: Callable[[str], bool]) -> int:
        """Shut down the connections of unwanted keys; give how many that were."""
        unwanted = [each for each, key in self._keys.items() if is_unwanted(key)]
        for descriptor in unwanted:
            del self._keys[descriptor]
        return sum(map(self._shut_down, unwanted))

    def _shut_down(self, descriptor: int) -> bool:
        # By now it may be another connection's, which will be made again, or none at all, which is
        # left alone. A duplicate stays what it is while it is looked at.
        with contextlib.suppress(OSError):
            with socket.socket(fileno=os.dup(descriptor)) as peer:
                listens = peer.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if not listens and self._came_in(peer):
                    peer.shutdown(socket.SHUT_RDWR)
                    return True
        return False

    def _came_in(self, peer: socket.socket) -> bool:
        name = peer.getsockname()
        if peer.family == socket.AF_UNIX:
            return os.fsdecode(name).replace("\0", "@", 1) in self._paths
        return name[1] in self._ports
