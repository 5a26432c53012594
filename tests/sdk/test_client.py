import os
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from tests.sdk.scripted_broker import Script, ScriptedBroker, in_turn
from worker_sdk.aio import AsyncClient
from worker_sdk.client import Client
from worker_sdk.errors import (
    BrokerBusy,
    BrokerUnreachable,
    ClientClosed,
    InvalidRequest,
    JobCanceled,
    JobConflict,
    JobFailed,
    ProtocolError,
    TooLarge,
    WaitTimeout,
)
from worker_sdk.graph import JobSpec
from worker_sdk.ids import new_id, new_uuid
from worker_sdk.messages import DEFAULT_MESSAGE_LIMIT_BYTES as LIMIT
from worker_sdk.messages import Enqueue
from worker_sdk.session import WorkerSession

PONG = {"op": "ok", "version": "1.0"}


def job(id: object, state: str, **facts: Any) -> dict[str, Any]:
    return {"id": str(id), "type": "resize", "state": state, "queued": 0, **facts}


def test_answer_that_was_lost_is_asked_for_again() -> None:
    with ScriptedBroker(in_turn(None, PONG)) as broker, Client(broker.endpoint, 1) as client:
        assert client.ping() == "1.0"

        assert broker.ops() == ["ping", "ping"]


def test_enqueue_sent_again_is_the_same_job() -> None:
    with ScriptedBroker(in_turn(None, {"op": "ok"})) as broker:
        with Client(broker.endpoint, 1) as client:
            id = client.enqueue("resize")

        assert [request.jobs[0].id for request in broker.requests] == [str(id)] * 2


def test_busy_broker_is_asked_again_until_it_is_not() -> None:
    busy = {"op": "error", "code": "busy", "message": "full"}

    with ScriptedBroker(in_turn(busy, busy, PONG)) as broker, Client(broker.endpoint) as client:
        assert client.ping() == "1.0"


def test_broker_that_stays_busy_is_broker_busy() -> None:
    busy = {"op": "error", "code": "busy", "message": "at its bound of jobs"}

    with ScriptedBroker(in_turn(busy)) as broker, Client(broker.endpoint, 0.3) as client:
        with pytest.raises(BrokerBusy, match="at its bound of jobs"):
            client.ping()


def test_no_broker_is_broker_unreachable_within_the_timeout() -> None:
    with Client("tcp://127.0.0.1:9", timeout=0.3) as client:
        before = time.monotonic()
        with pytest.raises(BrokerUnreachable, match=r"no broker answered at tcp://127\.0\.0\.1:9"):
            client.ping()

        assert time.monotonic() - before < 2


def test_broker_that_comes_later_is_found() -> None:
    with ScriptedBroker(in_turn(PONG)) as broker:
        endpoint = broker.endpoint
    later: list[ScriptedBroker] = []

    with Client(endpoint, timeout=20) as client:
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.append(client.ping()))
        asking.start()
        again = ScriptedBroker(in_turn(PONG))
        again._router.bind(endpoint)
        with again:
            later.append(again)
            asking.join()

    assert found == ["1.0"]


@pytest.mark.parametrize(
    "garbage",
    [
        [b"PM1", b"not json"],
        [b"PM1", b"{}"],
        [b"PM9", b'{"op":"ok"}'],
        [b"PM1"],
        [b"PM1", b"{}", b"{}"],
        {"op": "surprise"},
        {"op": "ok"},
        {"op": "ok", "version": 5},
    ],
)
def test_garbage_for_an_answer_is_a_protocol_error(garbage: Any) -> None:
    with ScriptedBroker(in_turn(garbage, PONG)) as broker, Client(broker.endpoint, 5) as client:
        with pytest.raises(ProtocolError):
            client.ping()

        assert client.ping() == "1.0"


def test_repeated_answers_do_not_reach_the_next_call() -> None:
    old = {"op": "ok", "version": "old"}

    with ScriptedBroker(in_turn((old, old, old), PONG)) as broker:
        with Client(broker.endpoint) as client:
            assert client.ping() == "old"
            assert client.ping() == "1.0"


def test_refusal_is_raised_with_code_and_culprits() -> None:
    culprit = new_uuid()
    refusal = {"op": "error", "code": "conflict", "message": "taken", "ids": [str(culprit)]}

    with ScriptedBroker(in_turn(refusal)) as broker, Client(broker.endpoint) as client:
        with pytest.raises(JobConflict, match="taken") as caught:
            client.enqueue("resize")

    assert (caught.value.code, caught.value.ids) == ("conflict", (culprit,))


def test_closed_client_says_so() -> None:
    client = Client()
    client.close()
    client.close()

    with pytest.raises(ClientClosed, match="make a new one"):
        client.ping()


def test_close_ends_the_calls_of_other_threads() -> None:
    with ScriptedBroker(in_turn(None)) as broker:
        client = Client(broker.endpoint)
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                client.wait(new_id())
            except ClientClosed as error:
                raised.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        while not broker.requests:
            time.sleep(0.001)
        client.close()
        thread.join()

    assert len(raised) == 1


def test_thread_that_waits_does_not_block_others() -> None:
    def script(request: Any) -> Any:
        return PONG if type(request).__name__ == "Ping" else None

    with ScriptedBroker(script) as broker, Client(broker.endpoint) as client:

        def wait() -> None:
            with pytest.raises(ClientClosed):
                client.wait(new_id())

        thread = threading.Thread(target=wait)
        thread.start()
        while not broker.requests:
            time.sleep(0.001)

        assert client.ping() == "1.0"
        client.close()
        thread.join()


def test_forked_child_uses_connections_of_its_own() -> None:
    with ScriptedBroker(in_turn(PONG)) as broker, Client(broker.endpoint) as client:
        client.ping()
        child = os.fork()
        if child == 0:
            os._exit(0 if client.ping() == "1.0" else 1)

        assert os.waitpid(child, 0)[1] == 0
        assert client.ping() == "1.0"


def test_endpoint_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTSMAN_BROKER", "ipc:///tmp/elsewhere")

    assert Client().endpoint == "ipc:///tmp/elsewhere"
    assert Client("tcp://127.0.0.1:1").endpoint == "tcp://127.0.0.1:1"


MAKERS: list[Callable[..., Any]] = [Client, AsyncClient, partial(WorkerSession, ["t"])]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "wrong",
    [
        "nonsense",
        "127.0.0.1:5570",
        "tcp://127.0.0.1",
        "tcp://*:5570",
        "tcp://:5570",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:5570 ",
        "udp://127.0.0.1:5570",
        "inproc://here",
        "ipc://",
        "ipc://*",
        "ipc:///tmp/" + "x" * 103,
        5,
        b"tcp://127.0.0.1:5570",
    ],
)
def test_impossible_endpoint_is_named_at_once(make: Any, wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{re.escape(repr(wrong))} is not an endpoint"):
        make(wrong)


def test_impossible_endpoint_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTSMAN_BROKER", "nonsense")

    with pytest.raises(InvalidRequest, match="'nonsense', as POINTSMAN_BROKER says, is not"):
        Client()


@pytest.mark.parametrize(
    "endpoint", ["tcp://broker.example:5570", "tcp://[::1]:1", "ipc://here", "ipc://@abstract"]
)
def test_possible_endpoint_is_taken(endpoint: str) -> None:
    assert Client(endpoint).endpoint == endpoint


@pytest.mark.parametrize("make", [Client, AsyncClient])
@pytest.mark.parametrize("wrong", [None, 0, -1, float("nan"), "10", True])
def test_impossible_timeout_is_named_at_once(make: Any, wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"timeout is a number .* above 0, not {wrong!r}"):
        make(timeout=wrong)


# ---- waiting ---------------------------------------------------------------------------------


def test_wait_goes_on_until_the_job_has_ended() -> None:
    id = new_uuid()
    running = {"op": "ok", "jobs": [job(id, "running")], "done": False}
    finished = {"op": "ok", "jobs": [job(id, "finished", result=[1])], "done": True}

    with ScriptedBroker(in_turn(running, running, finished)) as broker:
        with Client(broker.endpoint) as client:
            assert client.result(id) == [1]


def test_wait_timeout_names_who_has_not_ended() -> None:
    one, two = new_uuid(), new_uuid()
    jobs = [job(one, "finished"), job(two, "blocked")]

    with ScriptedBroker(in_turn({"op": "ok", "jobs": jobs, "done": False})) as broker:
        with Client(broker.endpoint) as client:
            with pytest.raises(WaitTimeout, match=rf"{two} \(resize\) is blocked") as caught:
                client.wait([one, two], timeout=0)

    assert caught.value.ids == (two,)


def test_wait_does_not_ask_again_for_what_has_ended() -> None:
    one, two = new_uuid(), new_uuid()
    first = {"op": "ok", "jobs": [job(one, "finished"), job(two, "running")], "done": False}
    second = {"op": "ok", "jobs": [job(two, "finished", result=2)], "done": True}

    with ScriptedBroker(in_turn(first, second)) as broker, Client(broker.endpoint) as client:
        assert [status.id for status in client.wait([one, two])] == [one, two]

        assert [request.ids for request in broker.requests] == [
            (str(one), str(two)),
            (str(two),),
        ]


def with_room_for(bytes_: int, sizes: dict[str, int]) -> Script:
    """Answers what it is asked about ended jobs of these sizes, if an answer can hold that."""

    def script(request: Any) -> Any:
        if sum(sizes[id] for id in request.ids) > bytes_:
            return {"op": "error", "code": "too_large", "message": "ask for less"}
        return {"op": "ok", "jobs": [job(id, "finished") for id in request.ids], "done": True}

    return script


@pytest.mark.parametrize("ask", [Client.status, Client.wait])
def test_jobs_too_large_for_one_answer_are_asked_for_in_pieces(ask: Any) -> None:
    ids = [new_id() for _ in range(40)]
    script = with_room_for(16, dict.fromkeys(ids, 1))

    with ScriptedBroker(script) as broker, Client(broker.endpoint, message_limit=LIMIT) as client:
        statuses = ask(client, ids)

        assert [str(status.id) for status in statuses] == ids
        assert len(broker.requests) < 10


def test_few_large_jobs_do_not_make_all_pieces_small() -> None:
    ids = [new_id() for _ in range(1000)]
    sizes = dict.fromkeys(ids, 0) | {ids[0]: 16, ids[1]: 16}

    script = with_room_for(16, sizes)

    with ScriptedBroker(script) as broker, Client(broker.endpoint, message_limit=LIMIT) as client:
        assert len(client.status(ids)) == 1000

        assert len(broker.requests) < 50


def test_job_that_is_too_large_by_itself_is_said_so() -> None:
    ids = [new_id() for _ in range(2)]
    script = with_room_for(16, {ids[0]: 1, ids[1]: 17})

    with ScriptedBroker(script) as broker, Client(broker.endpoint) as client:
        with pytest.raises(TooLarge, match="ask for less"):
            client.wait(ids)


@pytest.mark.parametrize("wrong", [float("nan"), "soon", [1]])
def test_timeout_that_is_no_number_is_named(wrong: Any) -> None:
    with Client("tcp://127.0.0.1:9") as client:
        for wait in (client.wait, client.result):
            with pytest.raises(InvalidRequest, match=r"^timeout is a number of seconds"):
                wait(new_uuid(), timeout=wrong)
        with pytest.raises(InvalidRequest, match=r"^wait_timeout is a number of seconds"):
            client.run("a", wait_timeout=wrong)


def test_failed_job_raises_what_it_said() -> None:
    id = new_uuid()
    ended = {"op": "ok", "jobs": [job(id, "failed", error="no space", attempt=3)], "done": True}

    with ScriptedBroker(in_turn(ended)) as broker, Client(broker.endpoint) as client:
        with pytest.raises(JobFailed, match="failed in attempt 3: no space") as caught:
            client.result(id)

    assert (caught.value.id, caught.value.error) == (id, "no space")


def test_canceled_job_raises_with_its_culprit() -> None:
    id, culprit = new_uuid(), new_uuid()
    facts = {"canceled": True, "reason": "dependency", "culprit": str(culprit)}
    ended = {"op": "ok", "jobs": [job(id, "canceled", **facts)], "done": True}

    with ScriptedBroker(in_turn(ended)) as broker, Client(broker.endpoint) as client:
        with pytest.raises(JobCanceled, match=f"its dependency {culprit}") as caught:
            client.result(id)

    assert (caught.value.reason, caught.value.culprit) == ("dependency", culprit)


def test_run_is_one_round_trip() -> None:
    def script(request: Enqueue) -> Any:
        ended = job(request.jobs[0].id, "finished", result={"ok": True})
        return {"op": "ok", "jobs": [ended], "done": True}

    with ScriptedBroker(script) as broker, Client(broker.endpoint) as client:
        assert client.run("resize", {"w": 80}, priority=2) == {"ok": True}

        (request,) = broker.requests
        assert request.wait > 0
        assert request.jobs[0].priority == 2


def test_status_keeps_the_order_asked_for() -> None:
    one, two = new_uuid(), new_uuid()
    jobs = [job(two, "ready"), job(one, "running", started=1.5)]

    with ScriptedBroker(in_turn({"op": "ok", "jobs": jobs})) as broker:
        with Client(broker.endpoint) as client:
            statuses = client.status([one, str(two), one])

    assert [status.id for status in statuses] == [one, two, one]
    assert statuses[0].started == datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)
    assert not statuses[0].is_ended


def test_status_that_lacks_a_job_is_a_protocol_error() -> None:
    with ScriptedBroker(in_turn({"op": "ok", "jobs": []})) as broker:
        with Client(broker.endpoint) as client, pytest.raises(ProtocolError, match="leaves out"):
            client.status(new_uuid())


def test_nothing_is_sent_for_nothing() -> None:
    with Client("tcp://127.0.0.1:9", timeout=0.1) as client:
        assert client.status([]) == []
        assert client.wait([]) == []
        assert client.cancel([]) == []
        assert client.enqueue_many([]) == []


def test_jobs_enqueued_all_the_same_are_told_when_another_request_is_refused() -> None:
    refusal = {"op": "error", "code": "conflict", "message": "taken"}
    jobs = [JobSpec("resize", "x" * 5000) for _ in range(3)]

    with ScriptedBroker(in_turn({"op": "ok"}, refusal)) as broker:
        with Client(broker.endpoint, message_limit=8000) as client:
            with pytest.raises(JobConflict) as caught:
                client.enqueue_many(jobs)

    assert caught.value.__notes__ == ["1 of the 3 jobs were enqueued all the same"]


def test_delete_whose_answer_was_lost_is_done() -> None:
    id = new_uuid()
    gone = {"op": "error", "code": "not_exist", "message": "gone", "ids": [str(id)]}

    with ScriptedBroker(in_turn(None, gone)) as broker, Client(broker.endpoint, 1) as client:
        assert client.delete(id) == [id]


def test_retry_of_more_jobs_than_an_answer_can_name_is_done() -> None:
    ids = [new_uuid(), new_uuid()]

    with ScriptedBroker(in_turn({"op": "ok"})) as broker, Client(broker.endpoint) as client:
        assert client.retry([*ids, str(ids[0])]) == ids
        with pytest.raises(ProtocolError, match="lacks 'ids'"):
            client.cancel(ids)


def test_times_without_a_zone_are_refused() -> None:
    with Client() as client, pytest.raises(InvalidRequest, match="has no time zone"):
        client.list(since=datetime(2030, 1, 1))


def test_what_is_no_time_is_named() -> None:
    with Client() as client, pytest.raises(InvalidRequest, match="until='2030' is not a time"):
        client.list(until="2030")  # type: ignore[arg-type]


def test_what_is_no_id_is_an_invalid_request() -> None:
    with Client() as client:
        for ask in (client.status, client.wait, client.result, client.cancel, client.delete):
            with pytest.raises(InvalidRequest, match="'abc' is not a job id"):
                ask("abc")
        with pytest.raises(InvalidRequest, match="5 is neither a job id nor several"):
            client.retry(5)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="'abc' is not a job id"):
            client.enqueue("a", id="abc")
        with pytest.raises(InvalidRequest, match="'abc' is not a job id"):
            client.enqueue("a", dependencies=["abc"])
        with pytest.raises(InvalidRequest, match="5 is not a job"):
            client.enqueue_many([5])  # type: ignore[list-item]


def test_pages_follow_each_other() -> None:
    ids = [new_uuid() for _ in range(3)]
    first = {"op": "ok", "jobs": [job(id, "ready") for id in ids[:2]], "after": "x"}
    second = {"op": "ok", "jobs": [job(ids[2], "ready")], "after": None}

    with ScriptedBroker(in_turn(first, second)) as broker, Client(broker.endpoint) as client:
        listed = [status.id for status in client.iter_jobs(state=["ready", "running"])]

        assert listed == ids
        assert [request.after for request in broker.requests] == [None, "x"]
