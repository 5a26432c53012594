"""A peer that speaks ZMTP 3.0 by itself, and so can say what libzmq never would."""

from __future__ import annotations

import socket
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

GREETING = (
    b"\xff" + b"\0" * 7 + b"\x01\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + b"\0" * 31
)
MORE, LARGE, COMMAND = 1, 2, 4


def frame(body: bytes, *, more: bool = False) -> bytes:
    """Give a message frame as it goes over the wire."""
    return header(len(body), more=more) + body


def header(size_bytes: int, *, more: bool = False) -> bytes:
    """Give what announces a frame of so many bytes."""
    if size_bytes < 256:
        return bytes([MORE * more, size_bytes])
    return bytes([MORE * more | LARGE]) + size_bytes.to_bytes(8, "big")


def command(name: bytes, body: bytes = b"") -> bytes:
    """Give a command frame."""
    content = bytes([len(name)]) + name + body
    return bytes([COMMAND, len(content)]) + content


def message(json: bytes) -> bytes:
    """Give a whole message of Pointsman's protocol."""
    return frame(b"", more=True) + frame(b"PM1", more=True) + frame(json)


def ready(socket_type: bytes = b"DEALER", identity: bytes = b"") -> bytes:
    """Give the command that ends the handshake."""
    metadata = _property(b"Socket-Type", socket_type) + _property(b"Identity", identity)
    return command(b"READY", metadata)


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value


class RawPeer:
    """A TCP connection to a broker."""

    def __init__(self, endpoint: str, *, receive_buffer_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(20)
        self.socket.connect(self.place(endpoint))

    @staticmethod
    def place(endpoint: str) -> tuple[str, int]:
        """Give host and port of an endpoint."""
        parts = urlsplit(endpoint)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def shake_hands(self, identity: bytes = b"") -> Self:
        """Become a peer like any other."""
        self.socket.sendall(GREETING + ready(identity=identity))
        self.skip_greeting()
        return self

    def skip_greeting(self) -> None:
        """Read what the broker says in the handshake."""
        self._receive_exactly(64)
        self.receive_frame()

    def send(self, data: bytes) -> bool:
        """Send bytes; say whether the broker still takes any."""
        try:
            self.socket.sendall(data)
        except (ConnectionError, TimeoutError):
            return False
        return True

    def receive_frame(self) -> tuple[int, bytes]:
        """Give flags and body of the next frame or command."""
        (flags,) = self._receive_exactly(1)
        size = int.from_bytes(self._receive_exactly(8 if flags & LARGE else 1), "big")
        return flags, self._receive_exactly(size)

    def receive_message(self) -> bytes:
        """Give the last frame of the next message; commands are passed over."""
        while True:
            flags, body = self.receive_frame()
            if not flags & (COMMAND | MORE):
                return body

    def is_cut_off_within(self, seconds: float) -> bool:
        """Say whether the broker closes the connection in that time, whatever it says before."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if not self.socket.recv(65536):
                    return True
            except ConnectionError:
                return True
            except TimeoutError:
                return False
        return False

    def _receive_exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = self.socket.recv(min(size, 1 << 20))
            if not part:
                raise ConnectionError("the broker closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()
