"""What workers say and are told, op by op, and each error that they can get."""

from typing import Any

import pytest

from broker import __version__
from broker.local import LocalBroker
from tests.wire.conftest import Connect
from tests.wire.peer import Peer, becomes, ids_of, job, new_id, run_one

NOBODY = "0198c2f0-8a00-7000-8000-ffffffffffff"


def token(one: dict[str, Any]) -> list[Any]:
    return [one["id"], one["attempt"]]


# ---- hello, credit, heartbeat, bye ---------------------------------------------------------------


def test_welcome_tells_what_a_worker_must_know(worker: Peer) -> None:
    assert worker.hello() == {
        "version": __version__,
        "heartbeat": 2.5,
        "heartbeat_limit": 10.0,
        "message_limit": 1_000_000,
    }


def test_jobs_are_pushed_up_to_the_credit(client: Peer, worker: Peer) -> None:
    ids = [client.enqueue() for _ in range(4)]
    worker.hello(credit=2)
    first = worker.next_jobs()
    assert ids_of(first) == ids[:2]
    assert worker.hears_nothing()

    worker.say("finish", jobs=[[*token(first[0]), None]], credit=3)

    messages = [worker.receive(), worker.receive()]
    assert [message["op"] for message in messages] == ["ok", "jobs"]
    assert ids_of(messages[1]["jobs"]) == ids[2:]


def test_waiting_worker_gets_a_job_the_moment_it_is_enqueued(client: Peer, worker: Peer) -> None:
    worker.hello("a", "b", channels=["x", "y"])

    id = client.enqueue("b", channel="y")

    assert worker.next_job() == {
        "id": id,
        "attempt": 1,
        "type": "b",
        "channel": "y",
        "args": None,
    }


def test_heartbeat_is_answered(worker: Peer) -> None:
    worker.hello()

    assert worker.ask("heartbeat") == {"op": "heartbeat"}
    worker.send({"op": "heartbeat", "credit": 5})
    assert worker.receive() == {"op": "heartbeat"}


def test_bye_hands_back(client: Peer, worker: Peer, connect: Connect) -> None:
    id = client.enqueue(max_attempts=1)
    worker.hello()
    worker.next_job()

    assert worker.ok("bye") == {}

    assert client.state(id) == "ready"
    assert worker.code("heartbeat") == "unsupported"
    other = connect()
    other.hello()
    assert token(other.next_job()) == [id, 2]


def test_bye_without_req_has_no_answer(worker: Peer) -> None:
    worker.hello()

    worker.send({"op": "bye"})

    assert worker.hears_nothing()


def test_silent_worker_loses_its_jobs() -> None:
    with LocalBroker(heartbeat_limit=0.3) as broker:
        with Peer(broker.endpoint) as client, Peer(broker.endpoint) as silent:
            id = client.enqueue()
            silent.hello()
            lost = silent.next_job()
            becomes(lambda: client.state(id) == "ready")

            assert silent.code("finish", jobs=[[*token(lost), None]]) == "unsupported"
            silent.say("hello", types=["work"], running=[token(lost)])

            assert silent.receive()["op"] == "welcome"
            assert silent.receive() == {"op": "cancel", "ids": [id], "reason": "lost"}
            assert token(silent.next_job()) == [id, 2]


def test_worker_on_a_connection_that_broke_is_replaced_by_its_session(
    client: Peer, worker: Peer, connect: Connect
) -> None:
    kept, left = client.enqueue(), client.enqueue()
    worker.hello(session="s", credit=2)
    jobs = worker.next_jobs()
    worker.close()

    again = connect()
    again.hello(session="s", credit=2, running=[token(jobs[0])])

    assert ids_of(jobs) == [kept, left]
    assert token(again.next_job()) == [left, 2]
    again.ok("finish", jobs=[[kept, 1, "kept"]])
    assert client.status(kept)["result"] == "kept"


def test_job_for_a_worker_that_vanished_goes_elsewhere(
    client: Peer, worker: Peer, connect: Connect
) -> None:
    worker.hello(credit=1)
    worker.close()
    other = connect()
    other.hello(credit=0)

    id = client.enqueue()
    other.say("heartbeat", credit=1)

    messages = [other.receive(), other.receive()]
    (one,) = next(message["jobs"] for message in messages if message["op"] == "jobs")
    assert one["id"] == id


# ---- outcomes ------------------------------------------------------------------------------------


def test_outcome_without_req_is_not_answered(client: Peer, worker: Peer) -> None:
    id = client.enqueue()
    worker.hello()
    worker.next_job()

    worker.send({"op": "finish", "jobs": [[id, 1]]})

    assert worker.hears_nothing()
    assert client.state(id) == "finished"
    worker.send({"op": "finish", "jobs": [[id, 1]]})
    error = worker.receive()
    assert (error["op"], error["code"], error["ids"]) == ("error", "not_running", [id])
    assert "req" not in error


def test_failure_is_followed_by_another_attempt(client: Peer, worker: Peer) -> None:
    id = client.enqueue(backoff=0, max_attempts=2)
    worker.hello()
    for attempt in (1, 2):
        assert token(worker.next_job()) == [id, attempt]
        worker.say("fail", jobs=[{"id": id, "attempt": attempt, "error": f"try {attempt}"}])
        if attempt == 2:
            break
        assert worker.receive()["op"] == "ok"
    worker.receive()

    info = client.status(id)

    assert (info["state"], info["error"], info["attempt"]) == ("failed", "try 2", 2)


def test_release_hands_back_one(client: Peer, worker: Peer) -> None:
    id = client.enqueue(max_attempts=1)
    worker.hello()
    worker.next_job()

    assert worker.ok("release", jobs=[[id, 1]], credit=0) == {}

    assert client.state(id) == "ready"


def test_progress_is_shown(client: Peer, worker: Peer) -> None:
    id = client.enqueue()
    worker.hello()
    worker.next_job()

    worker.send({"op": "progress", "jobs": [[id, 1, {"share": 0.5}]]})

    assert worker.hears_nothing()
    assert client.status(id)["progress"] == {"share": 0.5}


def test_what_a_worker_does_not_hold_is_refused_with_the_reason(
    client: Peer, worker: Peer, connect: Connect
) -> None:
    held, canceled, waits = client.enqueue(), client.enqueue(), client.enqueue("other")
    holder = connect()
    holder.hello(credit=2)
    holder.next_jobs()
    client.ok("cancel", ids=[canceled])
    worker.hello("nothing")

    for op, entry in (
        ("finish", lambda id: [id, 1, None]),
        ("fail", lambda id: {"id": id, "attempt": 1}),
        ("release", lambda id: [id, 1]),
        ("progress", lambda id: [id, 1, None]),
    ):
        error = worker.error(op, jobs=[entry(id) for id in (held, waits, canceled, NOBODY)])
        assert error["code"] == error["codes"][0]
        assert dict(zip(error["ids"], error["codes"], strict=True)) == {
            held: "not_running",
            waits: "not_running",
            canceled: "canceled",
            NOBODY: "not_exist",
        }
        assert worker.error(op, jobs=[entry(canceled)])["code"] == "canceled"
        assert worker.error(op, jobs=[entry(NOBODY)])["code"] == "not_exist"
    assert client.state(held) == "running"


def test_late_outcome_of_an_older_attempt_is_refused(client: Peer, worker: Peer) -> None:
    id = client.enqueue(backoff=0)
    worker.hello()
    worker.next_job()
    worker.say("fail", jobs=[{"id": id, "attempt": 1}])
    assert [worker.receive()["op"], worker.receive()["op"]] == ["ok", "jobs"]

    error = worker.error("finish", jobs=[[id, 1, "late"]])

    assert (error["code"], error["ids"]) == ("not_running", [id])
    assert client.state(id) == "running"


# ---- what the broker says ------------------------------------------------------------------------


def test_worker_is_told_at_once_that_its_job_was_canceled(client: Peer, worker: Peer) -> None:
    id = client.enqueue()
    worker.hello()
    worker.next_job()

    client.ok("cancel", ids=[id])

    assert worker.receive() == {"op": "cancel", "ids": [id], "reason": "request"}
    assert worker.error("finish", jobs=[[id, 1, None]])["code"] == "canceled"


def test_attempt_that_runs_too_long_is_stopped_before_the_next_begins(
    client: Peer, worker: Peer
) -> None:
    id = client.enqueue(timeout=0.1, backoff=0)
    worker.hello()
    assert worker.next_job()["timeout"] == 0.1

    assert worker.receive() == {"op": "cancel", "ids": [id], "reason": "timeout"}

    assert token(worker.next_job()) == [id, 2]


# ---- claim, inputs -------------------------------------------------------------------------------


def test_claim_gives_one_certain_job_or_says_why_not(client: Peer, worker: Peer) -> None:
    other, wanted = client.enqueue(), client.enqueue("rare")
    blocked = client.enqueue(dependencies=[wanted])
    canceled = client.enqueue()
    client.ok("cancel", ids=[canceled])
    worker.hello("nothing", credit=0)

    answer = worker.ask("claim", id=wanted)

    assert answer["op"] == "jobs"
    assert ids_of(answer["jobs"]) == [wanted]
    assert client.state(other) == "ready"
    for id, code in (
        (wanted, "not_ready"),
        (blocked, "not_ready"),
        (canceled, "canceled"),
        (NOBODY, "not_exist"),
    ):
        error = worker.error("claim", id=id)
        assert (error["code"], error["ids"]) == (code, [id])
    worker.ok("finish", jobs=[[wanted, 1, None]])
    assert worker.error("claim", id=wanted)["code"] == "not_ready"


def test_jobs_with_the_same_dependencies_have_inputs_each_as_it_wants(connect: Connect) -> None:
    client, worker = connect(), connect()
    root = client.enqueue()
    # A condition that is spelled out is the same as none.
    spelled_out = [{"id": root, "condition": "finished"}]
    jobs = [
        job(dependencies=[root]),
        job(dependencies=[root], inputs=False),
        job(dependencies=spelled_out),
        job(dependencies=[root]),
    ]
    client.ok("enqueue", jobs=jobs)
    worker.hello(credit=10)
    worker.finish(worker.next_job(), {"n": 1})

    got = worker.next_jobs()

    assert [one["id"] for one in got] == [one["id"] for one in jobs]
    assert [one["dependencies"] for one in got] == [[root]] * 4
    with_result = {root: {"n": 1}}
    assert [one.get("inputs") for one in got] == [with_result, None, with_result, with_result]


def test_a_lone_dependency_that_fails_cancels_whether_its_condition_is_spelled_out_or_not(
    connect: Connect,
) -> None:
    client, worker = connect(), connect()
    root = client.enqueue(max_attempts=1)
    child = client.enqueue(dependencies=[{"id": root, "condition": "finished"}])
    worker.hello()
    one = worker.next_job()

    worker.ok("fail", jobs=[{"id": root, "attempt": one["attempt"], "error": "no"}])

    assert client.state(child) == "canceled"


def test_inputs_that_are_too_large_are_asked_for(connect: Connect) -> None:
    with LocalBroker(inputs_limit=10) as broker:
        client, worker = connect(broker.endpoint), connect(broker.endpoint)
        part = client.enqueue()
        whole = client.enqueue(dependencies=[part])
        worker.hello()
        run_one(worker, result="x" * 100)

        one = worker.next_job()

        assert one["inputs_left_out"] is True
        assert "inputs" not in one
        answer = worker.ok("inputs", id=whole, attempt=1, ids=[part])
        assert answer == {"results": {part: "x" * 100}}
        assert worker.code("inputs", id=whole, attempt=2, ids=[part]) == "not_running"
        assert worker.code("inputs", id=part, attempt=1, ids=[part]) == "not_running"
        assert worker.code("inputs", id=NOBODY, attempt=1, ids=[part]) == "not_exist"
        assert worker.code("inputs", id=whole, attempt=1, ids=[NOBODY]) == "invalid"


# ---- the wrong side's ops ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("finish", {"jobs": [[NOBODY, 1, None]]}),
        ("fail", {"jobs": [{"id": NOBODY, "attempt": 1}]}),
        ("release", {"jobs": [[NOBODY, 1]]}),
        ("progress", {"jobs": [[NOBODY, 1, 0]]}),
        ("claim", {"id": NOBODY}),
        ("inputs", {"id": NOBODY, "attempt": 1, "ids": []}),
        ("heartbeat", {}),
        ("bye", {}),
    ],
)
def test_client_that_speaks_the_workers_ops_is_refused(
    client: Peer, op: str, fields: dict[str, Any]
) -> None:
    assert client.code(op, **fields) == "unsupported"
    assert client.ok("ping")


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("enqueue", {"jobs": [{"id": new_id(), "type": "work"}]}),
        ("status", {"ids": []}),
        ("wait", {"ids": []}),
        ("cancel", {"ids": []}),
        ("retry", {"ids": []}),
        ("delete", {"ids": []}),
        ("list", {}),
        ("stats", {}),
        ("ping", {}),
    ],
)
def test_worker_that_speaks_the_clients_ops_is_refused(
    worker: Peer, client: Peer, op: str, fields: dict[str, Any]
) -> None:
    worker.hello()

    assert worker.code(op, **fields) == "unsupported"

    assert client.ok("stats")["stats"]["totals"]["enqueued"] == 0
    assert worker.ask("heartbeat") == {"op": "heartbeat"}


@pytest.mark.parametrize("op", ["welcome", "jobs", "ok", "error"])
def test_ops_of_the_broker_itself_are_refused(client: Peer, op: str) -> None:
    assert client.code(op) == "unsupported"


@pytest.mark.parametrize(
    "fields",
    [
        {"types": []},
        {"types": ["t"], "channels": []},
        {"types": [""]},
        {"types": ["x" * 201]},
        {"types": "work"},
        {"types": ["t"], "credit": -1},
        {"types": ["t"], "credit": 1.5},
        {"types": ["t"], "running": [["x", 1]]},
        {"types": [str(n) for n in range(200)], "channels": [str(n) for n in range(200)]},
        {},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_hello_that_is_wrong_makes_no_worker(worker: Peer, fields: dict[str, Any]) -> None:
    assert worker.code("hello", **fields) == "invalid"

    assert worker.code("heartbeat") == "unsupported"
