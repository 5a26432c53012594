"""Ways to connect, and how a broker comes and goes."""

import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq

from broker.config import Config
from broker.core.lanes import Lane
from broker.local import LocalBroker
from broker.server import Server
from broker.store.memory import MemoryStore
from tests.wire.conftest import Connect
from tests.wire.peer import Peer, becomes, job, run_one

# ---- REQ and DEALER ------------------------------------------------------------------------------


def test_plain_req_gets_its_answers(connect: Connect) -> None:
    client = connect(kind=zmq.REQ)

    id = client.enqueue()

    assert client.state(id) == "ready"
    assert client.answer_to(b"no json")["code"] == "invalid"
    assert client.ok("ping")


def test_relaxed_and_correlated_req_gets_the_answer_to_its_last_request(connect: Connect) -> None:
    client = connect(kind=zmq.REQ, REQ_RELAXED=1, REQ_CORRELATE=1)
    id = client.enqueue()
    client.say("wait", ids=[id], timeout=60)

    assert client.ok("cancel", ids=[id]) == {"ids": [id]}

    # The answer to the wait comes too late, and is dropped by the socket.
    assert client.hears_nothing()
    assert client.state(id) == "canceled"


def test_correlated_req_gets_errors_for_broken_messages_too(connect: Connect) -> None:
    client = connect(kind=zmq.REQ, REQ_RELAXED=1, REQ_CORRELATE=1)

    client.socket.send_multipart([b"PM1"])
    assert client.receive()["code"] == "invalid"
    client.socket.send_multipart([b"PM1", b"{}", b"more"])
    assert client.receive()["code"] == "invalid"
    client.socket.send_multipart([b"PM9", b"{}"])
    assert client.receive()["code"] == "unsupported"


def test_dealer_has_many_requests_under_way(client: Peer) -> None:
    # No more than the 1,000 answers that the broker keeps for a peer that does not read.
    jobs = [job() for _ in range(900)]
    reqs = [client.say("enqueue", jobs=[one]) for one in jobs]

    answers = [client.receive() for _ in jobs]

    assert [answer["req"] for answer in answers] == reqs
    assert [answer["ids"][0] for answer in answers] == [one["id"] for one in jobs]


def test_many_clients_are_served_at_once(broker: LocalBroker, worker: Peer) -> None:
    def results() -> list[int]:
        with Peer(broker.endpoint) as peer:
            answers = [peer.ok("enqueue", jobs=[job()], wait=30) for _ in range(20)]
        return [answer["jobs"][0]["result"] for answer in answers]

    worker.hello(credit=10)
    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(results) for _ in range(8)]
        done = 0
        while done < 160:
            jobs = worker.next_jobs()
            worker.send({"op": "finish", "jobs": [[one["id"], 1, 7] for one in jobs]})
            done += len(jobs)

        assert [client.result() for client in clients] == [[7] * 20] * 8


# ---- endpoints -----------------------------------------------------------------------------------


def test_one_broker_serves_tcp_and_ipc_alike(tmp_path: Path, connect: Connect) -> None:
    ipc = f"ipc://{tmp_path}/broker"
    with LocalBroker(bind=("tcp://127.0.0.1:*", ipc)) as broker:
        assert broker.endpoints[1] == ipc
        assert broker.endpoint.startswith("tcp://127.0.0.1:")
        over_tcp, over_ipc = connect(broker.endpoint), connect(ipc)
        worker = connect(ipc)
        worker.hello()

        id = over_tcp.enqueue()
        run_one(worker, result="over ipc")

        assert over_ipc.status(id)["result"] == "over ipc"


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_endpoint_in_use_is_refused_and_the_first_broker_goes_on(
    tmp_path: Path, connect: Connect, kind: str
) -> None:
    bind = "tcp://127.0.0.1:*" if kind == "tcp" else f"ipc://{tmp_path}/broker"
    with LocalBroker(bind=bind) as first:
        second = LocalBroker(f"sqlite:{tmp_path / 'second.db'}", bind=first.endpoint)

        with pytest.raises(zmq.ZMQError, match="in use") as error:
            second.start()

        assert first.endpoint in str(error.value)
        assert connect(first.endpoint).ok("ping")
        # The store that the second one opened is free again.
        with LocalBroker(f"sqlite:{tmp_path / 'second.db'}"):
            pass


def test_ipc_endpoint_left_behind_by_a_broker_that_died_is_taken_over(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "broker"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()

    with LocalBroker(bind=f"ipc://{path}") as broker, Peer(broker.endpoint) as client:
        assert client.ok("ping")


def test_endpoint_is_free_after_the_end(connect: Connect) -> None:
    with LocalBroker() as first:
        endpoint = first.endpoint
    with LocalBroker(bind=endpoint) as second:
        assert second.endpoint == endpoint
        assert connect(endpoint).ok("ping")


# ---- a broker's life -----------------------------------------------------------------------------


def test_local_broker_has_an_endpoint_only_while_it_runs() -> None:
    broker = LocalBroker()
    with pytest.raises(RuntimeError, match="is not running"):
        broker.endpoint  # noqa: B018
    with broker:
        assert broker.endpoint
        with pytest.raises(RuntimeError, match="runs already"):
            broker.start()
    with pytest.raises(RuntimeError, match="is not running"):
        broker.endpoint  # noqa: B018
    broker.stop()


def test_local_broker_can_run_again(tmp_path: Path) -> None:
    broker = LocalBroker(f"sqlite:{tmp_path / 'jobs.db'}")
    with broker, Peer(broker.endpoint) as client:
        id = client.enqueue()

    with broker, Peer(broker.endpoint) as client:
        assert client.state(id) == "ready"


def test_running_attempts_survive_a_restart(tmp_path: Path, connect: Connect) -> None:
    store = f"sqlite:{tmp_path / 'jobs.db'}"
    with LocalBroker(store) as broker:
        client, worker = connect(broker.endpoint), connect(broker.endpoint)
        first = client.enqueue()
        second = client.enqueue(dependencies=[first])
        worker.hello(session="s")
        one = worker.next_job()

    with LocalBroker(store) as broker:
        client, worker = connect(broker.endpoint), connect(broker.endpoint)
        worker.hello(session="s", running=[[one["id"], one["attempt"]]])
        worker.ok("finish", jobs=[[first, 1, "kept"]])

        after = worker.next_job()

        assert (after["id"], after["inputs"]) == (second, {first: "kept"})
        assert client.status(first)["attempt"] == 1


def stopping(broker: LocalBroker) -> threading.Thread:
    thread = threading.Thread(target=lambda: broker.stop(drain=True))
    thread.start()
    return thread


def test_broker_that_drains_lets_running_jobs_end_and_starts_nothing(
    tmp_path: Path, connect: Connect
) -> None:
    store = f"sqlite:{tmp_path / 'jobs.db'}"
    broker = LocalBroker(store).start()
    client, worker = connect(broker.endpoint), connect(broker.endpoint)
    running, waiting = client.enqueue(), client.enqueue()
    worker.hello(credit=1)
    one = worker.next_job()
    wait = client.say("wait", ids=[running], timeout=60)

    thread = stopping(broker)

    def refuses() -> bool:
        answer = client.ask("enqueue", jobs=[job("later")])
        return bool(answer["op"] == "error" and answer["code"] == "busy")

    becomes(refuses)
    assert worker.code("claim", id=waiting) == "busy"
    assert client.state(waiting) == "ready"
    worker.finish(one, result="in time")
    answer = client.receive()
    assert (answer["req"], answer["jobs"][0]["result"]) == (wait, "in time")
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert worker.hears_nothing()
    with LocalBroker(store) as again, Peer(again.endpoint) as newcomer:
        assert newcomer.state(waiting) == "ready"
        assert newcomer.state(running) == "finished"


def test_broker_that_drains_waits_no_longer_than_it_may(tmp_path: Path, connect: Connect) -> None:
    store = f"sqlite:{tmp_path / 'jobs.db'}"
    broker = LocalBroker(store, drain=0.2).start()
    client, worker = connect(broker.endpoint), connect(broker.endpoint)
    id = client.enqueue()
    worker.hello()
    worker.next_job()

    thread = stopping(broker)
    thread.join(timeout=10)

    assert not thread.is_alive()
    with LocalBroker(store) as again, Peer(again.endpoint) as newcomer:
        assert newcomer.state(id) == "running"


def test_broker_without_running_jobs_leaves_at_once() -> None:
    broker = LocalBroker(drain=60).start()
    with Peer(broker.endpoint) as client:
        client.enqueue()

        broker.stop(drain=True)


def test_second_call_to_stop_does_not_wait(connect: Connect) -> None:
    broker = LocalBroker(drain=60).start()
    client, worker = connect(broker.endpoint), connect(broker.endpoint)
    client.enqueue()
    worker.hello()
    worker.next_job()
    thread = stopping(broker)

    broker.stop()
    thread.join(timeout=10)

    assert not thread.is_alive()


def test_slow_reader_holds_nobody_up(connect: Connect, client: Peer) -> None:
    # It asks without end and reads nothing, until its connection is full on both ways.
    slow = connect(RCVHWM=1, SNDHWM=1, RCVBUF=4096)
    id = client.enqueue(args="x" * 100_000)
    request = json.dumps({"op": "status", "ids": [id] * 5, "args": True}).encode()
    for _ in range(3000):
        try:
            slow.socket.send_multipart([b"", b"PM1", request], zmq.NOBLOCK)
        except zmq.Again:
            break

    assert client.ok("ping")
    assert client.state(id) == "ready"


def test_broker_that_has_left_keeps_no_job_in_memory() -> None:
    with LocalBroker() as broker:
        client, worker = Peer(broker.endpoint), Peer(broker.endpoint)
        with client, worker:
            ids = [client.enqueue("left-behind", timeout=60) for _ in range(2)]
            client.enqueue("left-behind", dependencies=ids, expires=60)
            worker.hello("left-behind")
            broker.stop()
    del broker

    gc.collect()
    gc.collect()  # what only jobs referred to

    lanes = [each for each in gc.get_objects() if isinstance(each, Lane)]
    assert "left-behind" not in [lane.type for lane in lanes]


def test_after_a_drain_the_last_answer_can_be_read_before_the_connection_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.server._LAST_WORDS_S", 1.0)
    server = Server(Config(bind=("tcp://127.0.0.1:*",), drain=60.0), MemoryStore())
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with Peer(server.endpoints[0]) as worker:
        ends = worker.socket.get_monitor_socket(zmq.Event.DISCONNECTED)
        worker.enqueue()
        worker.hello()
        one = worker.next_job()
        server.drain()
        worker.finish(one)
        ended_at_once = ends.poll(200)
    thread.join()

    assert not ended_at_once
