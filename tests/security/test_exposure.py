"""Where a broker may listen without keys, who may open its ipc sockets, and with which libzmq."""

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import zmq

from broker import LocalBroker, exposure
from broker.config import Config, ConfigError
from tests.security.keyed import House
from worker_sdk import Client

BEYOND = [
    "tcp://*:*",
    "tcp://0.0.0.0:*",
    "tcp://[::]:*",
    "tcp://[::%lo]:*",
    "tcp://0:*",
    "tcp://eth0:*",
    "tcp://lo:*",
    "tcp://192.0.2.1:*",
    "tcp://10.0.0.1:*",
    "tcp://[fe80::1]:*",
    "tcp://[::ffff:192.0.2.1]:*",
    "tcp://host.example:*",
    "tcp://127.0.0.1.example:*",
    "ipc://@abstract",
]
WITHIN = [
    "tcp://127.0.0.1:*",
    "tcp://127.1.2.3:*",
    "tcp://[::1]:*",
    "tcp://[::ffff:127.0.0.1]:*",
    "tcp://localhost:*",
    "ipc:///run/pointsman.sock",
]


@pytest.mark.parametrize("endpoint", BEYOND)
def test_endpoint_beyond_this_machine_is_refused_without_keys(endpoint: str) -> None:
    config = Config(store="memory", bind=("tcp://127.0.0.1:*", endpoint))

    with pytest.raises(ConfigError, match="--allow-unencrypted-network") as error:
        exposure.check(config)

    assert endpoint in str(error.value)


@pytest.mark.parametrize("endpoint", BEYOND)
def test_endpoint_beyond_this_machine_is_let_be_if_asked_for(endpoint: str) -> None:
    exposure.check(Config(bind=(endpoint,), allow_unencrypted_network=True))


@pytest.mark.parametrize("endpoint", BEYOND)
def test_endpoint_beyond_this_machine_is_let_be_with_keys(endpoint: str) -> None:
    exposure.check(Config(bind=(endpoint,), key="k", policy="p"))


@pytest.mark.parametrize("endpoint", WITHIN)
def test_endpoint_within_this_machine_needs_no_keys(endpoint: str) -> None:
    exposure.check(Config(bind=(endpoint,)))


def test_broker_that_must_not_start_binds_nothing_and_makes_no_store(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "broker", "serve", "--bind", "tcp://0.0.0.0:*"]
    root = str(Path(__file__).parent.parent.parent)
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert "--allow-unencrypted-network" in done.stderr
    assert not list(tmp_path.iterdir())


def test_flag_lets_a_broker_be_reached() -> None:
    with LocalBroker(bind="tcp://0.0.0.0:*", allow_unencrypted_network=True) as broker:
        port = broker.endpoint.rpartition(":")[2]
        with Client(f"tcp://127.0.0.1:{port}") as client:
            assert client.ping()


@pytest.mark.parametrize("given", ["key", "policy"])
def test_key_and_policy_go_together(given: str) -> None:
    with pytest.raises(ConfigError, match=f"{given} is set"):
        LocalBroker(**{given: "x"}).start()


def test_wrong_key_file_is_named(house: House) -> None:
    (house.folder / "broker.key").chmod(0o640)

    with pytest.raises(ConfigError, match=r"broker\.key.*0640"):
        house.broker().start()


# ---- ipc --------------------------------------------------------------------------------------


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", ["0600", "0660", "0666"])
def test_ipc_socket_has_the_mode_that_was_asked_for(tmp_path: Path, mode: str) -> None:
    with LocalBroker(bind=f"ipc://{tmp_path}/b.sock", ipc_mode=mode) as broker:
        assert mode_of(tmp_path / "b.sock") == int(mode, 8)
        with Client(broker.endpoint) as client:
            assert client.ping()


def test_ipc_socket_is_private_by_default_from_its_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.sock"
    seen: list[int] = []
    bind = zmq.Socket.bind

    def watched(self: "zmq.Socket[bytes]", endpoint: str) -> object:
        bound = bind(self, endpoint)
        if endpoint.startswith("ipc://"):
            seen.append(mode_of(path))
        return bound

    monkeypatch.setattr(zmq.Socket, "bind", watched)
    before = os.umask(0)
    try:
        with LocalBroker(bind=f"ipc://{path}"):
            assert mode_of(path) == 0o600
            assert os.umask(0) == 0
    finally:
        os.umask(before)

    assert seen == [0o600]


def test_ipc_endpoint_in_use_is_not_taken_over(tmp_path: Path) -> None:
    bind = f"ipc://{tmp_path}/b.sock"
    with LocalBroker(bind=bind) as first:
        with pytest.raises(zmq.ZMQError, match="in use"):
            LocalBroker(bind=bind).start()

        with Client(first.endpoint) as client:
            assert client.ping()


def test_socket_that_a_dead_broker_left_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "b.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    with LocalBroker(bind=f"ipc://{path}") as broker, Client(broker.endpoint) as client:
        assert client.ping()


def test_file_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "b.sock"
    path.write_text("precious")

    with pytest.raises(ConfigError, match="is no socket"):
        LocalBroker(bind=f"ipc://{path}").start()

    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    "mode", ["0400", "0000", "66", "07777", "rw", "0o8", 0o1600, -1, 1.5, True]
)
def test_mode_that_makes_no_sense_is_refused(mode: object) -> None:
    with pytest.raises(ConfigError, match="ipc_mode"):
        Config(ipc_mode=mode)  # type: ignore[arg-type]


# ---- libzmq -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [(2, 2, 0), (4, 1, 7), (4, 2, 5), (4, 3, 2)])
def test_libzmq_with_known_holes_is_refused(version: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"4\.3\.3"):
        exposure.check_libzmq(version)


@pytest.mark.parametrize("version", [(4, 3, 3), (4, 3, 5), (4, 4, 0), (5, 0, 0)])
def test_libzmq_without_them_is_taken(version: tuple[int, int, int]) -> None:
    exposure.check_libzmq(version)


def test_libzmq_is_checked_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 2))

    with pytest.raises(ConfigError, match="libzmq"):
        LocalBroker().start()
    assert "pointsman-broker" not in {thread.name for thread in threading.enumerate()}


def test_libzmq_without_curve_is_refused_for_keys(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.key("friend")
    with house.broker() as broker:
        monkeypatch.setattr(zmq, "has", lambda name: False)
        with pytest.raises(ValueError, match="without CURVE"):
            house.client(broker, "friend")
    with pytest.raises(ConfigError, match="without CURVE"):
        house.broker().start()
