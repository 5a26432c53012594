"""What a key that was let in may do: by its role, and within its channels and types."""

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from msgspec import Raw

from broker import LocalBroker
from broker.guard import ROLE_FOR
from broker.policy import ROLES
from tests.security.keyed import ALL, House, raw_peer
from worker_sdk import Client, Denied, JobConflict, JobNotExist, JobSpec
from worker_sdk.ids import new_id
from worker_sdk.messages import (
    Bye,
    Cancel,
    Claim,
    Claiming,
    Delete,
    Enqueue,
    Fail,
    Failure,
    Finish,
    Heartbeat,
    Hello,
    Inputs,
    List,
    Message,
    NewJob,
    Outcome,
    Ping,
    Progress,
    Release,
    Request,
    Retry,
    Stats,
    Status,
    Step,
    Wait,
)

SOME = "018f2b6e-0000-7000-8000-000000000001"

NEEDS: dict[str, list[Message]] = {
    "enqueue": [Enqueue(jobs=(NewJob(id=SOME, type="add"),)), Retry(ids=(SOME,))],
    "read": [Status(ids=(SOME,)), Wait(ids=(SOME,), timeout=0), List(), Stats()],
    "cancel": [Cancel(ids=(SOME,))],
    "admin": [Delete(ids=(SOME,))],
    "work": [
        Hello(types=("add",)),
        Finish(jobs=(Outcome(SOME, 1),)),
        Fail(jobs=(Failure(SOME, 1),)),
        Release(jobs=(Claim(SOME, 1),)),
        Progress(jobs=(Step(SOME, 1, Raw(b"1")),)),
        Claiming(id=SOME),
        Inputs(id=SOME, attempt=1, ids=(SOME,)),
        Heartbeat(),
        Bye(),
    ],
}


def test_every_request_has_its_role() -> None:
    """One that is forgotten takes an admin: safe, and a nuisance."""
    assert set(ROLE_FOR) == set(Request.__args__)
    asked = {type(message) for messages in NEEDS.values() for message in messages}
    assert asked | {Ping} == set(ROLE_FOR)


@pytest.mark.parametrize("role", ROLES)
def test_role_allows_what_is_its_own_and_denies_the_rest(house: House, role: str) -> None:
    house.key("somebody", role, channels=["*"])
    with house.broker() as broker:
        for needed, messages in NEEDS.items():
            for message in messages:
                with raw_peer(broker.endpoint, house.keys("somebody")) as peer:
                    answer = peer.ask(message)

                denied = answer["op"] == "error" and answer["code"] == "denied"
                assert denied == (role not in (needed, "admin")), (message, answer)


def test_whoever_is_let_in_may_ping(house: House) -> None:
    house.key("nobody", channels=["*"])
    with house.broker() as broker, house.client(broker, "nobody") as client:
        assert client.ping()


def test_waiting_with_an_enqueue_is_reading(house: House) -> None:
    house.key("producer", "enqueue")
    with house.broker() as broker, raw_peer(broker.endpoint, house.keys("producer")) as peer:
        answer = peer.ask(Enqueue(jobs=(NewJob(id=SOME, type="add"),), wait=1))

        assert answer["code"] == "denied"
        assert "read" in answer["message"]


# ---- channels and types -----------------------------------------------------------------------


@pytest.fixture
def two(house: House) -> Iterator[tuple[LocalBroker, Client, Client]]:
    """A broker with two tenants, who may do everything, each on a channel of its own."""
    house.key("red", *ALL, "admin", channels=["red"])
    house.key("blue", *ALL, "admin", channels=["blue"])
    house.key("boss", "admin", channels=["*"])
    with (
        house.broker() as broker,
        house.client(broker, "red") as red,
        house.client(broker, "blue") as blue,
    ):
        yield broker, red, blue


Two = tuple[LocalBroker, Client, Client]


@pytest.mark.parametrize(
    ("channel", "type"), [("blue", "add"), ("red", "mail"), ("default", "add"), ("re", "add")]
)
def test_enqueue_elsewhere_is_denied(house: House, channel: str, type: str) -> None:
    house.key("red", "enqueue", channels=["red"], types=["add", "image.*"])
    with house.broker() as broker, house.client(broker, "red") as client:
        client.enqueue("add", channel="red")
        client.enqueue("image.resize", channel="red")

        with pytest.raises(Denied, match="may not enqueue") as denied:
            client.enqueue(type, channel=channel)
        assert len(denied.value.ids) == 1


def test_enqueue_of_a_graph_that_is_partly_elsewhere_enqueues_nothing(two: Two) -> None:
    _, red, _ = two
    mine = JobSpec("add", channel="red")
    with pytest.raises(Denied) as denied:
        red.enqueue_many([mine, JobSpec("add", channel="blue", dependencies=[mine])])

    assert len(denied.value.ids) == 1
    with pytest.raises(JobNotExist):
        red.status(mine.id)


def ask_for(client: Client, id: UUID) -> dict[str, Callable[[], Any]]:
    return {
        "status": lambda: client.status(id),
        "status of several": lambda: client.status([id]),
        "wait": lambda: client.wait(id, 5),
        "result": lambda: client.result(id, 5),
        "cancel": lambda: client.cancel(id),
        "retry": lambda: client.retry(id),
        "delete": lambda: client.delete(id),
        "dependency": lambda: client.enqueue("add", channel="red", dependencies=[id]),
    }


@pytest.mark.parametrize("request_", ask_for(None, None))  # type: ignore[arg-type]
@pytest.mark.parametrize("state", ["ready", "canceled"])
def test_job_elsewhere_does_not_exist(two: Two, request_: str, state: str) -> None:
    """Word for word what is said of a job that is not there at all."""
    _, red, blue = two
    hidden = blue.enqueue("add", channel="blue")
    if state == "canceled":
        blue.cancel(hidden)
    missing = UUID(new_id())

    started = time.monotonic()
    with pytest.raises(JobNotExist) as of_hidden:
        ask_for(red, hidden)[request_]()
    with pytest.raises(JobNotExist) as of_missing:
        ask_for(red, missing)[request_]()

    assert time.monotonic() - started < 2  # nobody waits for what is not there
    assert of_hidden.value.ids[-1:] == (hidden,)
    assert of_missing.value.ids[-1:] == (missing,)
    if request_ != "dependency":  # there, the new job's own id comes first
        said = str(of_hidden.value).replace(str(hidden), str(missing))
        assert said == str(of_missing.value)
    assert blue.status(hidden).state == state


def test_hidden_and_missing_jobs_are_named_alike_among_ones_own(two: Two) -> None:
    _, red, blue = two
    mine, hidden, missing = (
        red.enqueue("add", channel="red"),
        blue.enqueue("add", channel="blue"),
        UUID(new_id()),
    )

    with pytest.raises(JobNotExist) as error:
        red.cancel([missing, mine, hidden])

    assert error.value.ids == (missing, hidden)
    assert red.status(mine).state == "ready"


def test_list_shows_only_what_is_ones_own(two: Two, house: House) -> None:
    broker, red, blue = two
    mine = {red.enqueue("add", channel="red") for _ in range(3)}
    theirs = {blue.enqueue("add", channel="blue") for _ in range(3)}
    for client in (red, blue):
        client.cancel(next(iter(mine if client is red else theirs)))

    assert {job.id for job in red.iter_jobs(page_size=1)} == mine
    assert {job.id for job in blue.list()} == theirs
    assert not list(red.list(channel="blue"))
    with house.client(broker, "boss") as boss:
        assert {job.id for job in boss.list()} == mine | theirs


def test_stats_count_only_what_is_ones_own(two: Two, house: House) -> None:
    broker, red, blue = two
    red.enqueue("add", channel="red")
    blue.enqueue("secret plan", channel="blue")

    stats = red.stats()

    assert [lane["channel"] for lane in stats.pop("lanes")] == ["red"]
    assert set(stats) == {"version"}
    with house.client(broker, "boss") as boss:
        assert boss.stats()["jobs"]["ready"] == 2


def test_jobs_next_to_ones_own_are_left_out(two: Two, house: House) -> None:
    broker, red, _ = two
    with house.client(broker, "boss") as boss:
        first = boss.enqueue("add", channel="blue")
        mine = boss.enqueue("add", channel="red", dependencies=[first])
        last = boss.enqueue("add", channel="blue", dependencies=[mine])
        boss.cancel(first)

        seen = red.status(mine)
        (listed,) = red.list()

        assert boss.status(mine).culprit == first
        for job in (seen, listed):
            assert (job.state, job.reason, job.culprit) == ("canceled", "dependency", None)
            assert not job.dependencies
            assert not job.dependents
        assert boss.status(mine).dependents == (last,)
        assert boss.status(last).dependencies == (mine,)


def test_retry_does_not_tell_of_jobs_elsewhere(two: Two, house: House) -> None:
    broker, red, _ = two
    with house.client(broker, "boss") as boss:
        mine = boss.enqueue("add", channel="red")
        hidden = boss.enqueue("add", channel="blue", dependencies=[mine])
        boss.cancel(mine)

        assert red.retry(mine) == [mine]
        assert boss.status(hidden).state == "blocked"


def test_refused_retry_does_not_name_jobs_elsewhere(two: Two, house: House) -> None:
    broker, red, _ = two
    with house.client(broker, "boss") as boss:
        hidden = boss.enqueue("add", channel="blue")
        mine = boss.enqueue("add", channel="red", dependencies=[hidden])
        boss.cancel(hidden)

        with pytest.raises(JobConflict) as error:
            red.retry(mine)

        assert str(hidden) not in str(error.value)


def test_requests_in_one_turn_learn_nothing_of_each_other(two: Two, house: House) -> None:
    """What comes in one behind the other is judged by what there is when its turn comes."""
    broker, _, _ = two
    ids = [new_id() for _ in range(200)]
    with (
        raw_peer(broker.endpoint, house.keys("red")) as red,
        raw_peer(broker.endpoint, house.keys("blue")) as blue,
    ):
        for id in ids:
            blue.send(Enqueue(jobs=(NewJob(id=id, type="add", channel="blue"),)))
            for message in (Status(ids=(id,)), Cancel(ids=(id,)), Wait(ids=(id,), timeout=1)):
                red.send(message)

        answers = [red.read() for _ in range(3 * len(ids))]
        assert {answer["op"] for answer in answers} == {"error"}
        assert {answer["code"] for answer in answers} == {"not_exist"}
        assert all(blue.read()["op"] == "ok" for _ in ids)


def test_own_jobs_in_one_turn_are_seen(two: Two, house: House) -> None:
    broker, _, _ = two
    ids = [new_id() for _ in range(200)]
    with raw_peer(broker.endpoint, house.keys("red")) as red:
        for id, before in zip(ids, [None, *ids], strict=False):
            job = NewJob(id=id, type="add", channel="red", dependencies=(before,) if before else ())
            red.send(Enqueue(jobs=(job,)))
            red.send(Status(ids=(id,)))

        assert all(red.read()["op"] == "ok" for _ in range(2 * len(ids)))
