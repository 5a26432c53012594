"""The kinds of values that settings have: how each is read, checked and shown.

A kind turns what a file, a variable or a flag gave into the value that the broker works with, or
raises ValueError; ``right`` says in words what it takes.
"""

import math
import re
from typing import Protocol

SECONDS_IN = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
BYTES_IN = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}
LONGEST_IPC_PATH_BYTES = 107
"""The system's bound for the path of a Unix socket on Linux (sun_path, with its closing zero)."""

_LARGEST = 10**30
"""Beyond any setting; below it, numbers can be computed with."""

_NUMBER_WITH_UNIT = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
_TCP = re.compile(r"tcp://(?:\[[0-9A-Fa-f:.%\w]+\]|[^\s\[\]:/;]+):(\*|[0-9]{1,5})", re.ASCII)


class Kind(Protocol):
    """What all kinds of values have."""

    @property
    def right(self) -> str:
        """What this kind takes, in words that follow "must be"."""
        ...

    def parse(self, value: object) -> object:
        """The value to work with; raises ValueError if it is none of this kind."""
        ...

    def show(self, value: object) -> str:
        """The value as a person would write it."""
        ...


class Duration:
    """A length of time, in seconds."""

    def __init__(self, least: float, most: float) -> None:
        self.least = least
        self.most = most

    @property
    def right(self) -> str:
        """What this kind takes."""
        return (
            f"a time from {_short_seconds(self.least)} to {_short_seconds(self.most)}: "
            "seconds, or a number with ms, s, m, h or d"
        )

    def parse(self, value: object) -> float:
        """Seconds from a number or from text like ``1.5``, ``10s``, ``5m``."""
        number, unit = _number_and_unit(value)
        if unit not in ("", *SECONDS_IN):
            raise ValueError(f"there is no unit {unit}")
        seconds = number * SECONDS_IN[unit or "s"]
        _check_range(seconds, self.least, self.most)
        return seconds + 0.0  # -0.0 would be shown as -0s, which is no time

    def show(self, value: object) -> str:
        """The time in the largest unit that it is a whole number of."""
        return _short_seconds(self.parse(value))


class Size:
    """An amount of data, in bytes."""

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most

    @property
    def right(self) -> str:
        """What this kind takes."""
        return (
            f"a size from {_short_bytes(self.least)} to {_short_bytes(self.most)}: "
            "bytes, or a number with KiB, MiB, GiB (or kB, MB, GB)"
        )

    def parse(self, value: object) -> int:
        """Bytes from a number or from text like ``4096``, ``16MiB``, ``1.5 GB``."""
        number, unit = _number_and_unit(value)
        if unit.lower() not in ("", *BYTES_IN):
            raise ValueError(f"there is no unit {unit}")
        size_bytes = number * BYTES_IN[unit.lower() or "b"]
        if size_bytes != int(size_bytes):
            raise ValueError("not a whole number of bytes")
        _check_range(size_bytes, self.least, self.most)
        return int(size_bytes)

    def show(self, value: object) -> str:
        """The size in the largest unit that it is a whole number of."""
        return _short_bytes(self.parse(value))


class Count:
    """A whole number of things."""

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most

    @property
    def right(self) -> str:
        """What this kind takes."""
        return f"a whole number from {self.least:_} to {self.most:_}"

    def parse(self, value: object) -> int:
        """The number, from itself or its digits."""
        number, unit = _number_and_unit(value)
        if unit or number != int(number):
            raise ValueError("not a whole number")
        _check_range(number, self.least, self.most)
        return int(number)

    def show(self, value: object) -> str:
        """The number in groups of three digits."""
        return f"{self.parse(value):_}"


class Choice:
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    @property
    def right(self) -> str:
        """What this kind takes."""
        return ", ".join(self.words[:-1]) + " or " + self.words[-1]

    def parse(self, value: object) -> str:
        """The word in lower case."""
        if not isinstance(value, str) or value.lower() not in self.words:
            raise ValueError
        return value.lower()

    def show(self, value: object) -> str:
        """The word."""
        return self.parse(value)


class Switch:
    """Yes or no."""

    right = "yes or no"

    def parse(self, value: object) -> bool:
        """Whether it is on."""
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("yes", "no", "true", "false", "on", "off"):
            return value.lower() in ("yes", "true", "on")
        raise ValueError

    def show(self, value: object) -> str:
        """Yes or no."""
        return "yes" if self.parse(value) else "no"


class FilePath:
    """The path of a file, or none."""

    right = "the path of a file, or none"

    def parse(self, value: object) -> str:
        """The path as it was given; empty for none."""
        if not isinstance(value, str):
            raise ValueError("not text")
        if "\0" in value:
            raise ValueError("a path has no zero character")
        return "" if value == "none" else value

    def show(self, value: object) -> str:
        """The path, or none."""
        return self.parse(value) or "none"


class FileMode:
    """Who may read and write a file, in octal digits."""

    right = "a file mode in octal digits, like 0600, that lets its owner read and write"

    def parse(self, value: object) -> int:
        """The mode as a number."""
        mode = value
        if isinstance(value, str):
            if re.fullmatch("(0o?)?[0-7]{3}", value) is None:
                raise ValueError("not three octal digits")
            mode = int(value.removeprefix("0o"), 8)
        if isinstance(mode, bool) or not isinstance(mode, int):
            raise ValueError("not text")
        if mode & 0o600 != 0o600 or mode & ~0o777:
            raise ValueError(f"that is the mode {mode:o}" if mode >= 0 else "negative")
        return mode

    def show(self, value: object) -> str:
        """The mode in four octal digits."""
        return f"{self.parse(value):04o}"


class StoreUrl:
    """The name of a store."""

    right = "memory or sqlite:PATH"

    def parse(self, value: object) -> str:
        """The name as it was given."""
        if not isinstance(value, str):
            raise ValueError("not text")
        scheme, colon, path = value.partition(":")
        if value != "memory" and not (scheme == "sqlite" and colon and path):
            raise ValueError
        if "\0" in path:
            raise ValueError("a path has no zero character")
        if path == ":memory:":
            raise ValueError("jobs that need no file are kept by the store memory")
        return value

    def show(self, value: object) -> str:
        """The name."""
        return self.parse(value)


class Endpoints:
    """One or more ZeroMQ endpoints to listen on."""

    right = "endpoints like tcp://127.0.0.1:5570 or ipc:///run/pointsman.sock, with a comma between"

    def parse(self, value: object) -> tuple[str, ...]:
        """The endpoints, each once, from a list or from text with commas."""
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ValueError("neither a list nor text")
        endpoints = tuple(_endpoint(part) for part in parts)
        if not endpoints:
            raise ValueError("no endpoint")
        if len(set(endpoints)) < len(endpoints) and not any("*" in each for each in endpoints):
            raise ValueError("an endpoint stands there twice")
        return endpoints

    def show(self, value: object) -> str:
        """The endpoints with commas between."""
        return ",".join(self.parse(value))


def _endpoint(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    text = value.strip()
    if text.startswith("ipc://"):
        path = text.removeprefix("ipc://")
        if not path or "\0" in path:
            raise ValueError(f"{text!r} names no path")
        if len(os_path := path.encode(errors="surrogateescape")) > LONGEST_IPC_PATH_BYTES:
            raise ValueError(
                f"the path in {text!r} has {len(os_path)} bytes, "
                f"and a socket's path at most {LONGEST_IPC_PATH_BYTES}"
            )
        return text
    match = _TCP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is neither tcp://HOST:PORT nor ipc://PATH")
    if match[1] != "*" and int(match[1]) > 65_535:
        raise ValueError(f"the port in {text!r} is over 65535")
    return text


def _number_and_unit(value: object) -> tuple[float | int, str]:
    """The number and the unit (often empty) in ``value``; whole numbers stay exact."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    if isinstance(value, int | float):
        # Compared, not converted: an int may be too large for math.isfinite.
        if not -math.inf < value < math.inf:
            raise ValueError("not a finite number")
        if abs(value) > _LARGEST:
            raise ValueError("too large")
        return value, ""
    if not isinstance(value, str):
        raise ValueError("not a number")
    match = _NUMBER_WITH_UNIT.fullmatch(value.strip())
    if match is None or len(match[1]) > 30:
        raise ValueError("not a number")
    try:
        return (float(match[1]) if "." in match[1] else int(match[1])), match[2]
    except ValueError:
        raise ValueError("not a number") from None


def _check_range(value: float, least: float, most: float) -> None:
    if value < least:
        raise ValueError("too small")
    if value > most:
        raise ValueError("too large")


def _short_seconds(seconds: float) -> str:
    for unit in ("d", "h", "m", "s", "ms"):
        number = seconds / SECONDS_IN[unit]
        if seconds and number >= 1 and number == int(number):
            return f"{int(number)}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def _short_bytes(size_bytes: int) -> str:
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = BYTES_IN[unit.lower()]
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}B"
