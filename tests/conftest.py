"""What all tests share: an environment without the settings of whoever runs them."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.startswith("POINTSMAN_")]:
        monkeypatch.delenv(name)
