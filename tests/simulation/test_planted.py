"""The net catches fish: each fault that is planted on purpose makes some run fail."""

import pytest

from tests.simulation.planted import PLANTED, Planted, catch


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name.replace(" ", "_"))
def test_planted_fault_is_caught(planted: Planted) -> None:
    report = catch(planted)

    assert report is not None, f"{planted.name}: not seen"
