"""Keys that lose their rights while they are connected."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from broker import LocalBroker, keyring
from broker.config import ConfigError
from broker.policy import load
from tests.security.keyed import ALL, House, raw_peer, until, watching
from worker_sdk import Client, Denied, Worker
from worker_sdk.messages import Enqueue, Heartbeat, Hello, NewJob, Ping, Wait

PATIENCE_S = 20.0


@pytest.fixture
def broker(house: House) -> Iterator[LocalBroker]:
    house.key("boss", "admin", channels=["*"])
    house.key("victim", *ALL)
    with house.broker() as broker:
        yield broker


@pytest.fixture
def boss(house: House, broker: LocalBroker) -> Iterator[Client]:
    with house.client(broker, "boss") as client:
        yield client


def revoke(house: House, broker: LocalBroker, name: str = "victim") -> None:
    keyring.revoke(house.policy, name)
    house.reload(broker)


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_live_connection_of_a_revoked_key_is_cut_off(house: House, transport: str) -> None:
    house.key("victim", *ALL)
    house.key("friend", *ALL)
    bind = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{house.folder}/b.sock"
    with (
        house.broker(bind=bind) as broker,
        raw_peer(broker.endpoint, house.keys("victim")) as victim,
        raw_peer(broker.endpoint, house.keys("friend")) as friend,
        watching(victim) as victims,
        watching(friend) as friends,
    ):
        for peer in (victim, friend):
            assert peer.ask(Ping())["op"] == "ok"
        revoke(house, broker)

        victims.wait_for(zmq.Event.DISCONNECTED, zmq.Event.HANDSHAKE_FAILED_AUTH)

        assert friend.ask(Ping())["op"] == "ok"
        assert zmq.Event.DISCONNECTED not in friends.seen()


def test_connection_of_a_revoked_key_that_was_never_heard_is_refused_all(
    house: House, broker: LocalBroker, boss: Client
) -> None:
    """It cannot be told from others before it speaks."""
    with (
        raw_peer(broker.endpoint, house.keys("victim"), connect=False) as victim,
        watching(victim) as victims,
    ):
        victim.socket.connect(broker.endpoint)
        victims.wait_for(zmq.Event.HANDSHAKE_SUCCEEDED)
        revoke(house, broker)

        job = NewJob(id="018f2b6e-0000-7000-8000-000000000001", type="add")
        answers = [victim.ask(Enqueue(jobs=(job,))), victim.ask(Ping())]

        assert [answer["code"] for answer in answers] == ["denied", "denied"]
        assert not boss.list()


def test_revoked_key_is_not_let_in_again(house: House, broker: LocalBroker) -> None:
    with house.client(broker, "victim") as client:
        client.ping()
    revoke(house, broker)

    with house.client(broker, "victim", timeout=30) as client:
        with pytest.raises(Denied, match="does not let in"):
            client.ping()


def test_jobs_of_a_revoked_worker_go_to_others_at_once(
    house: House, broker: LocalBroker, boss: Client
) -> None:
    """Long before it would be missed: the heartbeat limit is ten seconds."""
    with (
        house.session(broker, "victim", "add") as victim,
        house.session(broker, "boss", "add") as other,
    ):
        id = boss.enqueue("add", max_attempts=2)
        held = victim.dequeue(timeout=10)
        assert held is not None
        started = time.monotonic()
        revoke(house, broker)

        job = other.dequeue(timeout=10)

        assert job is not None
        assert (job.id, job.attempt) == (id, 2)
        assert time.monotonic() - started < 5
        with pytest.raises(Denied):
            held.finish(1)
        job.finish(2)
        assert boss.result(id) == 2


def test_revoked_worker_learns_it_and_ends(house: House, broker: LocalBroker, boss: Client) -> None:
    worker = Worker(
        broker.endpoint, key=house.folder / "victim.key", broker_key=house.broker_key, grace=0.1
    )
    worker.add("add", lambda job: job.args)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except Denied as denied:
            raised.append(denied)

    thread = threading.Thread(target=run)
    thread.start()
    assert boss.run("add", 1) == 1

    revoke(house, broker)
    thread.join(PATIENCE_S)

    assert raised


def test_answer_that_a_revoked_key_waits_for_is_withheld(
    house: House, broker: LocalBroker, boss: Client
) -> None:
    id = boss.enqueue("add", {"secret": 1})
    answers: list[Any] = []

    def wait() -> None:
        with house.client(broker, "victim") as client:
            try:
                answers.append(client.result(id, 10))
            except Denied as denied:
                answers.append(denied)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: boss.stats()["waits"])
    revoke(house, broker)
    with house.session(broker, "boss", "add") as session:
        job = session.dequeue(timeout=10)
        assert job is not None
        job.finish("secret")
    thread.join(PATIENCE_S)

    assert isinstance(answers[0], Denied)


def test_answer_about_a_job_that_is_hidden_by_now_is_that_it_does_not_exist(
    house: House, broker: LocalBroker, boss: Client
) -> None:
    id = str(boss.enqueue("add"))
    with raw_peer(broker.endpoint, house.keys("victim")) as victim:
        victim.send(Wait(ids=(id,), timeout=10))
        until(lambda: boss.stats()["waits"])
        text = house.policy.read_text()
        house.policy.write_text(text.replace('["default"]', '["side"]'))
        house.reload(broker)
        boss.cancel(id)

        answer = victim.read()

        assert answer["code"] == "not_exist"
        assert answer["message"] == f"job {id} does not exist"


def test_worker_whose_lanes_shrink_is_shut_out_and_may_come_back_with_what_is_left(
    house: House, broker: LocalBroker, boss: Client
) -> None:
    house.key("mover", "work", channels=["default", "side"])
    house.reload(broker)
    with raw_peer(broker.endpoint, house.keys("mover")) as peer:
        both = Hello(types=("add",), channels=("default", "side"))
        assert peer.ask(both)["op"] == "welcome"
        text = house.policy.read_text().replace('["default", "side"]', '["side"]')
        house.policy.write_text(text)
        house.reload(broker)
        until(lambda: not boss.stats()["workers"])

        assert peer.ask(Heartbeat())["code"] == "unsupported"
        assert peer.ask(both)["code"] == "denied"
        assert peer.ask(Hello(types=("add",), channels=("side",)))["op"] == "welcome"


def test_worker_that_is_not_concerned_keeps_its_jobs(
    house: House, broker: LocalBroker, boss: Client
) -> None:
    with house.session(broker, "boss", "add") as session:
        id = boss.enqueue("add", max_attempts=1)
        job = session.dequeue(timeout=10)
        assert job is not None
        revoke(house, broker)
        boss.ping()

        job.finish(1)

        assert boss.result(id) == 1


def test_wrong_policy_changes_nothing(house: House, broker: LocalBroker, boss: Client) -> None:
    house.policy.write_text("[keys.boss]\nroles = 1\n")

    with pytest.raises(ConfigError, match="boss"):
        house.reload(broker)

    assert boss.ping()


def test_sighup_cuts_off_a_revoked_key(house: House, tmp_path: Path) -> None:
    house.key("boss", "admin", channels=["*"])
    house.key("victim", *ALL)
    ready, log = tmp_path / "ready", tmp_path / "log"
    command = [sys.executable, "-m", "broker", "serve", "--store", "memory"]
    command += ["--bind", "tcp://127.0.0.1:*", "--ready-file", str(ready)]
    command += ["--key", str(tmp_path / "broker.key"), "--policy", str(house.policy)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stderr=stream)
    try:
        endpoint = until(lambda: ready.exists() and ready.read_text().strip())
        with raw_peer(endpoint, house.keys("victim")) as victim, watching(victim) as victims:
            assert victim.ask(Ping())["op"] == "ok"
            revoked = [sys.executable, "-m", "broker", "keys", "revoke", "victim"]
            subprocess.run([*revoked, "--policy", str(house.policy)], check=True, env=os.environ)
            assert any(grant.revoked for grant in load(house.policy).grants)
            process.send_signal(signal.SIGHUP)

            victims.wait_for(zmq.Event.DISCONNECTED, zmq.Event.HANDSHAKE_FAILED_AUTH)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
