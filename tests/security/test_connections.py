"""Who is let in: with real sockets, whatever the peer tries."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from broker import LocalBroker
from tests.security.keyed import ALL, House, raw_peer
from worker_sdk import AsyncClient, BrokerUnreachable, Client, Denied, Worker, WorkerSession
from worker_sdk.keys import Keys, new_pair
from worker_sdk.messages import Hello, Ping

SILENCE_MS = 300


@pytest.fixture(autouse=True)
def _friend(house: House) -> None:
    house.key("friend", *ALL)


@pytest.fixture
def guarded_by_friend(house: House, _friend: None) -> Iterator[LocalBroker]:
    with house.broker() as broker:
        yield broker


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_known_key_is_let_in(house: House, transport: str) -> None:
    bind = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{house.folder}/b.sock"
    with (
        house.broker(bind=bind) as broker,
        house.client(broker, "friend") as client,
        house.session(broker, "friend", "add") as session,
    ):
        id = client.enqueue("add", [1, 2])
        job = session.dequeue(timeout=10)
        assert job is not None
        job.finish(3)

        assert client.result(id, timeout=10) == 3


def test_keys_can_come_from_the_environment(
    house: House, guarded_by_friend: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POINTSMAN_KEY", str(house.folder / "friend.key"))
    monkeypatch.setenv("POINTSMAN_BROKER_KEY", str(house.broker_key))

    with Client(guarded_by_friend.endpoint) as client:
        assert client.ping()


def test_unknown_key_is_told_so_at_once(house: House, guarded_by_friend: LocalBroker) -> None:
    house.stranger("stranger")

    with house.client(guarded_by_friend, "stranger", timeout=30) as client:
        with pytest.raises(Denied, match="does not let in the key"):
            client.ping()


def test_key_that_becomes_known_is_let_in_by_the_same_client(house: House) -> None:
    house.stranger("late")
    with house.broker() as broker, house.client(broker, "late") as client:
        with pytest.raises(Denied):
            client.ping()
        house.permit("late", "read", channels=["default"])
        house.reload(broker)

        assert client.ping()


def test_unknown_key_is_told_so_asynchronously(
    house: House, guarded_by_friend: LocalBroker
) -> None:
    stranger = house.stranger("stranger")

    async def ping() -> None:
        async with AsyncClient(
            guarded_by_friend.endpoint, 30, key=stranger, broker_key=house.broker_key
        ) as client:
            for _ in range(2):
                with pytest.raises(Denied, match="does not let in the key"):
                    await client.ping()
            with pytest.raises(Denied):
                await client.enqueue("add")

    asyncio.run(ping())


def test_unknown_key_ends_a_worker(house: House, guarded_by_friend: LocalBroker) -> None:
    stranger = house.stranger("stranger")
    worker = Worker(guarded_by_friend.endpoint, key=stranger, broker_key=house.broker_key)
    worker.add("add", lambda job: None)

    with pytest.raises(Denied, match="does not let in the key"):
        worker.run()


def test_unknown_key_ends_a_session(house: House, guarded_by_friend: LocalBroker) -> None:
    house.stranger("stranger")

    with house.session(guarded_by_friend, "stranger", "add") as session:
        with pytest.raises(Denied, match="does not let in the key"):
            session.dequeue(timeout=10)


def test_peer_without_a_key_is_not_let_in(guarded_by_friend: LocalBroker) -> None:
    with Client(guarded_by_friend.endpoint, timeout=30) as client:
        with pytest.raises(Denied, match="none but keys that it knows"):
            client.ping()


def test_keys_are_never_left_out_for_a_broker_without_any(house: House) -> None:
    with LocalBroker() as broker, house.client(broker, "friend", timeout=30) as client:
        with pytest.raises(Denied, match="does not prove who it is"):
            client.ping()


def test_broker_with_another_key_is_not_spoken_to(house: House) -> None:
    (house.folder / "other").mkdir()
    other = House(house.folder / "other")
    other.key("friend", *ALL)
    with other.broker() as broker:
        with Client(
            broker.endpoint,
            timeout=1,
            key=other.folder / "friend.key",
            broker_key=house.broker_key,
        ) as client:
            with pytest.raises(BrokerUnreachable):
                client.ping()


def test_secret_of_another_public_key_is_no_way_in(
    house: House, guarded_by_friend: LocalBroker
) -> None:
    friend, thief = house.keys("friend"), new_pair("thief")
    forged = type(thief)("friend", friend.own.public, thief.secret)

    with raw_peer(guarded_by_friend.endpoint, Keys(forged, friend.broker)) as peer:
        peer.send(Ping())

        assert peer.read(SILENCE_MS) is None


@pytest.mark.parametrize("mechanism", ["NULL", "PLAIN"])
def test_downgrade_is_not_let_in(guarded_by_friend: LocalBroker, mechanism: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        if mechanism == "PLAIN":
            socket.plain_username = socket.plain_password = b"friend"
        socket.connect(guarded_by_friend.endpoint)
        socket.send_multipart([b"", b"PM1", b'{"op":"ping"}'])

        assert not socket.poll(SILENCE_MS)


def test_downgrade_by_a_client_that_calls_itself_a_curve_server_is_not_let_in(
    guarded_by_friend: LocalBroker,
) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.curve_server = True
        socket.curve_secretkey = new_pair("x").secret.encode()
        socket.connect(guarded_by_friend.endpoint)
        socket.send_multipart([b"", b"PM1", b'{"op":"ping"}'])

        assert not socket.poll(SILENCE_MS)


# ---- routing ids ------------------------------------------------------------------------------


def test_chosen_routing_id_is_denied(house: House, guarded_by_friend: LocalBroker) -> None:
    friend = house.keys("friend")
    with raw_peer(guarded_by_friend.endpoint, friend, routing_id=b"me") as peer:
        assert peer.ask(Ping())["code"] == "denied"
        assert peer.ask(Hello(types=("add",)))["code"] == "denied"


@pytest.mark.parametrize("has_keys", [True, False])
def test_routing_id_of_another_takes_nothing_over(house: House, has_keys: bool) -> None:
    """Without keys an id may be chosen, but not one that somebody has."""
    keys = house.keys("friend") if has_keys else None
    broker = house.broker() if has_keys else LocalBroker()
    with broker, raw_peer(broker.endpoint, keys, routing_id=b"worker") as first:
        answer = first.ask(Hello(types=("add",)))
        with raw_peer(broker.endpoint, keys, routing_id=b"worker") as second:
            second.send(Hello(types=("add",)))

            assert answer["op"] == ("error" if has_keys else "welcome")
            assert second.read(SILENCE_MS) is None
            assert first.ask(Ping())["op"] == "error"  # it is heard, and answered itself


def test_numbers_of_connections_begin_anywhere(tmp_path: Path) -> None:
    """They are what a hostile peer would have to guess; two brokers never begin with the same."""
    text = (
        "import zmq\n"
        "from broker.config import Config\n"
        "from broker.sockets import bind_router\n"
        "with zmq.Context() as context:\n"
        "    router, (end,) = bind_router(context, Config(bind=('tcp://127.0.0.1:*',)), None)\n"
        "    with context.socket(zmq.DEALER) as peer:\n"
        "        peer.connect(end)\n"
        "        peer.send(b'x')\n"
        "        print(router.recv_multipart()[0].hex())\n"
        "    router.close()\n"
    )
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    numbers = {
        subprocess.run(
            [sys.executable, "-c", text],
            capture_output=True,
            check=True,
            cwd=tmp_path,
            env=environment,
        ).stdout
        for _ in range(2)
    }

    assert len(numbers) == 2


# ---- what is asked for ------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["key", "broker_key"])
def test_half_of_the_keys_is_an_error(house: House, missing: str) -> None:
    key = None if missing == "key" else house.folder / "friend.key"
    broker_key = None if missing == "broker_key" else house.broker_key

    with pytest.raises(ValueError, match=f"{missing} is not"):
        Client(key=key, broker_key=broker_key)
    with pytest.raises(ValueError, match=f"{missing} is not"):
        AsyncClient(key=key, broker_key=broker_key)
    with pytest.raises(ValueError, match=f"{missing} is not"):
        WorkerSession(["add"], key=key, broker_key=broker_key)
