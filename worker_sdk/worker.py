"""The worker that people write: handlers by job type, and the life of the process around them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Literal, Self, TypeVar
from uuid import uuid4

from worker_sdk.agent import Agent
from worker_sdk.child import check_found
from worker_sdk.connection import chosen_endpoint
from worker_sdk.handlers import (
    Function,
    Handler,
    Misuse,
    checked_name,
    checked_names,
    is_count,
    make_handler,
)
from worker_sdk.hands import Hands
from worker_sdk.keys import AnyPath, chosen_keys
from worker_sdk.messages import DEFAULT_CHANNEL
from worker_sdk.rest import Rest
from worker_sdk.workload import Workload

log = logging.getLogger("worker_sdk")

DecoratedFunction = TypeVar("DecoratedFunction", bound=Callable[..., Any])

GRACE_S = 30.0
CONFIRM_INTERVAL_S = 0.2
"""How long a result may be under way before the worker asks whether it has arrived. To ask with
each one costs a job alone 60 us: a message more for the broker to send and the worker to read."""
CONCURRENCY_LIMIT = 10_000


class Worker:
    """Runs jobs of the types that it has handlers for.

    `endpoint`: the broker's; left out, the environment's POINTSMAN_BROKER or the default one.
    `concurrency`: how many jobs run at a time at most, of all kinds together.
    `name`: what the broker's logs call it; left out, made of host and process id.
    `channels`: the channels that it takes jobs from.
    `executor`: where plain functions run unless they say: in a "thread" or a "process".
    `grace`: how many seconds running jobs have to end once the worker is asked to stop.
    `key`, `broker_key`: for a broker with keys, the files of this worker's secret key and of the
    broker's public one; left out, those that POINTSMAN_KEY and POINTSMAN_BROKER_KEY name.

    ```
    worker = Worker(concurrency=4)

    @worker.job("resize")
    def resize(job: Job):
        return {"ok": True}

    worker.run()
    ```
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        concurrency: int = 4,
        name: str | None = None,
        channels: Iterable[str] = (DEFAULT_CHANNEL,),
        executor: Literal["thread", "process"] = "thread",
        grace: float = GRACE_S,
        key: AnyPath | None = None,
        broker_key: AnyPath | None = None,
    ) -> None:
        if not is_count(concurrency) or concurrency > CONCURRENCY_LIMIT:
            raise ValueError(
                f"concurrency is a whole number from 1 to {CONCURRENCY_LIMIT}, not {concurrency!r}"
            )
        if not _is_duration(grace):
            raise ValueError(f"grace is a number of seconds from 0 on, not {grace!r}")
        if executor not in ("thread", "process"):
            raise ValueError(f"executor is 'thread' or 'process', not {executor!r}")
        self.endpoint = endpoint
        self.concurrency = concurrency
        # None or "": `default_name` when it starts, perhaps in a process forked since.
        self.name = checked_name("a worker's name", name) if name not in (None, "") else None
        self.channels = checked_names("channel", channels)
        self.executor = executor
        self.grace = grace
        self.key = key
        self.broker_key = broker_key
        self._handlers: dict[str, Handler] = {}
        # Set while it runs: its threads, and the process that they belong to.
        self._hands: Hands | None = None
        self._pid = 0
        # Guards start and stop against each other.
        self._life = threading.Lock()
        # Of the `run` that is under way: how often a signal asked to stop; where it waits for that.
        self._signals = 0
        self._bell: Rest | None = None

    def job(
        self,
        type: str,
        *,
        executor: Literal["thread", "process"] | None = None,
        concurrency: int | None = None,
    ) -> Callable[[DecoratedFunction], DecoratedFunction]:
        """Make a function the handler of a job type.

        It is called with the `Job`; what it returns is the job's result, and if it raises, the
        attempt has failed (with `JobRejected`, or a result that cannot be sent: for good). An
        ``async def`` runs as a task of one asyncio loop and is truly canceled. With `executor`
        "process" a plain function runs in a process of its own that is killed when the job is
        canceled or takes too long; the process imports it by its name, so it has to stand at the
        top level of a module, without another decorator above this one. `concurrency`: how many
        jobs of this type run at a time at most.
        """

        def register(function: DecoratedFunction) -> DecoratedFunction:
            self.add(type, function, executor=executor, concurrency=concurrency)
            return function

        return register

    def add(
        self,
        type: str,
        function: Function,
        *,
        executor: Literal["thread", "process"] | None = None,
        concurrency: int | None = None,
    ) -> None:
        """Make `function` the handler of a job type: `job` for where no decorator will do."""
        if self._hands is not None:
            raise RuntimeError(f"the worker runs already: too late for a handler of {type!r}")
        if type in self._handlers:
            known = self._handlers[type].function
            raise ValueError(f"{type!r} has a handler already: {known!r}")
        self._handlers[type] = make_handler(type, function, executor, self.executor, concurrency)

    # ---- in the foreground -----------------------------------------------------------------------

    def run(self) -> None:
        """Run jobs until SIGTERM, SIGINT or `stop`; then finish what runs, and leave.

        The first signal gives running jobs `grace` seconds to end, the second one none. Signals
        are only heeded in the main thread; elsewhere `stop` is the only end. Raises a
        `PointsmanError` if the broker refuses this worker, and any error of the worker's own.
        """
        bell = Rest()
        try:
            with self._heeding_signals():
                hands = self._begin(bell)
                self._wait_for_the_end(hands, bell)
        finally:
            with self._life:
                if self._bell is bell:
                    self._bell = None
                    self._signals = 0
                bell.close()
        if hands.fault is not None:
            raise hands.fault

    def _wait_for_the_end(self, hands: Hands, bell: Rest) -> None:
        while self._hands is hands:
            if self._signals or hands.fault is not None:
                if hands.fault is None:
                    log.info("leaving: running jobs have %g s to end", self.grace)
                self._stop(hands)
                break
            bell.rest()

    @contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def heed(number: int, frame: FrameType | None) -> None:
            self._signals += 1
            self._ring()

        before = {number: signal.signal(number, heed) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ring(self) -> None:
        bell = self._bell
        if bell is not None:
            bell.call()

    # ---- in the background ---------------------------------------------------------------------

    def start(self) -> None:
        """Connect and run jobs in threads of their own until `stop`; returns at once.

        Whether there is a broker is not waited for: the worker connects as soon as there is.
        """
        self._begin(None)

    def _begin(self, bell: Rest | None) -> Hands:
        """Start; `bell` is where its `run` waits, untouched by one that is refused."""
        with self._life:
            if self._hands is not None:
                self._check_process()
                raise Misuse("the worker runs already")
            if not self._handlers:
                raise Misuse("the worker has no handlers: use @worker.job(type) first")
            for handler in self._handlers.values():
                if handler.executor == "process":
                    check_found(handler)
            agent = Agent(
                types=self._handlers,
                channels=self.channels,
                name=self.name or default_name(),
                session=uuid4().hex,
                confirm_interval_s=CONFIRM_INTERVAL_S,
            )
            keys = chosen_keys(self.key, self.broker_key)
            limits = {type: each.limit for type, each in self._handlers.items() if each.limit}
            workload = Workload(agent, self.concurrency, limits)
            hands = Hands(
                chosen_endpoint(self.endpoint),
                agent,
                workload,
                self._handlers,
                self.concurrency,
                keys,
            )
            hands.on_over = self._ring
            self._bell = bell
            hands.start()
            self._hands = hands
            self._pid = os.getpid()
            return hands

    def stop(self) -> None:
        """Finish what runs within `grace` seconds, hand back the rest, and leave."""
        hands = self._hands
        if hands is not None:
            self._check_process()
            self._stop(hands)

    def _stop(self, hands: Hands) -> None:
        if hands.is_own_thread():
            raise RuntimeError("a handler cannot stop its own worker: it would wait for itself")
        with self._life:
            if self._hands is not hands:
                return
            try:
                hands.leave(self.grace, is_hurried=lambda: self._signals > 1)
            finally:
                self._hands = None
                self._ring()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        endpoint = self.endpoint or "the broker that its environment names"
        types = ", ".join(self._handlers) or "nothing"
        return f"<Worker of {endpoint} for {types}{', running' if self.is_running else ''}>"

    @property
    def is_running(self) -> bool:
        """Whether the worker was started and not stopped since."""
        return self._hands is not None

    @property
    def fault(self) -> BaseException | None:
        """Why this worker runs nothing any more although it was not stopped; None if it does.

        A `PointsmanError` if the broker refuses it, else an error in the worker itself.
        """
        return self._hands.fault if self._hands is not None else None

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"this worker was started in process {self._pid}, and process {os.getpid()} was "
                "forked from it: threads and sockets do not survive that; start workers after "
                "forking"
            )


def _is_duration(value: object) -> bool:
    # The comparison is what refuses nan.
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def default_name() -> str:
    """What a worker is called that was not given a name: its host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"[:200]
