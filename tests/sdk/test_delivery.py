"""Outcomes ask for an answer only now and then, and are confirmed all the same."""

from msgspec import UNSET

from worker_sdk.agent import Agent
from worker_sdk.delivery import LONE_ENVELOPE_BYTES
from worker_sdk.encoding import pack
from worker_sdk.ids import new_id
from worker_sdk.messages import Assignment, Error, Finish, Hello, Jobs, Ok, Welcome


def patient(jobs: int) -> tuple[Agent, list[Assignment]]:
    """An agent that asks for confirmation every 0.2 s, with jobs in its hands."""
    agent = Agent(types=["t"], session="s", credit=jobs, confirm_interval_s=0.2)
    agent.connected(0.0)
    greeting = agent.outbox[0].req
    agent.outbox.clear()
    welcome = Welcome(version="1", heartbeat=2.5, heartbeat_limit=10.0, message_limit=10**6)
    welcome.req = greeting
    agent.receive(welcome, 0.0)
    assignments = [Assignment(new_id(), 1, "t") for _ in range(jobs)]
    agent.receive(Jobs(tuple(assignments)), 0.0)
    agent.ready.clear()
    return agent, assignments


def sent(agent: Agent) -> list[Finish]:
    messages = [each for each in agent.outbox if isinstance(each, Finish)]
    agent.outbox.clear()
    return messages


def test_outcomes_ask_for_an_answer_only_when_the_interval_is_over() -> None:
    agent, (first, second, third) = patient(3)

    asked = []
    for assignment, now in [(first, 1.0), (second, 1.1), (third, 1.3)]:
        agent.finish(assignment, b"1")
        agent.flush(now)
        (message,) = sent(agent)
        asked.append(message.req is not UNSET)

    assert asked == [False, False, True]


def test_one_answer_confirms_all_that_went_before_it() -> None:
    agent, (first, second) = patient(2)
    agent.finish(first, b"1")
    agent.flush(1.0)
    agent.finish(second, b"2")
    agent.flush(1.3)
    assert not agent.settled

    agent.receive(Ok(req=sent(agent)[-1].req), 1.4)

    assert agent.settled


def test_the_last_outcomes_are_asked_after_although_no_others_follow() -> None:
    agent, (only,) = patient(1)
    agent.finish(only, b"1")
    agent.flush(1.0)
    sent(agent)
    assert agent.next_due() <= 1.2

    agent.tick(1.2)

    (question,) = sent(agent)
    assert (question.jobs, question.req is UNSET) == ((), False)
    agent.receive(Ok(req=question.req), 1.3)
    assert agent.settled


def test_unconfirmed_outcomes_are_sent_again_on_a_new_connection() -> None:
    agent, (only,) = patient(1)
    agent.finish(only, b"1")
    agent.flush(1.0)
    sent(agent)

    agent.connected(2.0)
    (hello,) = agent.outbox
    agent.outbox.clear()
    assert isinstance(hello, Hello)
    assert [claim.id for claim in hello.running] == [only.id]
    welcome = Welcome(version="1", heartbeat=2.5, heartbeat_limit=10.0, message_limit=10**6)
    welcome.req = hello.req
    agent.receive(welcome, 2.1)

    (again,) = sent(agent)
    assert [outcome.id for outcome in again.jobs] == [only.id]


def test_refusal_of_an_outcome_that_did_not_ask_reaches_it_all_the_same() -> None:
    agent, (good, late) = patient(2)
    agent.finish(good, b"1")
    agent.finish(late, b"1")
    agent.flush(1.0)

    agent.receive(Error("canceled", "was canceled", (late.id,)), 1.1)

    assert [refused.ending.id for refused in agent.refused] == [late.id]
    assert not agent.settled


def test_whoever_leaves_asks_at_once() -> None:
    agent, (only,) = patient(1)
    agent.finish(only, b"1")
    agent.flush(1.0)
    sent(agent)

    agent.confirm_at_once()
    agent.flush(1.01)

    (question,) = sent(agent)
    assert question.req is not UNSET


def test_nothing_is_due_after_a_reconnect_if_nothing_is_left_to_ask_after() -> None:
    agent, (only,) = patient(1)
    agent.finish(only, b"1")
    agent.flush(1.0)
    agent.receive(Error("not_running", "is over", (only.id,)), 1.1)
    agent.disconnected()
    agent.outbox.clear()

    agent.connected(2.0)
    welcome = Welcome(version="1", heartbeat=2.5, heartbeat_limit=10.0, message_limit=10**6)
    welcome.req = agent.outbox[0].req
    agent.receive(welcome, 2.0)

    assert agent.next_due() > 2.0


def test_a_job_that_was_enqueued_anew_is_taken_before_its_former_outcome_is_confirmed() -> None:
    agent, (only,) = patient(1)
    agent.finish(only, b"1")
    agent.flush(1.0)
    sent(agent)
    again = Assignment(only.id, 1, "t")

    agent.receive(Jobs((again,)), 1.1)
    agent.tick(1.2)
    question = sent(agent)
    agent.receive(Ok(req=question[-1].req), 1.3)

    assert list(agent.ready) == [again]
    assert agent.holds(again)


def test_the_largest_result_that_is_let_through_fits_into_a_message() -> None:
    agent, (only,) = patient(1)
    room_bytes = agent.message_limit_bytes - LONE_ENVELOPE_BYTES

    agent.finish(only, b'"' + b"x" * (room_bytes - 2) + b'"')
    agent.flush(1.0)

    assert len(pack(sent(agent)[0])[-1]) <= agent.message_limit_bytes
