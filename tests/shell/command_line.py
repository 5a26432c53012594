"""The command line as the tests of this folder use it."""

import json
from typing import Any

import pytest

from broker.cli import run

NOBODY = "tcp://127.0.0.1:1"
"""An endpoint at which no broker is."""


class Cli:
    """Runs command lines in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What the command writes to stdout; it must leave with ``code``."""
        out, err, left_with = self.all(*arguments)
        assert left_with == code, (arguments, out, err)
        if code == 0:
            assert err == ""
        return out

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The one JSON object that the command writes."""
        (line,) = self(*arguments, "--json", code=code).splitlines()
        return json.loads(line)

    def error(self, *arguments: str, code: int) -> str:
        """The one line that the command writes to stderr, nothing being on stdout."""
        out, err, left_with = self.all(*arguments)
        assert left_with == code, (arguments, out, err)
        assert out == ""
        (line,) = err.splitlines()
        return line

    def all(self, *arguments: str) -> tuple[str, str, int]:
        self._capture.readouterr()
        code = run(arguments)
        captured = self._capture.readouterr()
        return captured.out, captured.err, code
