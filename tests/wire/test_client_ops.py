"""What clients ask for, op by op, and each error that they can get."""

import time

import pytest

from broker import __version__
from broker.local import LocalBroker
from tests.wire.conftest import Connect
from tests.wire.peer import Peer, ids_of, job, new_id, run_one

NOBODY = "0198c2f0-8a00-7000-8000-ffffffffffff"

# ---- enqueue and status --------------------------------------------------------------------------


def test_ping_tells_version_and_limit(client: Peer) -> None:
    assert client.ok("ping") == {"version": __version__, "message_limit": 1_000_000}


def test_enqueued_job_is_shown_with_its_times(client: Peer) -> None:
    before = time.time()

    id = client.enqueue("fetch", args={"url": "x"}, priority=3, channel="c")

    info = client.status(id)
    assert before - 1 < info.pop("queued") < time.time() + 1
    assert info == {
        "id": id,
        "type": "fetch",
        "state": "ready",
        "channel": "c",
        "priority": 3,
        "args": {"url": "x"},
    }


def test_text_with_nul_and_any_unicode_passes_unharmed(client: Peer, worker: Peer) -> None:
    text = '\u0000 \ud83d\ude82 é \u2028 \\ " </script>'.encode("utf-16", "surrogatepass").decode(
        "utf-16"
    )
    id = client.enqueue(text, args={text: [text]}, channel=text)
    worker.hello(text, channels=[text])

    one = worker.next_job()
    assert (one["type"], one["channel"], one["args"]) == (text, text, {text: [text]})
    worker.finish(one, result=text)

    assert client.status(id)["result"] == text


def test_args_left_out_are_null(client: Peer) -> None:
    assert client.status(client.enqueue())["args"] is None


def test_args_come_back_byte_for_byte(client: Peer, worker: Peer) -> None:
    args = '{ "b" : 1.50, "a": [1E2, -0], "a": 12345678901234567890123 }'
    id = new_id()
    answer = client.answer_to(
        f'{{"op":"enqueue","jobs":[{{"id":"{id}","type":"work","args":{args}}}]}}'
    )
    assert answer["op"] == "ok"

    worker.say("hello", types=["work"])
    worker.receive()

    assert args.encode() in worker.receive_frames()[-1]


def test_graph_in_one_request_runs_in_order(client: Peer, worker: Peer) -> None:
    a, b = job(), job()
    c = job(dependencies=[a["id"], {"id": b["id"], "condition": "ended"}])
    assert client.ok("enqueue", jobs=[a, b, c]) == {"ids": ids_of([a, b, c])}
    worker.hello(credit=1)

    assert run_one(worker, result=[1]) == a["id"]
    one = worker.next_job()
    assert (
        worker.ok("fail", jobs=[{"id": b["id"], "attempt": 1, "error": "e", "retry": False}]) == {}
    )
    assert one["id"] == b["id"]

    last = worker.next_job()
    assert last["dependencies"] == [a["id"], b["id"]]
    assert last["inputs"] == {a["id"]: [1]}


def test_enqueue_is_atomic_and_names_the_culprits(client: Peer) -> None:
    good, bad = job(), job(dependencies=[NOBODY])

    error = client.error("enqueue", jobs=[good, bad])

    assert (error["code"], error["ids"]) == ("not_exist", [bad["id"], NOBODY])
    assert client.code("status", ids=[good["id"]]) == "not_exist"


def test_enqueue_sent_again_creates_nothing_new(client: Peer, worker: Peer) -> None:
    one = job(args=[1])
    for _ in range(3):
        assert client.ok("enqueue", jobs=[one]) == {"ids": [one["id"]]}
    worker.hello(credit=5)

    assert ids_of(worker.next_jobs()) == [one["id"]]
    assert worker.hears_nothing()
    error = client.error("enqueue", jobs=[{**one, "args": [2]}])
    assert (error["code"], error["ids"]) == ("conflict", [one["id"]])


def test_jobs_that_depend_on_each_other_in_a_circle_are_invalid(client: Peer) -> None:
    a, b = job(), job()
    a["dependencies"], b["dependencies"] = [b["id"]], [a["id"]]

    error = client.error("enqueue", jobs=[a, b])

    assert (error["code"], error["ids"]) == ("invalid", [a["id"]])


def test_enqueue_with_wait_is_answered_at_the_end(client: Peer, worker: Peer) -> None:
    one = job()
    req = client.say("enqueue", jobs=[one], wait=60)
    worker.hello()
    run_one(worker, result="done")

    answer = client.receive()

    assert (answer["op"], answer["req"], answer["done"]) == ("ok", req, True)
    assert answer["jobs"][0]["result"] == "done"


def test_status_of_unknown_jobs_names_them(client: Peer) -> None:
    id = client.enqueue()

    error = client.error("status", ids=[NOBODY, id])

    assert (error["code"], error["ids"]) == ("not_exist", [NOBODY])
    assert client.ok("status", ids=[]) == {"jobs": []}
    assert len(client.ok("status", ids=[id, id])["jobs"]) == 2


# ---- wait, cancel, retry, delete -----------------------------------------------------------------


def test_wait_gives_results_and_errors(client: Peer, worker: Peer) -> None:
    good, bad = client.enqueue(), client.enqueue()
    req = client.say("wait", ids=[bad, good], timeout=60)
    worker.hello(credit=2)
    worker.next_jobs()
    worker.ok("finish", jobs=[[good, 1, {"n": 1}]])
    worker.ok("fail", jobs=[{"id": bad, "attempt": 1, "error": "why", "retry": False}])

    answer = client.receive()

    assert (answer["req"], answer["done"]) == (req, True)
    failed, finished = answer["jobs"]
    assert (failed["state"], failed["error"]) == ("failed", "why")
    assert (finished["state"], finished["result"]) == ("finished", {"n": 1})


def test_wait_is_over_after_its_time(client: Peer) -> None:
    id = client.enqueue()

    answer = client.ok("wait", ids=[id], timeout=0.05)

    assert answer["done"] is False
    assert answer["jobs"][0]["state"] == "ready"
    assert client.error("wait", ids=[id, NOBODY])["ids"] == [NOBODY]


def test_other_requests_go_on_while_one_waits(client: Peer) -> None:
    id = client.enqueue()
    waiting = client.say("wait", ids=[id])

    assert client.state(id) == "ready"
    client.say("cancel", ids=[id])

    answers = [client.receive(), client.receive()]
    assert sorted(answer["req"] for answer in answers) == [waiting, waiting + 2]


def test_cancel_ends_and_names_what_it_ended(client: Peer) -> None:
    first = client.enqueue()
    second = client.enqueue(dependencies=[first])

    assert client.ok("cancel", ids=[first]) == {"ids": [first]}

    info = client.status(second)
    assert (info["state"], info["canceled"], info["reason"], info["culprit"]) == (
        "canceled",
        True,
        "dependency",
        first,
    )
    assert client.ok("cancel", ids=[first, second]) == {"ids": []}
    assert client.error("cancel", ids=[NOBODY])["code"] == "not_exist"


def test_cancel_does_nothing_to_a_finished_job(client: Peer, worker: Peer) -> None:
    id = client.enqueue()
    worker.hello()
    run_one(worker, result=1)

    assert client.ok("cancel", ids=[id]) == {"ids": []}

    assert client.state(id) == "finished"


def test_retry_revives_what_was_canceled_along(client: Peer, worker: Peer) -> None:
    first = client.enqueue()
    second = client.enqueue(dependencies=[first])
    client.ok("cancel", ids=[first])

    assert client.ok("retry", ids=[first]) == {"ids": [first, second]}

    worker.hello()
    assert [run_one(worker), run_one(worker)] == [first, second]
    error = client.error("retry", ids=[first])
    assert (error["code"], error["ids"]) == ("conflict", [first])
    assert client.code("retry", ids=[NOBODY]) == "not_exist"


def test_delete_forgets_ended_jobs_only(client: Peer) -> None:
    first = client.enqueue()
    second = client.enqueue(dependencies=[{"id": first, "condition": "ended"}])
    assert client.error("delete", ids=[first])["code"] == "conflict"
    client.ok("cancel", ids=[first])
    assert client.error("delete", ids=[first])["ids"] == [first]
    client.ok("cancel", ids=[second])

    assert client.ok("delete", ids=[first, second]) == {"ids": [first, second]}

    assert client.error("status", ids=[first, second])["ids"] == [first, second]
    assert client.code("delete", ids=[first]) == "not_exist"


# ---- list, stats ---------------------------------------------------------------------------------


def test_list_gives_pages(client: Peer) -> None:
    ids = [client.enqueue() for _ in range(5)]
    client.ok("cancel", ids=ids[1:3])

    page = client.ok("list", limit=3)
    rest = client.ok("list", limit=3, after=page["after"])

    assert ids_of(page["jobs"] + rest["jobs"]) == [ids[n] for n in (4, 3, 0, 2, 1)]
    assert rest["after"] is None
    assert ids_of(client.ok("list", state="canceled")["jobs"]) == [ids[2], ids[1]]
    assert client.code("list", state="cancelled") == "invalid"
    assert client.code("list", after="nowhere") == "invalid"


def test_stats_count(client: Peer, worker: Peer) -> None:
    client.enqueue()
    client.enqueue()
    worker.hello(credit=1)
    worker.next_job()

    stats = client.ok("stats")["stats"]

    assert stats["jobs"] == {"blocked": 0, "scheduled": 0, "ready": 1, "running": 1}
    assert stats["workers"] == 1
    assert stats["version"] == __version__


# ---- bounds --------------------------------------------------------------------------------------


def test_broker_at_its_bounds_is_busy() -> None:
    with LocalBroker(max_jobs=1, max_waits=1, max_workers=1) as broker:
        with Peer(broker.endpoint) as client, Peer(broker.endpoint) as other:
            id = client.enqueue()
            client.say("wait", ids=[id])
            assert client.code("enqueue", jobs=[job()]) == "busy"
            assert client.code("wait", ids=[id]) == "busy"
            other.hello("nothing")
            assert client.code("hello", types=["nothing"]) == "busy"


def test_answer_that_is_too_large_says_so(connect: Connect) -> None:
    with LocalBroker(max_message=2000) as broker:
        client = connect(broker.endpoint)
        ids = [client.enqueue(args="x" * 1000) for _ in range(6)]

        assert client.code("status", ids=ids, args=True) == "too_large"
        assert len(client.ok("status", ids=ids[:2], args=True)["jobs"]) == 2


# ---- times ---------------------------------------------------------------------------------------


def test_delayed_job_comes_after_its_delay_and_not_before(client: Peer, worker: Peer) -> None:
    worker.hello(credit=2)
    start = time.monotonic()
    late, early = client.enqueue(delay=0.2), client.enqueue(delay=0.1)
    assert client.status(late)["due"] == pytest.approx(time.time() + 0.2, abs=0.15)

    assert worker.next_job()["id"] == early
    assert worker.next_job()["id"] == late
    assert time.monotonic() - start >= 0.2


def test_expired_job_is_canceled(client: Peer) -> None:
    id = client.enqueue(expires=0.05)

    answer = client.ok("wait", ids=[id])

    (info,) = answer["jobs"]
    assert (info["state"], info["reason"]) == ("canceled", "expired")
