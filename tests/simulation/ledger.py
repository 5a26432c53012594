"""What clients and workers have seen, and what can therefore never be otherwise.

It knows nothing of the core or the model: only what arrived at the far ends.
"""

from __future__ import annotations

import json
from typing import Any

from tests.simulation.violation import Violation
from tests.simulation.world import World
from worker_sdk.messages import Assignment
from worker_sdk.status import JobStatus


class Ledger:
    """The promises that were made, each with its beneficiary's word for it."""

    def __init__(self, world: World) -> None:
        self._world = world
        # Jobs whose enqueue was acknowledged: they exist until they may be forgotten.
        self.acknowledged: dict[str, Any] = {}
        # Jobs that somebody may have deleted, retried: what is known of them is not final.
        self.may_be_gone: set[str] = set()
        self.may_be_retried: set[str] = set()
        # id -> how it ended, as somebody saw it.
        self.ends: dict[str, tuple[str, object]] = {}
        # Tokens that some worker was given.
        self.tokens: set[tuple[str, int]] = set()
        # Whom each job depends on.
        self.dependencies: dict[str, set[str]] = {}

    def is_open(self, id: str) -> bool:
        """Whether the job may have begun a new life, in which all is to come again."""
        # What was canceled with a job is revived with it.
        line = [id]
        seen = set(line)
        for one in line:
            if one in self.may_be_retried or self._may_be_new(one):
                return True
            new = self.dependencies.get(one, set()) - seen
            seen |= new
            line += new
        return False

    def _may_be_new(self, id: str) -> bool:
        # What was forgotten can be enqueued again, also by a client that had no answer.
        return id in self.may_be_gone or self._world.plan.forgets

    # ---- what clients saw --------------------------------------------------------------------

    def saw(self, status: JobStatus) -> None:
        """A client saw the state of a job."""
        if status.state not in ("finished", "failed", "canceled"):
            return
        what: object = status.reason if status.state == "canceled" else status.error
        if status.state == "finished":
            what = json.dumps(status.result, sort_keys=True)
        self.ended(str(status.id), status.state, what)

    def ended(self, id: str, state: str, what: object) -> None:
        """Somebody was told how a job ended."""
        first = self.ends.setdefault(id, (state, what))
        if first != (state, what):
            if not self.is_open(id):
                raise Violation(f"{id} ended as {first}, and later as {(state, what)}")
            self.ends[id] = (state, what)

    def missing(self, ids: list[str]) -> None:
        """A client was told that these do not exist."""
        lost = [id for id in ids if id in self.acknowledged and not self._may_be_new(id)]
        if lost:
            raise Violation(f"acknowledged and lost: {lost}")

    def canceled_by_request(self, id: str) -> None:
        """A client was told that its cancel ended a job."""
        state, what = self.ends.get(id, ("canceled", None))
        if state != "canceled":
            self.ended(id, "canceled", what)

    # ---- what workers saw --------------------------------------------------------------------

    def given(self, assignment: Assignment) -> None:
        """A worker was given an attempt."""
        id = assignment.id
        token = (id, assignment.attempt)
        if token in self.tokens and not self._may_be_new(id):
            raise Violation(f"the token {token} was given out twice")
        self.tokens.add(token)
        for dependency, result in (assignment.inputs or {}).items():
            self.ended(
                dependency, "finished", json.dumps(json.loads(bytes(result)), sort_keys=True)
            )

    def confirmed(self, id: str, result: bytes | None, error: str | None = None) -> None:
        """The broker has confirmed an outcome that ends a job."""
        if result is None:
            self.ended(id, "failed", error)
        else:
            self.ended(id, "finished", json.dumps(json.loads(result), sort_keys=True))
