"""The background of a session: its connection lives on while nobody uses it.

The thread does not hold the session while it rests, so that a session that is dropped without
`close` is missed: then what it held is handed back.
"""

from __future__ import annotations

import weakref
from time import monotonic
from typing import Protocol

from worker_sdk.agent import Agent, Link
from worker_sdk.dealer import Dealer
from worker_sdk.rest import Rest

ANSWER_S = 5.0
"""How long a broker that is there may take to answer where nothing depends on the answer."""
LINGER_S = 0.5
"""How long what was sent last may take to go out."""


class Kept(Protocol):
    """What a session does in its background."""

    def tend(self) -> float | None:
        """Do what is due; for how long nothing is then. None: it is all over."""


def keep(known: weakref.ref[Kept], agent: Agent, dealer: Dealer, rest: Rest) -> None:
    """Tend a session until it is over: the body of the background thread."""
    while (session := known()) is not None:
        until_s = session.tend()
        del session
        if until_s is None:
            return
        dealer.woken_by(rest.rest(watching=True, until_s=until_s))
    _leave(agent, dealer, rest)


def _leave(agent: Agent, dealer: Dealer, rest: Rest) -> None:
    """Say bye for a session that was dropped."""
    agent.leave(monotonic())
    dealer.exchange(monotonic())
    deadline = monotonic() + ANSWER_S
    while not is_gone(agent) and (now := monotonic()) < deadline:
        until_s = min(deadline, dealer.next_due()) - now
        dealer.woken_by(rest.rest(watching=True, until_s=until_s))
        dealer.exchange(monotonic())
    rest.close()
    dealer.close(LINGER_S)


def is_gone(agent: Agent) -> bool:
    """Whether bye was said, or there is nobody to say it to."""
    return agent.link in (Link.LEFT, Link.AWAY) or agent.fault is not None
