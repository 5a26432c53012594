"""A peer that speaks the protocol by hand: frames and JSON, nothing of the SDK."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import zmq

PATIENCE_MS = 10_000
QUIET_MS = 150

_ids = itertools.count(1)


def new_id() -> str:
    """Give an id that no other test of this run has."""
    return f"0198c2f0-8a00-7000-8000-{next(_ids):012x}"


def job(type: str = "work", **fields: Any) -> dict[str, Any]:
    """Give a job to be enqueued."""
    return {"id": new_id(), "type": type, **fields}


class Peer:
    """A DEALER, or with `kind` a REQ, connected to a broker."""

    def __init__(self, endpoint: str, kind: int = zmq.DEALER, **options: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.linger = 0
        for name, value in options.items():
            self.socket.set(getattr(zmq, name), value)
        self.socket.connect(endpoint)
        self._leading = [] if kind == zmq.REQ else [b""]
        self._reqs = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Go without a word."""
        self._context.destroy(linger=0)

    # ---- frames ----

    def send_frames(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def receive_frames(self) -> list[bytes]:
        assert self.socket.poll(PATIENCE_MS), "the broker does not answer"
        return self.socket.recv_multipart()

    # ---- messages ----

    def send(self, payload: bytes | str | dict[str, Any]) -> None:
        """Send one JSON frame, given as such or as what is in it."""
        if isinstance(payload, dict):
            payload = json.dumps(payload)
        if isinstance(payload, str):
            payload = payload.encode()
        self.send_frames(*self._leading, b"PM1", payload)

    def receive(self) -> dict[str, Any]:
        """Give the next message from the broker."""
        *leading, version, payload = self.receive_frames()
        assert (leading, version) == (self._leading, b"PM1")
        message = json.loads(payload)
        assert isinstance(message, dict)
        return message

    def answer_to(self, payload: bytes | str) -> dict[str, Any]:
        """Send a frame as it is, and give the answer."""
        self.send(payload)
        return self.receive()

    def say(self, op: str, **fields: Any) -> int:
        """Send a request; give the req that its answer will have."""
        req = next(self._reqs)
        self.send({"op": op, "req": req, **fields})
        return req

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request, and give its answer without `req`."""
        req = self.say(op, **fields)
        answer = self.receive()
        assert answer.pop("req") == req
        return answer

    def ok(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request that is carried out; give what its answer says besides."""
        answer = self.ask(op, **fields)
        assert answer.pop("op") == "ok", answer
        return answer

    def error(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request that is refused; give the error."""
        answer = self.ask(op, **fields)
        assert answer["op"] == "error", answer
        assert answer["message"]
        return answer

    def code(self, op: str, **fields: Any) -> str:
        """Send a request that is refused; give the error's code."""
        code = self.error(op, **fields)["code"]
        assert isinstance(code, str)
        return code

    def hears_nothing(self) -> bool:
        """Say whether nothing comes for a moment."""
        return not self.socket.poll(QUIET_MS)

    # ---- what tests do again and again ----

    def enqueue(self, type: str = "work", **fields: Any) -> str:
        """Enqueue one job; give its id."""
        one = job(type, **fields)
        assert self.ok("enqueue", jobs=[one]) == {"ids": [one["id"]]}
        id = one["id"]
        assert isinstance(id, str)
        return id

    def status(self, id: str) -> dict[str, Any]:
        (info,) = self.ok("status", ids=[id], args=True)["jobs"]
        assert isinstance(info, dict)
        return info

    def state(self, id: str) -> str:
        state = self.status(id)["state"]
        assert isinstance(state, str)
        return state

    def hello(self, *types: str, **fields: Any) -> dict[str, Any]:
        """Become a worker; give the welcome."""
        welcome = self.ask("hello", types=types or ["work"], **fields)
        assert welcome.pop("op") == "welcome", welcome
        return welcome

    def next_jobs(self) -> list[dict[str, Any]]:
        """Give the jobs that the broker sends next."""
        message = self.receive()
        assert message["op"] == "jobs", message
        jobs = message["jobs"]
        assert isinstance(jobs, list)
        return jobs

    def next_job(self) -> dict[str, Any]:
        (one,) = self.next_jobs()
        return one

    def finish(self, one: dict[str, Any], result: Any = None) -> None:
        assert self.ok("finish", jobs=[[one["id"], one["attempt"], result]]) == {}


def run_one(worker: Peer, result: Any = None) -> str:
    """Have a worker take its next job and finish it; give its id."""
    one = worker.next_job()
    worker.finish(one, result)
    id = one["id"]
    assert isinstance(id, str)
    return id


def ids_of(jobs: Sequence[dict[str, Any]]) -> list[str]:
    return [one["id"] for one in jobs]


def becomes(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it never came to that")
