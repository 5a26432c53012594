"""A TCP connection to a peer's server, read through a buffer."""

import socket


class Stream:
    """Sends at once, reads whole lines or so many bytes."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send = self._socket.sendall
        self._buffer = b""
        # How much of the buffer has been read.
        self._read = 0

    def line(self) -> bytes:
        """The next line, without its end."""
        while (end := self._buffer.find(b"\r\n", self._read)) < 0:
            self._more()
        line = self._buffer[self._read : end]
        self._read = end + 2
        return line

    def take(self, size: int) -> bytes:
        """The next so many bytes."""
        while len(self._buffer) - self._read < size:
            self._more()
        taken = self._buffer[self._read : self._read + size]
        self._read += size
        return taken

    def _more(self) -> None:
        received = self._socket.recv(262_144)
        if not received:
            raise ConnectionError("the server closed the connection")
        self._buffer = self._buffer[self._read :] + received
        self._read = 0
