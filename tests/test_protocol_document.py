"""docs/protocol.md against the code: its tables, its examples, its conversations."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from broker.config import Config, show
from broker.core.job import LEGAL, STATE_NAMES
from broker.core.limits import Limits
from tests.protocol_document import (
    DIRECTIONS,
    DOCUMENT,
    Block,
    Section,
    bounds,
    by_op,
    default,
    described,
    fields,
    is_type,
    read,
    skeleton,
    ways,
)
from tests.protocol_stage import Line, Stage, ask, lines, parse, strangers
from worker_sdk import errors, messages
from worker_sdk.agent import HELLO_RETRY_FIRST_S, HELLO_RETRY_LIMIT_S, PROGRESS_INTERVAL_S
from worker_sdk.delivery import BUSY_RETRY_S
from worker_sdk.exchange import ASSUMED_BYTES_PER_S, FIRST_BUSY_PAUSE_S, LONGEST_BUSY_PAUSE_S
from worker_sdk.job import INPUTS_PAGE_JOBS
from worker_sdk.messages import PROTOCOL, Message
from worker_sdk.requests import LONGEST_HOLD_S

ROOT = DOCUMENT.parents[1]
SECTIONS = read()
ABOUT = [(section, struct) for section in SECTIONS if (struct := described(section))]
EXAMPLES = [(block, struct) for section, struct in ABOUT for block in section.blocks("json")]
PLAYS = [
    block for each in SECTIONS for kind in ("dialogue", "frames") for block in each.blocks(kind)
]

SOME_ID = "0198c2f0-8a00-7000-8000-00000000000a"


def section(title: str) -> Section:
    (found,) = [each for each in SECTIONS if each.title == title]
    return found


def of_struct(pair: tuple[object, type[Struct]]) -> str:
    return pair[1].__name__


# ---- the tables ------------------------------------------------------------------------------


def test_every_struct_of_the_wire_has_its_section() -> None:
    structs = {
        each
        for each in vars(messages).values()
        if isinstance(each, type)
        and issubclass(each, Struct)
        and each.__module__ == messages.__name__
    }

    assert {struct for _, struct in ABOUT} == structs - {Message}
    assert len(ABOUT) == len(structs) - 1


@pytest.mark.parametrize("way", DIRECTIONS)
def test_every_message_is_described_with_its_direction(way: str) -> None:
    described_ones = {
        struct for section, struct in ABOUT if issubclass(struct, Message) and way in ways(section)
    }

    assert described_ones == set(by_op(way).values())


@pytest.mark.parametrize("pair", ABOUT, ids=of_struct)
def test_table_names_every_field_with_its_type_bounds_and_default(
    pair: tuple[Section, type[Struct]],
) -> None:
    section, struct = pair
    if not fields(struct):
        assert not list(section.tables())
        assert "no fields of its own" in " ".join(section.lines)
        return

    rows = section.table("field")

    right = f"by the struct:\n{skeleton(struct)}"
    assert [row["field"] for row in rows] == [each.name for each in fields(struct)], right
    for row, each in zip(rows, fields(struct), strict=True):
        assert is_type(row["type"], each.type), f"{each.name}: {row['type']}; {right}"
        assert row["bounds"] == bounds(each.type), f"{each.name}; {right}"
        assert row["default"] == default(each), f"{each.name}; {right}"


def test_states_are_those_of_the_broker() -> None:
    rows = section("States").table("state")

    ended = {"finished", "failed", "canceled"}
    assert [row["state"] for row in rows] == list(STATE_NAMES)
    assert {row["state"] for row in rows if row["ended"] == "yes"} == ended


def test_diagram_shows_the_legal_changes_of_state() -> None:
    (diagram,) = section("States").blocks("mermaid")

    shown = set(re.findall(r"^ +(\w+) --> (\w+) :", diagram.text, re.MULTILINE))

    assert shown == {
        (old.name.lower(), new.name.lower()) for old, news in LEGAL.items() for new in news
    }


def test_settings_are_named_with_their_defaults() -> None:
    rows = section("Bounds").table("setting")

    defaults = show(Config())
    assert {row["setting"]: row["default"] for row in rows} == {
        row["setting"]: defaults[row["setting"]] for row in rows
    }
    assert {each.name for each in dataclasses.fields(Limits)} <= {row["setting"] for row in rows}


def test_links_lead_somewhere() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")

    titles = [re.sub("[^a-z0-9 _-]", "", each.title.lower()) for each in SECTIONS]
    targets = {title.replace(" ", "-") for title in titles}
    missing = set(re.findall(r"\]\(#([^)]+)\)", text)) - targets

    assert not missing


# ---- error codes -----------------------------------------------------------------------------


def codes_sent(tree: ast.Module) -> Iterator[str]:
    """Give every error code that a module's calls of Refused and Error and the like can have."""
    tables = dict(tables_of(tree))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for call in ast.walk(function):
                if isinstance(call, ast.Call):
                    yield from codes_of(call, function, tables)


def tables_of(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """Give the module's dicts with texts as keys, by name."""
    for each in tree.body:
        if isinstance(each, ast.Assign) and isinstance(each.value, ast.Dict):
            keys = [str(key.value) for key in each.value.keys if isinstance(key, ast.Constant)]
            yield ast.unparse(each.targets[0]), keys


def codes_of(
    call: ast.Call, function: ast.FunctionDef, tables: dict[str, list[str]]
) -> Iterator[str]:
    name = str(getattr(call.func, "id", None) or getattr(call.func, "attr", ""))
    place = {"Refused": 0, "Error": 0, "_malformed": 1, "blame": 0}.get(name)
    if place is None:
        return
    code = call.args[place]
    if isinstance(code, ast.Constant):
        yield str(code.value)
    elif isinstance(code, ast.Name) and code.id not in {arg.arg for arg in function.args.args}:
        given = [
            node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == code.id
        ]
        for node in ast.walk(function) if not given else ():
            # Then it is a key of the table that the function looks into.
            if isinstance(node, ast.Name) and node.id in tables:
                yield from tables[node.id]
                return
        assert given, f"which code is {ast.unparse(call)}?"
        for value in given:
            branches = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            yield from (str(each.value) for each in branches if isinstance(each, ast.Constant))


def test_error_codes_are_those_that_the_broker_sends() -> None:
    rows = section("Error codes").table("code")

    reserved = {row["code"] for row in rows if row["cause"].startswith("Reserved:")}
    sent = {
        code
        for path in sorted((ROOT / "broker").rglob("*.py"))
        for code in codes_sent(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert sent
    assert {row["code"] for row in rows} == sent | reserved
    assert not sent & reserved


def test_error_codes_are_those_that_the_sdk_knows() -> None:
    rows = section("Error codes").table("code")

    known = {
        each.code
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.PointsmanError) and each.code
    }

    assert {row["code"] for row in rows} == known


# ---- the examples ----------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ABOUT, ids=of_struct)
def test_every_struct_has_an_example(pair: tuple[Section, type[Struct]]) -> None:
    section, _ = pair

    assert section.blocks("json")


@pytest.mark.parametrize("pair", EXAMPLES, ids=of_struct)
def test_example_is_what_it_claims_to_be(pair: tuple[Block, type[Struct]]) -> None:
    block, struct = pair

    parsed = msgspec.json.decode(block.text, type=struct)

    value = msgspec.json.decode(block.text)
    assert not strangers(value, parsed)
    if issubclass(struct, Message):
        assert value["op"] == struct.__struct_config__.tag


def test_every_block_of_json_is_an_example_of_something() -> None:
    blocks = [block for each in SECTIONS for block in each.blocks("json")]

    assert [block for block, _ in EXAMPLES] == blocks


# ---- the conversations -----------------------------------------------------------------------


@pytest.mark.parametrize("block", PLAYS, ids=lambda block: block.name)
def test_conversation_goes_as_written(block: Block, tmp_path: Path) -> None:
    with Stage(block.options, str(tmp_path)) as stage:
        stage.play(block)


def test_conversations_show_every_message() -> None:
    spoken = [line for block in PLAYS for line in lines(block) if isinstance(line, Line)]

    shown = set()
    for line in spoken:
        with contextlib.suppress(msgspec.MsgspecError):  # one that is to be refused
            shown.add(type(parse(line.frames[-1], line.way)))

    assert {each for way in DIRECTIONS for each in by_op(way).values()} == shown


PING = 'C -> B: {"op":"ping","req":1}\n'
PONG = 'B -> C: {"op":"ok","req":1,"version":"9","message_limit":16777216}\n'


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PING + PONG.replace("16777216", "16777217"), id="other value"),
        pytest.param(PING + PONG.replace('"req":1', '"req":2'), id="other req"),
        pytest.param(PING + PONG.replace('"version":"9",', ""), id="field missing"),
        pytest.param(PING + PONG.replace('"op"', '"colour":1,"op"'), id="answer's unknown field"),
        pytest.param(PING.replace('"op"', '"colour":1,"op"') + PONG, id="unknown field"),
        pytest.param(PING + PONG + PING, id="answer missing"),
        pytest.param(PING + PONG + PONG, id="answer too many"),
        pytest.param(PING + PONG.replace('"ok"', '"heartbeat"'), id="other op"),
        pytest.param(PING + PONG + "(B sleeps)", id="unknown event"),
    ],
)
def test_conversation_that_goes_otherwise_is_noticed(text: str, tmp_path: Path) -> None:
    block = Block("dialogue", {}, text.strip(), 1, "made up")

    with Stage({}, str(tmp_path), patience_s=0.2) as stage:
        with pytest.raises((AssertionError, msgspec.ValidationError)):
            stage.play(block)


def test_conversation_that_goes_as_written_is_none_of_those(tmp_path: Path) -> None:
    with Stage({}, str(tmp_path)) as stage:
        stage.play(Block("dialogue", {}, PING + PONG.strip(), 1, "made up"))


# ---- what the text says of the SDK ------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Timers", f"after {FIRST_BUSY_PAUSE_S:g} s, doubled each time"),
        ("Timers", f"each time up to {LONGEST_BUSY_PAUSE_S:g} s, each pause"),
        ("Timers", f"| of {LONGEST_HOLD_S:g} s |"),
        ("Timers", f"({2**20 / ASSUMED_BYTES_PER_S:g} s a MiB)"),
        ("Timers", f"after {HELLO_RETRY_FIRST_S:g} s, doubled up to {HELLO_RETRY_LIMIT_S:g} s"),
        ("Timers", f"send it again | after {BUSY_RETRY_S:g} s |"),
        ("`wait`: client to broker", f"ask for {LONGEST_HOLD_S:g} s at a time"),
        ("`progress`: worker to broker", f"some {1 / PROGRESS_INTERVAL_S:g} times a second"),
        ("`inputs`: worker to broker", f"Up to {INPUTS_PAGE_JOBS:,} at a time"),
    ],
)
def test_recommended_is_what_the_sdk_does(title: str, words: str) -> None:
    text = " ".join(" ".join(section(title).lines).split())

    assert words in text


# ---- what the text says of bounds ------------------------------------------------------------


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage({"max_message": "4096"}, str(tmp_path)) as stage:
        yield stage


def frames(content: str, envelope: int = 0) -> list[bytes]:
    return [*[b"x"] * envelope, b"", PROTOCOL, content.encode()]


def test_message_of_15_frames_is_answered_and_one_of_16_dropped(stage: Stage) -> None:
    stage.peer("C").send_multipart(frames('{"op":"ping","req":1}', envelope=13))

    answer = ask(stage, "C", frames('{"op":"ping","req":2}', envelope=12))

    assert answer["req"] == 2


def test_too_large_a_message_is_refused_without_req(stage: Stage) -> None:
    text = f'{{"op":"ping","req":1,"padding":"{"x" * 4096}"}}'

    answer = ask(stage, "C", frames(text))

    assert answer["code"] == "too_large"
    assert "req" not in answer


def test_too_large_an_answer_is_refused_with_req(stage: Stage) -> None:
    job = f'{{"id":"{SOME_ID}","type":"add","args":"{"x" * 3000}"}}'
    ask(stage, "C", frames(f'{{"op":"enqueue","jobs":[{job}]}}'))
    thrice = ",".join([f'"{SOME_ID}"'] * 3)

    answer = ask(stage, "C", frames(f'{{"op":"status","req":1,"ids":[{thrice}],"args":true}}'))

    assert (answer["code"], answer["req"]) == ("too_large", 1)


@pytest.mark.parametrize(("levels", "op"), [(500, "ok"), (2000, "error")])
def test_500_levels_of_nesting_are_safe(stage: Stage, levels: int, op: str) -> None:
    inner = levels - 3  # the message, its jobs, the job
    args = "[" * inner + "]" * inner
    job = f'{{"id":"{SOME_ID}","type":"add","args":{args}}}'

    first = ask(stage, "C", frames(f'{{"op":"enqueue","jobs":[{job}]}}'))
    # Compared with the first, as the bytes differ.
    again = ask(stage, "C", frames(f'{{"op":"enqueue","jobs":[{job.replace("]", " ]", 1)}]}}'))

    assert (first["op"], again["op"]) == (op, op)


@pytest.mark.parametrize(("channels", "op"), [(10, "welcome"), (11, "error")])
def test_worker_takes_jobs_from_1000_pairs_of_type_and_channel(
    tmp_path: Path, channels: int, op: str
) -> None:
    hello = {
        "op": "hello",
        "types": [f"type {n}" for n in range(100)],
        "channels": [f"channel {n}" for n in range(channels)],
    }

    with Stage({}, str(tmp_path)) as stage:
        answer = ask(stage, "W", frames(msgspec.json.encode(hello).decode()))

    assert answer["op"] == op


@pytest.mark.parametrize(
    ("args", "op"),
    [('{"a": 1, "b": 2}', "ok"), ('{"b":2,"a":1}', "ok"), ('{"a":1.0,"b":2}', "error")],
)
def test_args_are_compared_as_json(stage: Stage, args: str, op: str) -> None:
    def enqueue(args: str) -> str:
        return f'{{"op":"enqueue","jobs":[{{"id":"{SOME_ID}","type":"add","args":{args}}}]}}'

    ask(stage, "C", frames(enqueue('{"a":1,"b":2}')))

    answer = ask(stage, "C", frames(enqueue(args)))

    assert answer["op"] == op


def test_error_of_a_failure_is_cut_at_65536_characters(tmp_path: Path) -> None:
    with Stage({}, str(tmp_path)) as stage:
        ask(stage, "C", frames(f'{{"op":"enqueue","jobs":[{{"id":"{SOME_ID}","type":"add"}}]}}'))
        ask(stage, "W", frames('{"op":"hello","types":["add"]}'))
        stage.hear("W")
        failure = f'{{"id":"{SOME_ID}","attempt":1,"error":"{"é" * 70_000}","retry":false}}'
        ask(stage, "W", frames(f'{{"op":"fail","req":1,"jobs":[{failure}]}}'))

        answer = ask(stage, "C", frames(f'{{"op":"status","ids":["{SOME_ID}"]}}'))

    assert answer["jobs"][0]["error"] == "é" * 65_536


@pytest.mark.parametrize(
    "text",
    [
        '{"op":"ping","x":NaN}',
        '{"op":"ping","x":"\\ud800 alone"}',
        '\ufeff{"op":"ping"}',
        '{"op":"ping","op":"stats"}',
        '{"op":"list","limit":10.0}',
        '{"op":"list","roots":null}',
        '{"op":"ping"} {"op":"ping"}',
        '["ping"]',
    ],
)
def test_breach_of_a_rule_of_json_is_invalid(stage: Stage, text: str) -> None:
    answer = ask(stage, "C", frames(text))

    assert answer["code"] == "invalid"


@pytest.mark.parametrize(
    "args",
    ['"\\u0000"', '{"b":1,"a":2,"b":3}', "1.0", "-0", "123456789012345678901234567890", "[ 1 ]"],
)
def test_args_come_back_byte_for_byte(stage: Stage, args: str) -> None:
    job = f'{{"id":"{SOME_ID}","type":"add","args":{args}}}'
    ask(stage, "C", frames(f'{{"op":"enqueue","jobs":[{job}]}}'))

    stage.peer("C").send_multipart(frames(f'{{"op":"status","ids":["{SOME_ID}"],"args":true}}'))

    assert f'"args":{args}'.encode() in stage.hear("C")[-1]
