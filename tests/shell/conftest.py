from collections.abc import Iterator

import pytest

from broker import LocalBroker
from tests.shell.command_line import Cli


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalBroker]:
    with LocalBroker() as local:
        monkeypatch.setenv("POINTSMAN_BROKER", local.endpoint)
        yield local
