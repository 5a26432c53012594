"""The worker's side of the protocol, fed with messages and times by hand."""

import random

import pytest
from msgspec import UNSET, Raw

from worker_sdk.agent import Agent, Link
from worker_sdk.delivery import BUSY_RETRY_S
from worker_sdk.heartbeats import next_beat
from worker_sdk.messages import (
    Assignment,
    Bye,
    CancelRunning,
    Claim,
    Claiming,
    Error,
    Fail,
    Finish,
    Heartbeat,
    Hello,
    Inputs,
    Jobs,
    Ok,
    Progress,
    Release,
    Welcome,
    WorkerEvent,
    WorkerRequest,
)

A, B, C = (f"00000000-0000-7000-8000-00000000000{n}" for n in "abc")
HEARTBEAT_S = 2.0
LIMIT_S = 8.0


class Play:
    """An agent with its clock, its broker played by the test."""

    def __init__(self, credit: int = 4, message_limit: int = 1 << 20) -> None:
        self.agent = Agent(types=["t"], session="word", name="w", credit=credit)
        self.message_limit = message_limit
        self.now = 100.0

    def said(self) -> list[WorkerRequest]:
        self.agent.flush(self.now)
        said = list(self.agent.outbox)
        self.agent.outbox.clear()
        return said

    def tell(self, *messages: WorkerEvent) -> None:
        for message in messages:
            self.agent.receive(message, self.now)

    def pass_time(self, seconds: float) -> list[WorkerRequest]:
        self.now += seconds
        self.agent.tick(self.now)
        return self.said()

    def connect(self) -> Hello:
        self.agent.connected(self.now)
        (hello,) = self.said()
        assert isinstance(hello, Hello)
        return hello

    def welcome(self, hello: Hello) -> list[WorkerRequest]:
        self.tell(
            Welcome(
                version="1",
                heartbeat=HEARTBEAT_S,
                heartbeat_limit=LIMIT_S,
                message_limit=self.message_limit,
                req=hello.req,
            )
        )
        return self.said()

    def join(self) -> list[WorkerRequest]:
        return self.welcome(self.connect())

    def dispatch(self, *ids: str, attempt: int = 1) -> list[Assignment]:
        jobs = tuple(Assignment(id, attempt, "t") for id in ids)
        self.tell(Jobs(jobs=jobs))
        return list(jobs)

    def ready(self) -> list[tuple[str, int]]:
        held = [each for each in self.agent.ready if self.agent.holds(each)]
        self.agent.ready.clear()
        return [(each.id, each.attempt) for each in held]

    def finish(self, *jobs: Assignment) -> list[WorkerRequest]:
        for job in jobs:
            self.agent.finish(job, b"1")
        return self.said()


@pytest.fixture
def play() -> Play:
    play = Play()
    play.join()
    return play


def outcomes(messages: list[WorkerRequest]) -> list[str]:
    return [one.id for m in messages if isinstance(m, Finish | Fail) for one in m.jobs]


# ---- coming in -----------------------------------------------------------------------------------


def test_hello_is_said_on_connecting_and_again_until_welcomed() -> None:
    play = Play(credit=3)

    hello = play.connect()
    again = play.pass_time(1.0)
    too_early = play.pass_time(1.0)
    later = play.pass_time(1.0)

    assert (hello.types, hello.credit, hello.session) == (("t",), 3, "word")
    assert (again, too_early, later) == ([hello], [], [hello])


def test_nothing_but_hello_is_said_before_the_welcome() -> None:
    play = Play()
    play.join()
    (job,) = play.dispatch(A)
    hello = play.connect()

    before = play.finish(job)
    after = play.welcome(hello)

    assert before == []
    assert outcomes(after) == [A]


def test_jobs_that_come_although_the_welcome_was_lost_are_handed_back() -> None:
    play = Play()
    play.connect()
    play.tell(Jobs(jobs=(Assignment(A, 3, "t"),)))

    (again,) = play.pass_time(1.0)
    assert isinstance(again, Hello)
    said = play.welcome(again)

    assert again.running == (Claim(A, 3),)
    assert [each.jobs for each in said if isinstance(each, Release)] == [(Claim(A, 3),)]
    assert play.ready() == []


def test_a_welcome_to_an_earlier_connection_does_not_count() -> None:
    play = Play()
    first = play.connect()
    second = play.connect()

    play.welcome(first)
    play.dispatch(A)
    assert play.agent.link is Link.GREETING
    assert play.ready() == []

    play.welcome(second)
    play.dispatch(A)
    assert play.ready() == [(A, 1)]


def test_a_hello_refused_for_good_is_a_fault() -> None:
    play = Play()
    hello = play.connect()

    play.tell(Error(code="denied", message="no", req=hello.req))

    assert play.agent.fault is not None
    assert play.agent.fault.code == "denied"


def test_a_hello_refused_as_busy_is_said_again() -> None:
    play = Play()
    hello = play.connect()

    play.tell(Error(code="busy", message="later", req=hello.req))

    assert play.agent.fault is None
    assert play.pass_time(1.0) == [hello]


# ---- heartbeats ----------------------------------------------------------------------------------


def test_heartbeats_go_out_in_the_interval_of_the_welcome_with_the_credit(play: Play) -> None:
    assert play.pass_time(HEARTBEAT_S - 0.1) == []
    assert play.pass_time(0.1) == [Heartbeat(credit=4)]
    assert play.pass_time(HEARTBEAT_S) == [Heartbeat(credit=4)]


@pytest.mark.parametrize("interval_s", [0.05, 1 / 3, 2.5, 60.0])
def test_workers_that_share_a_clock_send_their_heartbeats_at_the_same_moments(
    interval_s: float,
) -> None:
    dice = random.Random(1)
    moments = set()
    for last in [1_000 + dice.random() * interval_s for _ in range(500)]:
        first = next_beat(last, interval_s)
        assert interval_s * 0.874 < first - last <= interval_s

        second = next_beat(first + interval_s / 1000, interval_s)

        assert second - first <= interval_s * 1.001
        moments.add(round(second / interval_s, 3))
    assert len(moments) <= 9


def test_a_broker_that_asks_for_heartbeats_all_the_time_gets_them() -> None:
    assert next_beat(1.0, 0.0) == 1.0


def test_a_broker_silent_beyond_the_limit_is_left_for_a_new_connection(play: Play) -> None:
    for _ in range(4):
        play.pass_time(HEARTBEAT_S)
        assert not play.agent.reconnect

    play.pass_time(0.1)

    assert play.agent.reconnect
    assert play.agent.link is Link.AWAY


def test_any_message_of_the_broker_is_a_sign_of_life(play: Play) -> None:
    for _ in range(6):
        play.pass_time(HEARTBEAT_S)
        play.tell(Heartbeat())

    assert play.agent.link is Link.WELCOMED


def test_next_due_is_when_tick_has_something_to_say(play: Play) -> None:
    for _ in range(3):
        due = play.agent.next_due()
        assert play.pass_time(due - play.now - 0.001) == []
        assert play.pass_time(0.001) != []


# ---- outcomes ------------------------------------------------------------------------------------


def test_outcomes_go_together_in_one_message_and_are_settled_by_its_ok(play: Play) -> None:
    jobs = play.dispatch(A, B)

    (finish,) = play.finish(*jobs)
    assert isinstance(finish, Finish)
    assert outcomes([finish]) == [A, B]
    assert not play.agent.settled

    play.tell(Ok(req=finish.req))
    assert play.agent.settled


def test_an_outcome_without_answer_is_claimed_and_sent_again_after_a_reconnect(play: Play) -> None:
    jobs = play.dispatch(A, B)
    play.finish(jobs[0])

    hello = play.connect()
    after = play.welcome(hello)

    assert set(hello.running) == {Claim(A, 1), Claim(B, 1)}
    assert outcomes(after) == [A]


def test_an_outcome_that_is_recorded_had_arrived_when_it_was_sent_before(play: Play) -> None:
    (job,) = play.dispatch(A)
    play.finish(job)
    (again,) = play.join()

    play.tell(Error(code="not_running", message="", ids=(A,), recorded=(A,), req=again.req))

    assert play.agent.refused == []
    assert play.agent.settled


def test_an_outcome_sent_before_that_is_not_recorded_is_refused(play: Play) -> None:
    (job,) = play.dispatch(A)
    play.finish(job)
    (again,) = play.join()

    play.tell(Error(code="not_running", message="", ids=(A,), req=again.req))

    assert [(each.ending.id, each.code) for each in play.agent.refused] == [(A, "not_running")]
    assert play.agent.settled


def test_a_failure_sent_before_may_have_arrived_and_is_left_at_that(play: Play) -> None:
    (job,) = play.dispatch(A)
    play.agent.fail(job, "it broke")
    play.join()
    (again,) = play.join()

    play.tell(Error(code="not_running", message="", ids=(A,), req=again.req))

    assert play.agent.refused == []
    assert play.agent.settled


def test_not_running_for_an_outcome_sent_once_is_a_refusal(play: Play) -> None:
    jobs = play.dispatch(A, B)
    (finish,) = play.finish(*jobs)

    play.tell(Error(code="not_running", message="", ids=(A,), req=finish.req))

    assert [(each.ending.id, each.code) for each in play.agent.refused] == [(A, "not_running")]
    assert play.agent.settled


def test_outcomes_of_one_message_may_be_refused_for_different_reasons(play: Play) -> None:
    jobs = play.dispatch(A, B, C)
    (finish,) = play.finish(*jobs)

    codes = ("not_running", "canceled")
    play.tell(Error(code=codes[0], message="", ids=(A, C), codes=codes, req=finish.req))

    assert [(each.ending.id, each.code) for each in play.agent.refused] == [
        (A, "not_running"),
        (C, "canceled"),
    ]
    assert play.agent.settled


def test_canceled_for_an_outcome_sent_before_is_a_refusal(play: Play) -> None:
    (job,) = play.dispatch(A)
    play.finish(job)
    (again,) = play.join()

    play.tell(Error(code="canceled", message="", ids=(A,), req=again.req))

    assert [each.code for each in play.agent.refused] == ["canceled"]


def test_an_outcome_refused_as_busy_is_sent_again_a_little_later(play: Play) -> None:
    (job,) = play.dispatch(A)
    (finish,) = play.finish(job)
    play.tell(Error(code="busy", message="", req=finish.req))

    assert outcomes(play.pass_time(BUSY_RETRY_S / 2)) == []
    assert play.agent.next_due() == pytest.approx(play.now + BUSY_RETRY_S / 2)
    (again,) = play.pass_time(BUSY_RETRY_S / 2)
    assert outcomes([again]) == [A]
    play.tell(Ok(req=again.req))
    assert play.agent.settled


def test_a_result_that_the_broker_never_takes_ends_the_attempt_as_failed(play: Play) -> None:
    (job,) = play.dispatch(A)
    (finish,) = play.finish(job)

    play.tell(Error(code="too_large", message="too large", ids=(A,), req=finish.req))
    (fail,) = play.said()

    assert isinstance(fail, Fail)
    assert fail.jobs[0].id == A
    assert not fail.jobs[0].retry
    assert "too large" in fail.jobs[0].error


def test_an_unanswered_outcome_is_sent_again_on_a_connection_that_lives(play: Play) -> None:
    (job,) = play.dispatch(A)
    play.finish(job)

    sent = []
    for _ in range(5):
        sent += play.pass_time(HEARTBEAT_S)
        play.tell(Heartbeat())

    assert outcomes(sent) == [A]


def test_outcomes_are_cut_into_messages_within_the_brokers_limit() -> None:
    play = Play(message_limit=20_000)
    play.join()
    jobs = play.dispatch(A, B, C)

    for job in jobs:
        play.agent.finish(job, b'"%s"' % (b"x" * 9_000))
    messages = play.said()

    assert [outcomes([m]) for m in messages] == [[A, B], [C]]


def test_the_second_outcome_of_an_attempt_is_void(play: Play) -> None:
    (job,) = play.dispatch(A)

    assert play.agent.finish(job, b"1") is not None
    assert play.agent.finish(job, b"2") is None
    assert play.agent.fail(job, "no") is None


# ---- a broker that does not know the worker ------------------------------------------------------


def test_unsupported_makes_the_worker_say_hello_and_its_outcomes_again(play: Play) -> None:
    jobs = play.dispatch(A, B)
    (finish,) = play.finish(jobs[0])

    play.tell(Error(code="unsupported", message="who?", req=finish.req))
    (hello,) = play.said()
    assert isinstance(hello, Hello)
    assert set(hello.running) == {Claim(A, 1), Claim(B, 1)}

    assert outcomes(play.welcome(hello)) == [A]


def test_several_unsupported_in_a_row_make_one_hello(play: Play) -> None:
    play.tell(Error(code="unsupported", message=""), Error(code="unsupported", message=""))

    assert [type(m) for m in play.said()] == [Hello]


def test_jobs_under_way_during_a_second_hello_on_the_same_connection_are_taken(play: Play) -> None:
    play.tell(Error(code="unsupported", message=""))
    play.said()

    play.dispatch(A)

    assert play.ready() == [(A, 1)]


# ---- attempts that are over, come twice, or are not wanted ---------------------------------------


@pytest.mark.parametrize("reason", ["request", "dependency", "timeout", "lost"])
def test_a_canceled_attempt_is_stopped_and_its_outcome_void(play: Play, reason: str) -> None:
    (job,) = play.dispatch(A)

    play.tell(CancelRunning(ids=(A,), reason=reason))

    assert [(each.assignment, each.reason) for each in play.agent.stopped] == [(job, reason)]
    assert play.finish(job) == []


def test_a_cancel_for_what_is_not_held_changes_nothing(play: Play) -> None:
    play.tell(CancelRunning(ids=(A,), reason="request"))

    assert play.agent.stopped == []


def test_a_canceled_job_that_was_not_started_does_not_start(play: Play) -> None:
    play.dispatch(A, B)

    play.tell(CancelRunning(ids=(A,), reason="request"))

    assert play.ready() == [(B, 1)]


def test_a_job_dispatched_twice_starts_once(play: Play) -> None:
    play.dispatch(A)
    play.dispatch(A)

    assert play.ready() == [(A, 1)]


def test_a_job_dispatched_again_while_its_outcome_is_under_way_is_a_new_one(play: Play) -> None:
    (job,) = play.dispatch(A)
    play.ready()
    play.finish(job)

    (anew,) = play.dispatch(A)

    assert play.ready() == [(A, 1)]
    assert outcomes(play.finish(anew)) == [A]


def test_a_newer_attempt_replaces_the_older_one(play: Play) -> None:
    (old,) = play.dispatch(A)
    play.ready()

    (new,) = play.dispatch(A, attempt=2)

    assert [(each.assignment, each.reason) for each in play.agent.stopped] == [(old, "lost")]
    assert play.ready() == [(A, 2)]
    assert play.finish(old) == []
    assert outcomes(play.finish(new)) == [A]


def test_an_older_attempt_that_comes_late_is_ignored(play: Play) -> None:
    play.dispatch(A, attempt=2)
    play.dispatch(A, attempt=1)

    assert play.ready() == [(A, 2)]


def test_released_jobs_are_handed_back_once_the_broker_can_be_told(play: Play) -> None:
    jobs = play.dispatch(A)
    play.agent.disconnected()
    play.agent.release(jobs)

    hello = play.connect()
    said = play.welcome(hello)

    assert hello.running == (Claim(A, 1),)
    assert said == [Release(jobs=(Claim(A, 1),))]
    assert play.agent.settled


# ---- credit, progress, requests, leaving ---------------------------------------------------------


def test_a_new_credit_goes_with_what_is_said_anyway(play: Play) -> None:
    (job,) = play.dispatch(A)
    play.agent.set_credit(9)

    (finish,) = play.finish(job)

    assert isinstance(finish, Finish)
    assert finish.credit == 9
    assert play.said() == []


def test_a_new_credit_goes_alone_if_there_is_nothing_to_say(play: Play) -> None:
    play.agent.set_credit(0)

    assert play.said() == [Heartbeat(credit=0)]


def test_progress_that_comes_fast_is_told_by_its_newest_value(play: Play) -> None:
    (job,) = play.dispatch(A)
    play.agent.report(job, b"1")
    (first,) = play.said()
    play.agent.report(job, b"2")
    play.agent.report(job, b"3")

    assert play.said() == []
    (second,) = play.pass_time(play.agent.next_due() - play.now)

    assert isinstance(first, Progress)
    assert isinstance(second, Progress)
    assert [bytes(step.value) for step in first.jobs + second.jobs] == [b"1", b"3"]


def test_progress_of_an_attempt_that_is_over_is_not_told(play: Play) -> None:
    (job,) = play.dispatch(A)
    play.agent.report(job, b"1")
    play.said()
    play.agent.report(job, b"2")

    play.tell(CancelRunning(ids=(A,), reason="request"))

    assert play.pass_time(1.0) == []


def test_a_request_is_sent_again_after_a_reconnect_until_answered(play: Play) -> None:
    key = play.agent.request(Claiming(id=A), play.now)
    (claim,) = play.said()
    assert play.join() == [claim]

    play.tell(Jobs(jobs=(Assignment(A, 1, "t"),), req=claim.req))

    assert isinstance(play.agent.replies[key], Jobs)
    assert play.ready() == []
    assert play.join() == []


def test_an_unanswered_request_is_sent_again_on_a_connection_that_lives(play: Play) -> None:
    play.dispatch(A)
    key = play.agent.request(Inputs(id=A, attempt=1, ids=(B,)), play.now)
    (question,) = play.said()

    sent = []
    for _ in range(5):
        sent += play.pass_time(HEARTBEAT_S)
        play.tell(Heartbeat())

    assert [each for each in sent if isinstance(each, Inputs)] == [question]
    play.tell(Ok(req=question.req, results={}))
    assert isinstance(play.agent.replies[key], Ok)
    assert not any(isinstance(each, Inputs) for each in play.pass_time(LIMIT_S))


def test_a_claimed_job_that_was_waiting_already_is_the_claimers(play: Play) -> None:
    play.dispatch(A)
    key = play.agent.request(Claiming(id=A), play.now)
    (claim,) = play.said()
    job = Assignment(A, 1, "t")

    play.tell(Jobs(jobs=(job,), req=claim.req))

    assert key in play.agent.replies
    assert play.agent.holds(job)
    assert play.ready() == []


def test_a_claimed_job_that_nobody_waits_for_any_more_is_handed_back(play: Play) -> None:
    key = play.agent.request(Claiming(id=A), play.now)
    (claim,) = play.said()
    play.agent.forget(key)

    play.tell(Jobs(jobs=(Assignment(A, 1, "t"),), req=claim.req))

    assert play.said() == [Release(jobs=(Claim(A, 1),))]


def test_a_barrier_tells_the_credit_first_and_never_an_old_one_again(play: Play) -> None:
    play.agent.set_credit(1)
    play.agent.barrier(play.now)
    credit, barrier = play.said()
    play.agent.set_credit(0)
    hello = play.connect()

    assert credit == Heartbeat(credit=1)
    assert hello.credit == 0
    assert play.welcome(hello) == [barrier]
    assert isinstance(barrier, Heartbeat)
    assert barrier.credit is None


def test_bye_comes_after_the_outcomes_and_is_answered(play: Play) -> None:
    (job,) = play.dispatch(A)
    play.agent.finish(job, b"1")

    play.agent.leave(play.now)
    finish, bye = play.said()
    assert isinstance(finish, Finish)
    assert isinstance(bye, Bye)
    assert bye.req is not UNSET

    play.tell(Ok(req=finish.req), Ok(req=bye.req))
    assert play.agent.link is Link.LEFT
    assert play.agent.next_due() == float("inf")


def test_whoever_leaves_without_a_connection_says_bye_on_the_next(play: Play) -> None:
    play.agent.disconnected()
    play.agent.leave(play.now)

    hello = play.connect()

    assert hello.credit == 0
    assert [type(m) for m in play.welcome(hello)] == [Bye]


def test_results_are_carried_as_they_are(play: Play) -> None:
    (job,) = play.dispatch(A)
    play.agent.finish(job, b'{"x": [1, 2]}')

    (finish,) = play.said()

    assert isinstance(finish, Finish)
    assert finish.jobs[0].result == Raw(b'{"x": [1, 2]}')
