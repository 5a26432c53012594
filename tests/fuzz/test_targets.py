"""A bounded number of cases of each target; ``python -m tests.fuzz`` goes on for millions."""

import contextlib
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.codec import Malformed, decode
from tests.fuzz import guided, targets
from tests.fuzz.targets import FuzzEngine

seeds = st.randoms(use_true_random=False)
few = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@few
@given(seeds)
def test_decoder_reads_or_refuses_any_frames(rng: Random) -> None:
    targets.fuzz_codec(rng)


@few
@given(st.lists(st.binary(max_size=40), min_size=2, max_size=16))
def test_decoder_reads_or_refuses_any_bytes(frames: list[bytes]) -> None:
    with contextlib.suppress(Malformed):
        decode(frames, targets.MESSAGE_LIMIT_BYTES)


@few
@given(seeds)
def test_sdk_reads_or_refuses_any_frames(rng: Random) -> None:
    targets.fuzz_sdk(rng)


@few
@given(seeds)
def test_configuration_is_taken_or_refused(tmp_path: Path, rng: Random) -> None:
    targets.fuzz_config(rng, tmp_path)


@few
@given(seeds)
def test_command_line_is_taken_or_refused(rng: Random) -> None:
    targets.fuzz_cli(rng)


@pytest.mark.parametrize("seed", range(8))
def test_engine_stays_whole_whatever_it_is_told(seed: int) -> None:
    rng = Random(seed)
    walk = FuzzEngine(seed)
    for _ in range(300):
        walk.turn(rng, rng.choice((0, 1, 1, 2, 5)))
        walk.check()
    assert walk.store.last_seq


def test_engine_on_a_file_stays_whole_whatever_it_is_told(tmp_path: Path) -> None:
    rng = Random(99)
    walk = FuzzEngine(99, store=f"sqlite:{tmp_path / 'jobs.db'}")
    for _ in range(300):
        walk.turn(rng, rng.choice((0, 1, 1, 2, 5)))
        walk.check()
    walk.store.close()


def test_generators_reach_both_sides_of_each_boundary() -> None:
    came = {targets.fuzz_codec(Random(seed)) for seed in range(400)}

    assert came == {"read", "invalid", "unsupported", "too_large"} - {"too_large"}


@pytest.mark.parametrize("target", guided.TARGETS)
@few
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_targets_of_the_guided_run_hold(target: str, data: bytes) -> None:
    guided.TARGETS[target](data)


def test_guided_run_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(SystemExit, match="which target"):
        guided.main([])
    with pytest.raises(SystemExit, match="pip install atheris"):
        guided.main(["codec"])
