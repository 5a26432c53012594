from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import LocalBroker
from tests.security.keyed import House


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def guarded(house: House) -> Iterator[LocalBroker]:
    """A broker with keys; its policy is empty until a test writes and reloads it."""
    with house.broker() as broker:
        yield broker
