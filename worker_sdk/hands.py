"""A worker's threads, and how they share its one connection.

The rule: **whoever needs the connection uses it.** A thread that has an outcome to send, or has
nothing to run, takes the lock, sends what there is, takes in what has come, takes the next job off
the queue, lets go of the lock and runs the job itself. So a job goes from the socket to its
handler and its outcome back to the socket without a hand-over between threads, each of which costs
30 to 50 µs. Only a thread that finds nothing to run rests. One of those that rest, the watcher,
does so on the socket's descriptors; it needs no lock for that, and the others may use the socket
meanwhile. Before a thread runs a handler that may take long, it calls another one to watch: a
resting hand or, when all hands are busy, the keeper, a thread that never runs a handler. Thereby
heartbeats go on and cancels arrive while handlers compute. Before handlers that are known to be
over at once nobody is called; should one of them take long after all, the keeper finds out within
``KEEPER_ROUND_S``. Outcomes go out together with whatever else there is to send: before the queue
runs empty, before a handler that may take long, and else every ``FLUSH_S``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from time import monotonic

from msgspec import UNSET, Raw

from worker_sdk.agent import Agent, Link
from worker_sdk.dealer import Dealer
from worker_sdk.errors import ClientClosed, from_wire
from worker_sdk.executors import Child, Ended, EventLoop
from worker_sdk.handlers import Handler, Succeeded, Verdict, failed, log_refused, reviewed, run
from worker_sdk.job import Job
from worker_sdk.keys import Keys
from worker_sdk.messages import Assignment, Error, Inputs, Ok
from worker_sdk.rest import Rest
from worker_sdk.workload import Workload

log = logging.getLogger("worker_sdk")

FLUSH_S = 0.002
"""How long an outcome waits at most while other short jobs are run."""
KEEPER_ROUND_S = 0.2
"""How often the keeper looks whether somebody watches."""
UNWATCHED_S = 0.01
"""How long ago the connection was used when the keeper takes the watch without being called."""
ANSWER_S = 5.0
"""How long a worker that leaves waits for the broker to confirm its outcomes."""
_RECHECK_S = 0.05


class Hands:
    """Runs the jobs of one connected worker. `started` once, then to be left with `leave`."""

    def __init__(
        self,
        endpoint: str,
        agent: Agent,
        workload: Workload,
        handlers: Mapping[str, Handler],
        concurrency: int,
        keys: Keys | None = None,
    ) -> None:
        self._agent = agent
        self._workload = workload
        self._handlers = handlers
        self._concurrency = concurrency
        self._dealer = Dealer(endpoint, agent, keys)
        # Guards everything here, the agent, the workload and the socket.
        self._lock = threading.Lock()
        # Told when a job ended or something came, if `_observers` wait for that.
        self._news = threading.Condition(self._lock)
        self._observers = 0
        # Called once there is nothing more to wait for: the worker is over.
        self.on_over: Callable[[], None] = lambda: None
        # Why the worker cannot go on: the broker refuses it, or one of these threads failed.
        self.fault: BaseException | None = None
        # Set at the very end: threads that come back from their handlers end too.
        self._is_over = False
        # The jobs that run, by id.
        self._jobs: dict[str, Job] = {}
        # When the connection was used last.
        self._exchanged = 0.0
        # Who rests on the descriptors, until when, and which hands rest without.
        self._watcher: Rest | None = None
        self._watched_until = 0.0
        self._resting: list[Rest] = []
        self._threads: list[threading.Thread] = []
        self._keeper = Rest(self._dealer.descriptors)
        self._keeper_is_called = True
        self._keeper_thread = threading.Thread(
            target=self._live, args=(self._keep,), name="pointsman-keeper", daemon=True
        )
        self._loop: EventLoop | None = None
        if any(handler.executor == "async" for handler in handlers.values()):
            self._loop = EventLoop(self._async_ended, self._live)

    def start(self) -> None:
        """Connect, and run what comes."""
        try:
            if self._loop is not None:
                self._loop.open()
            self._keeper_thread.start()
        except BaseException:
            # The system has no room for a thread: then nothing may be left open.
            if self._loop is not None:
                self._loop.close(patience_s=1.0)
            self._keeper.close()
            self._dealer.close(linger_s=0)
            raise

    def is_own_thread(self) -> bool:
        """Whether the calling thread is one of these."""
        here = threading.current_thread()
        own_loop = self._loop is not None and self._loop.is_own_thread()
        return own_loop or here in self._threads

    def _live(self, body: Callable[..., None], *args: object) -> None:
        """What each of these threads does: if one fails, the whole worker ends, and says why.

        It would go on without that thread's duty, and nobody would notice that jobs stand still.
        """
        try:
            body(*args)
        except BaseException as error:
            with self._lock:
                self.fault = self.fault or error
                self.on_over()
                self._give_notice()
            # Last: it calls the user's code, which may fail too.
            log.critical("this worker ends by an error of its own: %r", error, exc_info=error)

    # ---- the life of a hand --------------------------------------------------------------------

    def _hand(self, name: str, rest: Rest) -> None:
        """Run one job after the other: the body of each thread that runs handlers."""
        child: Child | None = None
        with ExitStack() as leaving:
            leaving.callback(self._close, rest)
            job = self._next(rest)
            while job is not None:
                handler = self._handlers[job._assignment.type]
                began = monotonic()
                try:
                    if handler.executor == "thread":
                        verdict = run(handler.function, job)
                    else:
                        if child is None:
                            child = leaving.enter_context(closing(Child(name)))
                        verdict = child.run(handler, job, self.report)
                    verdict = reviewed(job, verdict, self._agent.message_limit_bytes)
                except BaseException as error:  # noqa: BLE001 - it must cost this attempt alone
                    verdict = failed(error)
                ended = monotonic()
                job = self._end_and_next(rest, job, verdict, ended - began, ended)

    def _close(self, rest: Rest) -> None:
        with self._lock:
            rest.close()

    def _end_and_next(
        self, rest: Rest, job: Job, verdict: Verdict, seconds: float, now: float
    ) -> Job | None:
        with self._lock:
            self._end(job, verdict, seconds)
            following = self._take(now)
        return following or self._next(rest)

    def _next(self, rest: Rest) -> Job | None:
        """The next job for a hand, which rests until there is one; None once all is over."""
        while True:
            with self._lock:
                if self._watcher is rest:
                    self._watcher = None
                elif rest in self._resting:
                    self._resting.remove(rest)
                now = monotonic()
                job = self._take(now)
                if job is not None:
                    return job
                if self._is_over:
                    return None
                watching = self._watcher is None or self._watcher is self._keeper
                if watching:
                    if self._watcher is self._keeper:
                        self._keeper.call()
                    until_s = self._watch(rest) - now
                else:
                    self._resting.append(rest)
                    until_s = None
            self._dealer.woken_by(rest.rest(watching=watching, until_s=until_s))

    def _take(self, now: float) -> Job | None:
        """The next job for the calling hand, with the connection used before as the rule says."""
        if self._is_over:
            return None
        ready = self._agent.ready
        is_part = False
        if not ready:
            # Nobody relies on the descriptors now, so the first job found may run at once.
            is_part = self._watcher is None
            self._exchange(now, until_ready=is_part)
        elif now - self._exchanged > FLUSH_S or ready[0].type not in self._workload.fleeting:
            self._exchange(now)
        assignment = self._pick(now, runs_handlers=True)
        if assignment is None and is_part:
            # It was for the event loop, and this hand is about to rest on the descriptors.
            self._exchange(now)
            assignment = self._pick(now, runs_handlers=True)
        if assignment is None:
            return None
        if assignment.type not in self._workload.fleeting:
            self._call_for_help()
        return self._begin(assignment)

    def _pick(self, now: float, *, runs_handlers: bool) -> Assignment | None:
        """Start async jobs up to the next that needs a hand, and give that one."""
        while (assignment := self._workload.take(now)) is not None:
            handler = self._handlers.get(assignment.type)
            if handler is None:
                self._workload.ended(assignment, 0.0)
                self._agent.fail(assignment, f"this worker has no handler for {assignment.type!r}")
            elif handler.executor == "async" and self._loop is not None:
                self._loop.start(self._begin(assignment), handler.function)
            elif runs_handlers:
                return assignment
            else:
                self._workload.put_back(assignment)
                return None
        return None

    def _begin(self, assignment: Assignment) -> Job:
        job = Job(assignment, self)
        self._jobs[assignment.id] = job
        return job

    def _end(self, job: Job, verdict: Verdict, seconds: float) -> None:
        assignment = job._assignment
        is_canceled = job._stop_reason is not None
        self._workload.ended(assignment, seconds, is_canceled)
        if self._jobs.get(assignment.id) is job:
            del self._jobs[assignment.id]
        if is_canceled:
            pass  # its outcome is void
        elif isinstance(verdict, Succeeded):
            self._agent.finish(assignment, verdict.result)
        else:
            self._agent.fail(assignment, verdict.error, retry=verdict.retry)
        if self._observers:
            self._news.notify_all()

    def _async_ended(self, ended: list[Ended]) -> None:
        limit_bytes = self._agent.message_limit_bytes
        verdicts = [reviewed(job, verdict, limit_bytes) for job, verdict, _ in ended]
        with self._lock:
            for (job, _, seconds), verdict in zip(ended, verdicts, strict=True):
                self._end(job, verdict, seconds)
            if not self._is_over:
                self._use_connection(monotonic())

    # ---- who watches, and who is called --------------------------------------------------------

    def _keep(self) -> None:
        """Watch while all hands are busy: the body of the keeper's thread."""
        rest = self._keeper
        while True:
            with self._lock:
                if self._is_over:
                    return
                now = monotonic()
                if self._watcher is None:
                    is_needed = self._keeper_is_called or now - self._exchanged > UNWATCHED_S
                    watching = is_needed
                else:
                    watching = self._watcher is rest
                self._keeper_is_called = False
                until_s = KEEPER_ROUND_S
                if watching:
                    self._use_connection(now)
                    until_s = self._watch(rest) - now
            self._dealer.woken_by(rest.rest(watching=watching, until_s=until_s))

    def _use_connection(self, now: float) -> None:
        """Exchange, and see to it that what came is run: for threads that run no handlers."""
        self._exchange(now)
        self._pick(now, runs_handlers=False)
        if self._workload.has_next:
            self._call_a_hand()

    def _call_for_help(self) -> None:
        """Before a handler that may take long: have others run what waits, and somebody watch."""
        if self._workload.has_next:
            self._call_a_hand()
        elif self._watcher is None:
            if self._resting:
                self._resting.pop().call()
            else:
                self._keeper_is_called = True
                self._keeper.call()

    def _call_a_hand(self) -> None:
        if self._resting:
            self._resting.pop().call()
        elif self._watcher is not None and self._watcher is not self._keeper:
            self._watcher.call()
        elif len(self._threads) < self._concurrency:
            self._start_a_hand()

    def _start_a_hand(self) -> None:
        name = f"pointsman-hand-{len(self._threads) + 1}"
        with ExitStack() as failing:
            try:
                rest = failing.enter_context(closing(Rest(self._dealer.descriptors)))
                thread = threading.Thread(
                    target=self._live, args=(self._hand, name, rest), name=name, daemon=True
                )
                thread.start()
            except (OSError, RuntimeError) as error:  # no room for it now: the others do the work
                log.log(logging.DEBUG if self._threads else logging.WARNING, "%s: %s", name, error)
            else:
                failing.pop_all()
                self._threads.append(thread)

    def _watch(self, rest: Rest) -> float:
        """Note who watches; give the time until when there is nothing else to do."""
        self._watcher = rest
        self._watched_until = self._due()
        return self._watched_until

    def _due(self) -> float:
        return min(self._dealer.next_due(), self._workload.next_due())

    # ---- the connection ------------------------------------------------------------------------

    def _exchange(self, now: float, *, until_ready: bool = False) -> None:
        """Send all there is to send and take in all that came; with the lock held."""
        agent = self._agent
        self._workload.adjust(now)
        self._dealer.exchange(now, until_ready=until_ready)
        self._exchanged = now
        if agent.stopped:
            self._stop_jobs()
        if agent.refused:
            log_refused(agent.refused)
            agent.refused.clear()
        if agent.fault is not None and self.fault is None:
            self.fault = from_wire(agent.fault)
            log.error("the broker refuses this worker: %s", self.fault)
            self.on_over()
        if self._workload.draining and agent.ready:
            # They were on their way when the credit was taken back.
            self._workload.adjust(now)
            self._dealer.exchange(now)
        if self._observers:
            self._news.notify_all()
        if self._watcher is not None and self._due() < self._watched_until:
            self._watcher.call()

    def _stop_jobs(self) -> None:
        for assignment, reason in self._agent.stopped:
            job = self._jobs.get(assignment.id)
            if job is not None and job._assignment is assignment:
                self._workload.canceled()
                job._stop(reason)
        self._agent.stopped.clear()

    # ---- what jobs ask for (see job.Desk) -------------------------------------------------------

    def report(self, job: Job, value: bytes) -> None:
        """Pass progress on to the broker."""
        with self._lock:
            self._agent.report(job._assignment, value)
            if not self._is_over:
                self._use_connection(monotonic())

    def fetch_inputs(self, job: Job, ids: tuple[str, ...]) -> dict[str, Raw]:
        """Ask the broker for results of dependencies."""
        assignment = job._assignment
        with self._lock:
            request = Inputs(id=assignment.id, attempt=assignment.attempt, ids=ids)
            key = self._agent.request(request, monotonic())
            self._observers += 1
            try:
                while key not in self._agent.replies:
                    if self._is_over:
                        raise ClientClosed("the worker was stopped")
                    job.check_canceled()
                    self._use_connection(monotonic())
                    if key not in self._agent.replies:
                        self._news.wait(_RECHECK_S)
                reply = self._agent.replies[key]
            finally:
                self._observers -= 1
                self._agent.forget(key)
        if isinstance(reply, Error):
            raise from_wire(reply)
        if isinstance(reply, Ok) and reply.results is not UNSET:
            return reply.results
        return {}

    def wait_stopped(self, job: Job, timeout_s: float | None) -> bool:
        """Wait until the job is stopped from outside; whether it is."""
        with self._lock:
            self._observers += 1
            try:
                limit_s = None if timeout_s is None else min(threading.TIMEOUT_MAX, timeout_s)
                self._news.wait_for(lambda: job.canceled or self._is_over, limit_s)
            finally:
                self._observers -= 1
        return job.canceled

    # ---- the end -------------------------------------------------------------------------------

    def leave(self, grace_s: float, is_hurried: Callable[[], bool]) -> None:
        """Finish what runs within `grace_s`, hand back the rest, say bye, and end all threads."""
        try:
            with self._lock:
                if not self._is_over:
                    self._take_leave(monotonic() + grace_s, is_hurried)
        finally:
            self._end_threads()

    def _take_leave(self, deadline: float, is_hurried: Callable[[], bool]) -> None:
        self._workload.drain()
        self._exchange(monotonic())
        self._wait(lambda: not self._workload.started, deadline, is_hurried)
        self._give_up_jobs()
        # Without a connection there is nobody to confirm: then the grace time is the measure.
        is_away = self._agent.link is Link.AWAY
        patience = deadline if is_away else max(deadline, monotonic() + ANSWER_S)
        self._wait(lambda: self._agent.settled, patience, is_hurried)
        self._agent.leave(monotonic())
        if self._agent.link is not Link.AWAY:
            self._wait(self._has_left, monotonic() + ANSWER_S, is_hurried)

    def _has_left(self) -> bool:
        # If the connection breaks under the bye, a broker that comes back misses nothing.
        link = self._agent.link
        return link is Link.LEFT or (link is Link.AWAY and self._agent.settled)

    def _give_up_jobs(self) -> None:
        for job in list(self._jobs.values()):
            if not job.canceled:
                log.warning("job %s has not ended within the grace time: handed back", job.id)
                self._workload.canceled()
                self._agent.release([job._assignment])
                job._stop("leaving")

    def _wait(
        self, is_done: Callable[[], bool], deadline: float, is_hurried: Callable[[], bool]
    ) -> None:
        """Wait with the lock held, using the connection meanwhile."""
        self._observers += 1
        try:
            while self.fault is None:
                now = monotonic()
                self._exchange(now)
                if is_done() or now >= deadline or is_hurried():
                    break
                self._news.wait(_RECHECK_S)
        finally:
            self._observers -= 1

    def _give_notice(self) -> None:
        """Tell all threads and handlers that it is over; with the lock held."""
        self._is_over = True
        for rest in self._resting:
            rest.call()
        if self._watcher is not None:
            self._watcher.call()
        self._keeper.call()
        for job in self._jobs.values():
            if not job.canceled:
                job._stop("leaving")
        self._news.notify_all()

    def _end_threads(self) -> None:
        with self._lock:
            self._give_notice()
        if self._loop is not None:
            self._loop.close(patience_s=1.0)
        self._keeper_thread.join()
        # A handler that does not heed its cancellation cannot be ended: its thread is left behind.
        deadline = monotonic() + 1.0
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))
        with self._lock:
            self._keeper.close()
            self._dealer.close(linger_s=0.5)
