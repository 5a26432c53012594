"""Conversations of docs/protocol.md, played with a real broker on real sockets.

Each peer is a DEALER that sends what the document says, byte for byte. What the broker sends must
mean what the document says: all fields are compared but times, versions and texts for people.
At the end, nothing may be left that the document does not mention.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq
from msgspec import UNSET, Raw, Struct

from broker.config import Config
from broker.server import Server
from broker.store import open_store
from tests.protocol_document import DIRECTIONS, Block
from worker_sdk.messages import PROTOCOL, JobInfo

_PEERS = {"C": "client", "D": "client", "W": "worker"}
_SPOKEN = re.compile(r"([A-Z]) -> ([A-Z]): (.*)", re.DOTALL)
_TIMES = {"queued", "started", "finished", "ended", "due"}
_FREE = {"version", "message"}


@dataclass
class Line:
    """One message of a conversation: who says it to whom, in which frames."""

    sender: str
    receiver: str
    frames: list[bytes] = field(default_factory=list)

    @property
    def way(self) -> str:
        """The direction, as the document calls it."""
        return f"{_PEERS.get(self.sender, 'broker')} to {_PEERS.get(self.receiver, 'broker')}"


def lines(block: Block) -> Iterator[Line | str]:
    """Give the messages and the events of a ``dialogue`` or ``frames`` block."""
    text = "\n".join(line for line in block.text.splitlines() if not line.startswith("#"))
    for part in re.split(r"\n(?=\S)", text):
        if part.startswith("("):
            yield part.strip("()\n")
        elif block.kind == "frames":
            (sender, _, receiver), *frames = (line.split() for line in part.splitlines())
            yield Line(sender, receiver, [_frame(" ".join(frame)) for frame in frames])
        else:
            said = _SPOKEN.fullmatch(part)
            assert said is not None, f"{block.name}: what is {part!r}?"
            content = re.sub(r"\n\s+", " ", said[3]).strip()
            yield Line(said[1], said[2], [b"", PROTOCOL, content.encode()])


def _frame(text: str) -> bytes:
    assert text.startswith("["), text
    assert text.endswith("]"), text
    inner = text[1:-1]
    return bytes.fromhex(inner[2:]) if inner.startswith("0x") else inner.encode()


# ---- what a message means --------------------------------------------------------------------


def parse(content: bytes, way: str) -> Any:
    """Give the message of one direction that a JSON frame holds; raises msgspec's errors."""
    return msgspec.json.decode(content, type=DIRECTIONS[way])


def strangers(value: Any, parsed: Any, path: str = "$") -> list[str]:
    """Give the fields of some JSON that the structs it was parsed into do not have."""
    if isinstance(parsed, Struct) and not parsed.__struct_config__.array_like:
        known = {*parsed.__struct_encode_fields__, parsed.__struct_config__.tag_field}
        found = [f"{path}.{name}" for name in value if name not in known]
        for name in parsed.__struct_fields__:
            if name in value:
                found += strangers(value[name], getattr(parsed, name), f"{path}.{name}")
        return found
    if isinstance(parsed, Struct):
        parsed = [getattr(parsed, name) for name in parsed.__struct_fields__][: len(value)]
    if isinstance(parsed, list | tuple):
        pairs = enumerate(zip(value, parsed, strict=True))
        return [each for n, pair in pairs for each in strangers(pair[0], pair[1], f"{path}[{n}]")]
    return []


def meaning(parsed: Any) -> Any:
    """Give what a message says: every field, and the same for all that a broker may choose."""
    if isinstance(parsed, Struct):
        said = {name: meaning(getattr(parsed, name)) for name in parsed.__struct_fields__}
        for name, value in said.items():
            if isinstance(parsed, JobInfo) and name in _TIMES and isinstance(value, float):
                said[name] = "a time"
            elif name == "stats" and isinstance(value, dict):
                said[name] = {**value, "version": "free"}
            elif name in _FREE and isinstance(getattr(parsed, name), str) and value:
                said[name] = "free"
        return {"": type(parsed).__name__, **said}
    if isinstance(parsed, Raw):
        return msgspec.json.decode(parsed)
    if isinstance(parsed, list | tuple):
        return [meaning(each) for each in parsed]
    if isinstance(parsed, dict):
        return {key: meaning(value) for key, value in parsed.items()}
    return "left out" if parsed is UNSET else parsed


# ---- the play --------------------------------------------------------------------------------


class Stage:
    """A broker, and the peers that speak to it."""

    def __init__(self, options: dict[str, str], folder: str, patience_s: float = 10.0) -> None:
        self._patience_s = patience_s
        settings: dict[str, Any] = {"store": "memory", **options}
        if settings["store"] == "file":
            settings["store"] = f"sqlite:{folder}/jobs.db"
        self._settings = settings
        self._bind = "tcp://127.0.0.1:*"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._peers: dict[str, zmq.Socket[bytes]] = {}
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._context.destroy(linger=0)
        if self._server is not None:
            self._stop()

    def play(self, block: Block) -> None:
        """Play a conversation; AssertionError if the broker does not keep to it."""
        for line in lines(block):
            if isinstance(line, Line):
                self._say(line) if line.receiver == "B" else self._hear(line)
            else:
                self._happen(line)
        if self._server is not None:
            for name in list(self._peers):
                self._expect_silence(name)

    def peer(self, name: str) -> zmq.Socket[bytes]:
        """Give the peer's socket."""
        socket = self._peers.get(name)
        if socket is None:
            socket = self._peers[name] = self._context.socket(zmq.DEALER)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.connect(self._bind)
        return socket

    def hear(self, name: str) -> list[bytes]:
        """Give the frames of the next message to a peer."""
        socket = self.peer(name)
        assert socket.poll(int(self._patience_s * 1000)), f"{name} hears nothing"
        return socket.recv_multipart()

    def _say(self, line: Line) -> None:
        content = line.frames[-1]
        with contextlib.suppress(msgspec.MsgspecError):  # one that is to be refused
            assert not strangers(msgspec.json.decode(content), parse(content, line.way))
        self.peer(line.sender).send_multipart(line.frames)

    def _hear(self, line: Line) -> None:
        *frames, content = self.hear(line.receiver)
        *right_frames, right = line.frames
        assert frames == right_frames
        said, should = parse(content, line.way), parse(right, line.way)
        assert meaning(said) == meaning(should), f"{line.receiver} hears {content.decode()}"
        assert not strangers(msgspec.json.decode(right), should)

    def _happen(self, event: str) -> None:
        if anew := re.fullmatch("([A-Z]) connects anew", event):
            self._peers.pop(anew[1]).close(linger=0)
        elif event == "B restarts":
            for socket in self._peers.values():
                socket.close(linger=0)
            self._peers.clear()
            self._stop()
            self._start()
        elif event == "B drains":
            assert self._server is not None
            self._server.drain()
            self._take_turns()
        elif event == "B leaves":
            self._join()
        else:
            raise AssertionError(f"what is ({event})?")

    def _take_turns(self) -> None:
        """Return when the broker has ended the turn that it is in: it looks at its flags then."""
        for _ in range(2):
            self.peer("D").send_multipart([b"", PROTOCOL, b'{"op":"ping"}'])
            self.hear("D")

    def _expect_silence(self, name: str) -> None:
        """Have the peer ask for something: the answer must be the next thing that it hears."""
        self.peer(name).send_multipart([b"", PROTOCOL, b'{"op":"heartbeat","req":"curtain"}'])
        content = self.hear(name)[-1]
        assert b'"curtain"' in content, f"{name} hears what is not in the text: {content.decode()}"

    # ---- the broker ----

    def _start(self) -> None:
        config = Config(bind=(self._bind,), **self._settings)
        store = open_store(config.store)
        server = Server(config, store)
        (self._bind,) = server.endpoints

        def run() -> None:
            try:
                server.run()
            finally:
                store.close()

        self._server, self._thread = server, threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        assert self._server is not None
        self._server.drain()
        self._server.drain()
        self._join()

    def _join(self) -> None:
        assert self._thread is not None
        self._thread.join(10.0)
        assert not self._thread.is_alive(), "the broker does not leave"
        self._server = self._thread = None


def ask(stage: Stage, name: str, frames: Sequence[bytes]) -> Any:
    """Have a peer send frames; give the JSON of what it hears next."""
    stage.peer(name).send_multipart(frames)
    return msgspec.json.decode(stage.hear(name)[-1])
