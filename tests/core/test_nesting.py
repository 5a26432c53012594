"""How deep JSON is nested is told exactly, whatever is in it."""

import random
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from broker.core.nesting import LEVELS_MOST, is_too_deep
from tests.core.box import Box, Denied
from worker_sdk.messages import Finish, Outcome, Progress, Step


def nested(levels: int, opening: str = "[", closing: str = "]", middle: str = "") -> bytes:
    return (opening * levels + middle + closing * levels).encode()


def depth_of(text: str) -> int:
    """The same by the simplest means: a look at every character."""
    depth = deepest = at = 0
    in_string = False
    while at < len(text):
        char = text[at]
        if in_string:
            if char == "\\":
                at += 1
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
        at += 1
    return deepest


@pytest.mark.parametrize(
    ("opening", "closing", "middle"),
    [
        ("[", "]", ""),
        ("[1, ", ", [2, [3]]]", "null"),
        ('{"a":', "}", "1"),
        ('[{"]]]": ["}}", ', ', "[[["]}]', '"\\\\"'),
        ('["\\"[[[", ', ',"\\\\"]', '"]"'),
        ('["\\\\\\"{", ', ',"", "" , [] ]', "{}"),
        ('[[],[[]],"[", ', ",[],{}]", "0"),
    ],
)
def test_limit_is_exact(opening: str, closing: str, middle: str) -> None:
    own = depth_of(opening + closing)
    pure = LEVELS_MOST // own - 2
    for levels in range(pure, pure + 6):
        text = nested(levels, opening, closing, middle)
        msgspec.json.decode(text)
        assert is_too_deep(text) == (depth_of(text.decode()) > LEVELS_MOST)


def test_what_is_wide_is_not_deep() -> None:
    assert not is_too_deep(b"[" + b",".join([nested(LEVELS_MOST - 1)] * 50) + b"]")
    assert is_too_deep(b"[" + b",".join([nested(3)] * 5000 + [nested(LEVELS_MOST)]) + b"]")


def test_brackets_in_strings_do_not_count() -> None:
    assert not is_too_deep(msgspec.json.encode(["[" * 5000, "{" * 5000, '"[' * 5000, "\\[" * 5000]))
    assert is_too_deep(b'["' + b"]" * 5000 + b'",' + nested(LEVELS_MOST) + b"]")


@pytest.mark.parametrize("seed", range(20))
def test_random_json_is_measured_as_by_a_look_at_every_character(seed: int) -> None:
    dice = random.Random(seed)
    strings = ["", "a", "[", "]]", '"', "\\", '\\"[', "{}", '"]', "\\\\", "\u00e9["]
    value: Any = None
    for _ in range(LEVELS_MOST + dice.randint(-3, 2)):
        beside: list[Any] = [
            dice.choice([1, None, dice.choice(strings), [[]], {}]) for _ in range(3)
        ]
        if dice.random() < 0.5:
            beside.insert(dice.randrange(4), value)
            value = beside
        else:
            value = {"before": beside, dice.choice(strings) + "deep": value}
    text = msgspec.json.encode(value)

    assert is_too_deep(text) == (depth_of(text.decode()) > LEVELS_MOST)


# ---- where it is asked ---------------------------------------------------------------------------

DEEP = Raw(nested(LEVELS_MOST + 1))
DEEPEST = Raw(nested(LEVELS_MOST))


def test_args_that_are_too_deep_are_invalid_and_named(box: Box) -> None:
    fine, wrong = box.spec(), box.spec()
    fine.args, wrong.args = DEEPEST, DEEP

    with pytest.raises(Denied, match=r"invalid: args nested deeper than 500 levels: ") as denied:
        box.enqueue_all(fine, wrong)

    assert denied.value.ids == [wrong.id]
    assert not box.exists(fine.id)
    box.enqueue_all(fine)
    assert bytes(box.worker().held[fine.id].args) == nested(LEVELS_MOST)


def test_result_that_is_too_deep_is_invalid_and_the_others_are_accepted(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(3)]
    worker = box.worker(credit=3)
    outcomes = [Outcome(id, 1, raw) for id, raw in zip(jobs, (DEEPEST, DEEP, DEEPEST), strict=True)]

    with pytest.raises(Denied, match=r"invalid: .*nested deeper than 500 levels") as denied:
        worker.tell(Finish(tuple(outcomes)))

    assert denied.value.ids == [jobs[1]]
    assert box.states_of(*jobs) == ["finished", "running", "finished"]


def test_progress_that_is_too_deep_is_invalid(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker()

    with pytest.raises(Denied, match=r"invalid: .*nested deeper than 500 levels") as denied:
        worker.tell(Progress((Step(job, 1, DEEP),)))

    assert denied.value.ids == [job]
