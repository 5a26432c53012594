"""How many jobs a worker asks for, and which of them start."""

from tests.sdk.test_agent import HEARTBEAT_S, Play, outcomes
from worker_sdk.messages import Assignment, Heartbeat, Hello, Jobs, Release, WorkerRequest
from worker_sdk.workload import FLEETING_S, PREFETCH_LIMIT_JOBS, SHORT_S, STALL_S, Workload


class Shift:
    """A worker that runs jobs as a test says, with a broker that has as many as it may send."""

    def __init__(self, concurrency: int = 2, limits: dict[str, int] | None = None) -> None:
        self.play = Play()
        self.play.agent.types = ("t", "u")
        self.workload = Workload(self.play.agent, concurrency, limits)
        self.play.join()
        self._last = 0

    def arrive(self, count: int, type: str = "t") -> None:
        jobs = []
        for _ in range(count):
            self._last += 1
            jobs.append(Assignment(f"{self._last:036d}", 1, type))
        self.play.tell(Jobs(jobs=tuple(jobs)))

    def start(self) -> list[Assignment]:
        started = []
        while (job := self.workload.take(self.play.now)) is not None:
            started.append(job)
        return started

    def end(self, job: Assignment, seconds: float) -> None:
        self.play.now += seconds
        self.workload.ended(job, seconds)
        self.play.agent.finish(job, b"1")

    def said(self) -> list[WorkerRequest]:
        self.workload.adjust(self.play.now)
        return self.play.said()

    def credit(self) -> int:
        """What it asks for now."""
        self.said()
        return self.play.agent._credit

    def run(self, count: int, seconds: float, type: str = "t") -> None:
        for _ in range(count):
            self.arrive(1, type)
            (job,) = self.start()
            self.end(job, seconds)


def released(messages: list[WorkerRequest]) -> int:
    return sum(len(m.jobs) for m in messages if isinstance(m, Release))


def test_a_worker_asks_for_as_many_jobs_as_it_runs_at_a_time() -> None:
    assert Shift(concurrency=3).credit() == 3


def test_no_more_jobs_start_than_may_run_at_a_time() -> None:
    shift = Shift(concurrency=2)
    shift.arrive(5)

    first = shift.start()
    shift.end(first[0], 0.1)

    assert len(first) == 2
    assert len(shift.start()) == 1


def test_short_handlers_get_jobs_ahead_of_time_slowly_at_first() -> None:
    shift = Shift(concurrency=2)
    credits = []
    for _ in range(4):
        shift.run(2, 1e-4)
        credits.append(shift.credit())

    assert credits == [4, 6, 8, 10]
    shift.run(PREFETCH_LIMIT_JOBS, 1e-6)
    assert shift.credit() == 2 + PREFETCH_LIMIT_JOBS


def test_about_20_ms_of_work_are_asked_for_ahead_of_time() -> None:
    shift = Shift(concurrency=2)

    shift.run(200, 5e-4)

    assert shift.credit() == 2 + 40


def test_one_long_handler_ends_the_asking_ahead_at_once() -> None:
    shift = Shift(concurrency=2)
    shift.run(200, 1e-5)

    shift.run(1, 10 * SHORT_S)

    assert shift.credit() == 2


def test_a_slow_type_keeps_all_types_from_being_asked_for_ahead() -> None:
    shift = Shift(concurrency=2)
    shift.run(1, 0.5, type="u")

    shift.run(100, 1e-5, type="t")

    assert shift.credit() == 2


def test_jobs_that_wait_behind_a_handler_that_turned_slow_go_back() -> None:
    shift = Shift(concurrency=1)
    shift.run(100, 1e-5)
    shift.arrive(50)
    (slow,) = shift.start()

    assert released(shift.said()) == 0
    assert shift.workload.next_due() == shift.play.now + STALL_S
    shift.play.now += STALL_S * 1.01
    assert released(shift.said()) == 49
    assert shift.credit() == 1
    shift.end(slow, 0.0)


def test_types_are_known_as_fleeting_by_their_mean_time() -> None:
    shift = Shift()
    assert "t" not in shift.workload.fleeting

    shift.run(3, FLEETING_S / 2)
    assert "t" in shift.workload.fleeting

    shift.run(1, FLEETING_S * 10)
    assert "t" not in shift.workload.fleeting


def test_a_handler_that_goes_on_after_its_cancel_takes_a_place() -> None:
    shift = Shift(concurrency=2)
    shift.arrive(2)
    job, _ = shift.start()

    shift.workload.canceled()
    assert shift.credit() == 1

    shift.workload.ended(job, 1.0, was_canceled=True)
    assert shift.credit() == 2


def test_draining_hands_back_what_has_not_started_and_takes_nothing_more() -> None:
    shift = Shift(concurrency=2)
    shift.arrive(5)
    running = shift.start()

    shift.workload.drain()
    (release,) = shift.play.said()
    shift.arrive(2)
    late = shift.said()
    shift.end(running[0], 0.1)

    assert released([release]) == 3
    assert isinstance(release, Release)
    assert release.credit == 0
    assert released(late) == 2
    assert outcomes(shift.said()) == [running[0].id]
    assert shift.start() == []


# ---- types with a limit --------------------------------------------------------------------------


def test_no_more_of_a_type_run_than_its_limit_and_others_go_first() -> None:
    shift = Shift(concurrency=3, limits={"u": 1})
    shift.arrive(2, "u")
    shift.arrive(2, "t")

    first = shift.start()
    shift.end(first[0], 0.01)
    second = shift.start()

    assert [job.type for job in first] == ["u", "t", "t"]
    assert [job.type for job in second] == ["u"]


def test_a_type_at_its_limit_is_not_asked_for_until_one_has_ended() -> None:
    shift = Shift(concurrency=3, limits={"u": 1})
    shift.arrive(3, "u")
    (job,) = shift.start()
    shift.play.now += STALL_S * 1.01

    hello, release = shift.said()
    assert isinstance(hello, Hello)
    assert hello.types == ("t",)
    assert released([release]) == 2

    shift.end(job, 0.0)
    hello, *_ = shift.said()
    assert isinstance(hello, Hello)
    assert hello.types == ("t", "u")


def test_a_worker_with_all_types_at_their_limits_asks_for_nothing() -> None:
    shift = Shift(concurrency=3, limits={"t": 1, "u": 1})
    for type in ("t", "u"):
        shift.arrive(2, type)
    jobs = shift.start()
    shift.play.now += STALL_S * 1.01

    assert shift.credit() == 0

    for job in jobs:
        shift.end(job, 0.5)
    assert shift.credit() == 3


def test_heartbeats_tell_the_credit_of_the_moment() -> None:
    shift = Shift(concurrency=2)

    assert shift.play.pass_time(HEARTBEAT_S) == [Heartbeat(credit=2)]
