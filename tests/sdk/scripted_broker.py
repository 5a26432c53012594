"""A broker that answers as a test tells it to: lost, late, wrong and repeated answers."""

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from worker_sdk.messages import Request

Answer = dict[str, Any] | list[bytes] | None
Script = Callable[[Any], Answer | Iterable[dict[str, Any]]]


class ScriptedBroker:
    """``script`` gets each request; what it gives is the answer.

    A dict is a message (``req`` is filled in), a list of bytes stands for the frames after the
    empty one, None is silence, a tuple of dicts is several messages.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Any] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self._router.setsockopt(zmq.RCVTIMEO, 20)
        while not self._over.is_set():
            try:
                *envelope, protocol, content = self._router.recv_multipart()
            except zmq.Again:
                continue
            request = msgspec.json.decode(content, type=Request)
            self.requests.append(request)
            answer = self.script(request)
            if isinstance(answer, list):
                self._router.send_multipart(envelope + answer)
                continue
            for each in (answer,) if isinstance(answer, dict) else answer or ():
                reply = msgspec.json.encode({"req": request.req, **each})
                self._router.send_multipart([*envelope, protocol, reply])
        self._router.close(linger=0)

    def ops(self) -> list[str]:
        """The op of each request so far."""
        return [type(request).__name__.lower() for request in self.requests]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._context.term()


def in_turn(*answers: Answer | tuple[dict[str, Any], ...]) -> Script:
    """The answers one after the other, the last one again and again."""
    left = list(answers)

    def script(_: Any) -> Any:
        return left.pop(0) if len(left) > 1 else left[0]

    return script
