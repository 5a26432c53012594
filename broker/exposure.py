"""What a broker may be exposed to: where it may listen without keys, and with which libzmq.

Without keys, whoever can connect can read, change and run everything. So without keys a broker
listens where only this machine, or only its own user, can reach it; anything else must be asked for
in so many words.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

import zmq

from broker.config import Config, ConfigError

OLDEST_LIBZMQ = (4, 3, 3)
"""Before it, a peer that has not even shown a key can overflow the stack (CVE-2019-13132, fixed in
4.3.2), overflow the heap (CVE-2021-20235) or keep everybody else from being served
(CVE-2020-15166, both fixed in 4.3.3)."""

_WAY_OUT = (
    "set key and policy so that only known keys can connect (docs/security.md), or, if whoever "
    "reaches it may do and read everything, --allow-unencrypted-network"
)


def check(config: Config) -> None:
    """Raise ConfigError if a broker must not start like this."""
    check_libzmq(zmq.zmq_version_info())
    if config.key and not config.policy:
        raise ConfigError("key is set and policy is not: the policy says whom the broker lets in")
    if config.policy and not config.key:
        raise ConfigError("policy is set and key is not: without keys nobody can be told apart")
    for endpoint in config.bind:
        if endpoint.startswith("ipc://"):
            _check_socket_path(endpoint)
        if not config.key and not config.allow_unencrypted_network and not is_private(endpoint):
            raise ConfigError(
                f"bind: {endpoint} may be reached from beyond this machine or by its other users, "
                f"and without keys nothing is encrypted and nobody refused: {_WAY_OUT}"
            )


def check_libzmq(version: tuple[int, int, int]) -> None:
    """Raise ConfigError if this version of libzmq must not be exposed to anybody."""
    if version < OLDEST_LIBZMQ:
        found, oldest = (".".join(map(str, each)) for each in (version, OLDEST_LIBZMQ))
        raise ConfigError(
            f"libzmq {found} has known holes that need no key to get through; the oldest that the "
            f"broker runs with is {oldest}: install a newer pyzmq"
        )


def is_private(endpoint: str) -> bool:
    """Whether nobody can connect to an endpoint but from this machine.

    Of tcp, these are loopback addresses in their usual form, and localhost. Other names (of
    interfaces too) can come to mean anything, and there is nothing that they are needed for.
    """
    if endpoint.startswith("ipc://"):
        # An abstract socket (Linux) has no file, so no mode: any user can connect.
        return not endpoint.startswith("ipc://@")
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _check_socket_path(endpoint: str) -> None:
    """Refuse what is no socket: libzmq removes whatever has the socket's name before it binds."""
    path = Path(endpoint.removeprefix("ipc://"))
    if path.exists() and not path.is_socket():
        raise ConfigError(f"bind: {path} is there already, and is no socket")
