"""What a worker's key may do: take jobs of its lanes, and end none but its own attempts."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from msgspec import Raw

from broker import LocalBroker
from tests.security.keyed import ALL, House, RawPeer, raw_peer
from worker_sdk import Client, Denied, JobNotExist
from worker_sdk.ids import new_id
from worker_sdk.messages import (
    Claim,
    Claiming,
    Fail,
    Failure,
    Finish,
    Heartbeat,
    Hello,
    Inputs,
    Message,
    Outcome,
    Progress,
    Release,
    Step,
)

SILENCE_MS = 300


@pytest.fixture
def broker(house: House) -> Iterator[LocalBroker]:
    house.key("red", *ALL, channels=["red"])
    house.key("blue", *ALL, channels=["blue"])
    house.key("worker", "work", channels=["red"], types=["add"])
    house.key("other", "work", channels=["red"], types=["add"])
    with house.broker() as broker:
        yield broker


@pytest.fixture
def red(house: House, broker: LocalBroker) -> Iterator[Client]:
    with house.client(broker, "red") as client:
        yield client


def at_work(peer: RawPeer, **hello: object) -> RawPeer:
    answer = peer.ask(Hello(types=("add",), channels=("red",), **hello))  # type: ignore[arg-type]
    assert answer["op"] == "welcome", answer
    return peer


@pytest.mark.parametrize(
    ("channels", "types"),
    [
        (["blue"], ["add"]),
        (["red", "blue"], ["add"]),
        (["red"], ["mail"]),
        (["red"], ["add", "mail"]),
        (["*"], ["*"]),
    ],
)
def test_hello_for_jobs_elsewhere_is_denied(
    house: House, broker: LocalBroker, channels: list[str], types: list[str]
) -> None:
    with house.session(broker, "worker", *types, channels=channels) as session:
        with pytest.raises(Denied, match="may not work"):
            session.dequeue(timeout=10)


def astray(id: str) -> dict[str, Message]:
    return {
        "finish": Finish(jobs=(Outcome(id, 1),)),
        "fail": Fail(jobs=(Failure(id, 1),)),
        "release": Release(jobs=(Claim(id, 1),)),
        "progress": Progress(jobs=(Step(id, 1, Raw(b"1")),)),
        "inputs": Inputs(id=id, attempt=1, ids=(id,)),
        "claim": Claiming(id=id),
    }


@pytest.mark.parametrize("op", astray(""))
@pytest.mark.parametrize("state", ["ready", "running", "canceled"])
def test_job_elsewhere_does_not_exist_for_a_worker(
    house: House, broker: LocalBroker, op: str, state: str
) -> None:
    with (
        house.client(broker, "blue") as blue,
        house.session(broker, "blue", "add", channels=["blue"]) as session,
        raw_peer(broker.endpoint, house.keys("worker")) as peer,
    ):
        hidden = str(blue.enqueue("add", channel="blue"))
        if state == "running":
            assert session.dequeue(timeout=10) is not None
        if state == "canceled":
            blue.cancel(hidden)
        missing = new_id()
        at_work(peer)

        of_hidden, of_missing = (peer.ask(astray(id)[op]) for id in (hidden, missing))

        assert of_hidden["code"] == "not_exist"
        assert str(of_hidden["message"]).replace(hidden, missing) == of_missing["message"]
        assert {**of_hidden, "ids": 0, "message": 0, "req": 0} == {
            **of_missing,
            "ids": 0,
            "message": 0,
            "req": 0,
        }
        assert blue.status(hidden).state == state


def test_outcomes_astray_are_told_apart_only_as_far_as_one_may_know(
    house: House, broker: LocalBroker, red: Client
) -> None:
    with (
        house.client(broker, "blue") as blue,
        raw_peer(broker.endpoint, house.keys("worker")) as peer,
    ):
        at_work(peer, credit=1)
        mine = str(red.enqueue("add", channel="red"))
        assert peer.read()["jobs"][0]["id"] == mine
        waiting = str(red.enqueue("add", channel="red"))
        hidden = str(blue.enqueue("add", channel="blue"))
        missing = new_id()

        answer = peer.ask(
            Finish(jobs=tuple(Outcome(id, 1) for id in (hidden, waiting, mine, missing)), credit=0)
        )

        assert answer["ids"] == [hidden, waiting, missing]
        assert answer["codes"] == ["not_exist", "not_running", "not_exist"]
        assert red.status(mine).state == "finished"


def test_attempt_of_another_is_not_ended(house: House, broker: LocalBroker, red: Client) -> None:
    with (
        raw_peer(broker.endpoint, house.keys("worker")) as holder,
        raw_peer(broker.endpoint, house.keys("other")) as other,
    ):
        at_work(holder)
        at_work(other, credit=0)
        id = str(red.enqueue("add", channel="red"))
        assert holder.read()["jobs"][0]["id"] == id

        for op in ("finish", "fail", "release", "progress", "inputs", "claim"):
            answer = other.ask(astray(id)[op])
            assert answer["code"] in ("not_running", "not_ready"), op
        assert red.status(id).state == "running"
        assert holder.ask(Finish(jobs=(Outcome(id, 1),)))["op"] == "ok"


@pytest.mark.parametrize("thief", ["other", "worker"])
def test_session_of_another_key_is_not_taken_over(
    house: House, broker: LocalBroker, red: Client, thief: str
) -> None:
    """With the holder's own key it is the holder, come back."""
    with (
        raw_peer(broker.endpoint, house.keys("worker")) as holder,
        raw_peer(broker.endpoint, house.keys(thief)) as second,
    ):
        at_work(holder, session="s")
        id = str(red.enqueue("add", channel="red"))
        assert holder.read()["jobs"][0]["id"] == id

        at_work(second, session="s", credit=0, running=(Claim(id, 1),))
        taken = second.ask(Finish(jobs=(Outcome(id, 1),)))["op"] == "ok"

        assert taken == (thief == "worker")


def test_after_a_restart_only_a_key_of_its_lane_claims_an_attempt(
    house: House, tmp_path: Path
) -> None:
    house.key("red", *ALL, channels=["red"])
    house.key("worker", "work", channels=["red"])
    house.key("stranger", "work", channels=["blue"])
    settings = {"store": f"sqlite:{tmp_path / 'jobs.db'}", "grace": 60}
    with (
        house.broker(**settings) as broker,
        house.client(broker, "red") as red,
        raw_peer(broker.endpoint, house.keys("worker")) as holder,
    ):
        at_work(holder)
        id = str(red.enqueue("add", channel="red"))
        assert holder.read()["jobs"][0]["id"] == id

    with (
        house.broker(**settings) as broker,
        house.client(broker, "red") as red,
        raw_peer(broker.endpoint, house.keys("stranger")) as stranger,
        raw_peer(broker.endpoint, house.keys("worker")) as holder,
    ):
        missing = new_id()
        for claimed in (id, missing):
            stranger.send(Hello(types=("add",), channels=("blue",), running=(Claim(claimed, 1),)))
            said = sorted((stranger.read() for _ in range(2)), key=lambda each: str(each["op"]))
            assert said[0] == {"op": "cancel", "ids": [claimed], "reason": "lost"}
            assert said[1]["op"] == "welcome"

        at_work(holder, running=(Claim(id, 1),))
        assert holder.ask(Finish(jobs=(Outcome(id, 1),)))["op"] == "ok"
        assert red.status(id).state == "finished"


def test_worker_gets_the_results_that_its_job_depends_on_from_anywhere(
    house: House, broker: LocalBroker
) -> None:
    """Who enqueued it may see both, and hands them on."""
    house.key("boss", "admin", channels=["*"])
    house.reload(broker)
    with (
        house.client(broker, "boss") as boss,
        house.session(broker, "boss", "add", channels=["blue"]) as blue,
        house.session(broker, "worker", "add", channels=["red"]) as session,
    ):
        first = boss.enqueue("add", channel="blue")
        boss.enqueue("add", channel="red", dependencies=[first])
        job = blue.dequeue(timeout=10)
        assert job is not None
        job.finish(42)

        job = session.dequeue(timeout=10)

        assert job is not None
        assert job.inputs[first] == 42


def test_session_cannot_claim_a_job_elsewhere(house: House, broker: LocalBroker) -> None:
    with (
        house.client(broker, "blue") as blue,
        house.session(broker, "worker", "add", channels=["red"]) as session,
    ):
        id: UUID = blue.enqueue("add", channel="blue")

        with pytest.raises(JobNotExist):
            session.dequeue(timeout=10, id=id)


def test_heartbeats_of_a_worker_without_a_hello_are_not_denied(
    house: House, broker: LocalBroker
) -> None:
    """So that it says hello again, after a restart of the broker."""
    with raw_peer(broker.endpoint, house.keys("worker")) as peer:
        assert peer.ask(Heartbeat())["code"] == "unsupported"
