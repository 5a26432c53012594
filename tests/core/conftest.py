"""Fixtures for tests of the state machine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.store import Store, open_store
from tests.core.box import Box


@pytest.fixture
def box() -> Box:
    """A broker with a store in memory."""
    return Box()


@pytest.fixture
def open_kept(tmp_path: Path) -> Callable[[], Store]:
    """Opens the same store in a file, again and again."""
    return lambda: open_store(f"sqlite:{tmp_path / 'box.db'}")


@pytest.fixture
def lasting(open_kept: Callable[[], Store]) -> Iterator[Box]:
    """A broker with a store in a file: one that can be restarted."""
    box = Box(open_kept())
    box.reopen = open_kept
    yield box
    box.store.close()
