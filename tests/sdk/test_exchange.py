from typing import Any

import msgspec
import pytest

from worker_sdk.errors import (
    BrokerBusy,
    BrokerUnreachable,
    JobNotExist,
    PointsmanError,
    ProtocolError,
)
from worker_sdk.exchange import Call, Exchange
from worker_sdk.messages import Ok, Ping, Wait

TIMEOUT_S = 10.0


class Wire:
    """An Exchange with a clock, and what it sent."""

    def __init__(self, **options: Any) -> None:
        self.exchange = Exchange("tcp://broker", TIMEOUT_S, jitter=lambda: 0.5, **options)
        self.now = 1000.0
        self.sent: list[int] = []

    def start(self, hold_s: float = 0.0) -> Call:
        message = Wait(ids=(), timeout=hold_s) if hold_s else Ping()
        call = self.exchange.start(message, self.now, hold_s=hold_s)
        self.flush()
        return call

    def flush(self) -> None:
        while (call := self.exchange.next_to_send()) is not None:
            self.sent.append(call.req)
            self.exchange.sent(call, self.now)

    def answer(self, **fields: Any) -> Call | None:
        return self.deliver({"op": "ok", **fields})

    def refuse(self, code: str, **fields: Any) -> Call | None:
        return self.deliver({"op": "error", "code": code, "message": "no", **fields})

    def deliver(self, message: Any) -> Call | None:
        settled = self.exchange.receive([b"", b"PM1", msgspec.json.encode(message)], self.now)
        self.flush()
        return settled

    def advance(self, by_s: float) -> list[Call]:
        """Let time pass, with a tick whenever one is due."""
        end, given_up = self.now + by_s, []
        while (due := self.exchange.next_due()) is not None and due <= end:
            self.now = max(self.now, due)
            given_up += self.exchange.tick(self.now)
            self.flush()
        self.now = end
        return given_up


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_answer_settles_its_own_call(wire: Wire) -> None:
    first, second = wire.start(), wire.start()

    assert wire.answer(req=second.req, version="2") is second
    assert wire.answer(req=first.req, version="1") is first
    assert isinstance(first.outcome, Ok)
    assert first.outcome.version == "1"


def test_error_settles_its_call_with_an_exception(wire: Wire) -> None:
    call = wire.start()

    wire.refuse("not_exist", req=call.req, ids=["018f0000-0000-7000-8000-000000000000", "junk"])

    assert isinstance(call.outcome, JobNotExist)
    assert len(call.outcome.ids) == 1


def test_unknown_error_code_is_an_error_with_that_code(wire: Wire) -> None:
    call = wire.start()

    wire.refuse("on_fire", req=call.req)

    assert isinstance(call.outcome, PointsmanError)
    assert call.outcome.code == "on_fire"


def test_request_whose_answer_was_lost_is_sent_again(wire: Wire) -> None:
    call = wire.start()

    wire.advance(3)

    assert wire.sent == [call.req, call.req]
    assert wire.answer(req=call.req) is call
    assert call.attempts == 2


def test_second_answer_to_a_request_sent_twice_is_dropped(wire: Wire) -> None:
    call = wire.start()
    wire.advance(3)
    wire.answer(req=call.req, version="first")

    assert wire.answer(req=call.req, version="second") is None
    assert isinstance(call.outcome, Ok)
    assert call.outcome.version == "first"


def test_late_answer_of_the_first_attempt_counts(wire: Wire) -> None:
    call = wire.start()
    wire.exchange.disconnected()

    assert wire.answer(req=call.req) is call
    assert wire.exchange.next_to_send() is None


def test_silence_ends_with_broker_unreachable(wire: Wire) -> None:
    call = wire.start()

    assert wire.advance(TIMEOUT_S - 0.1) == []
    assert wire.advance(0.2) == [call]
    assert isinstance(call.outcome, BrokerUnreachable)
    assert 1 < len(wire.sent) < 5
    assert wire.exchange.next_to_send() is None


def test_unsent_call_ends_with_broker_unreachable(wire: Wire) -> None:
    call = wire.exchange.start(Ping(), wire.now)

    wire.now += TIMEOUT_S

    assert wire.exchange.tick(wire.now) == [call]
    assert isinstance(call.outcome, BrokerUnreachable)


def test_unsent_call_waits_on_as_long_as_the_broker_answers_others() -> None:
    wire = Wire(window=1)
    first = wire.start()
    queued = wire.exchange.start(Ping(), wire.now)
    wire.advance(7)
    assert wire.exchange.receive([b"", b"PM1", b'{"op":"ok","req":%d}' % first.req], wire.now)

    wire.now += 5
    assert wire.exchange.tick(wire.now) == []
    wire.flush()

    assert wire.answer(req=queued.req) is queued


def test_busy_is_answered_with_patience(wire: Wire) -> None:
    call = wire.start()

    for sent in range(2, 6):
        assert wire.refuse("busy", req=call.req) is None
        assert len(wire.sent) == sent - 1
        wire.advance(0.5)
        assert len(wire.sent) == sent

    assert wire.answer(req=call.req) is call
    assert isinstance(call.outcome, Ok)


def test_busy_until_the_end_is_broker_busy(wire: Wire) -> None:
    call = wire.start()

    while call.outcome is None:
        wire.refuse("busy", req=call.req)
        wire.advance(0.25)

    assert isinstance(call.outcome, BrokerBusy)
    assert wire.now - 1000 == pytest.approx(TIMEOUT_S, abs=0.3)
    assert len(wire.sent) < 25


def test_after_a_disconnect_all_is_sent_again_before_the_rest() -> None:
    wire = Wire(window=2)
    calls = [wire.start() for _ in range(4)]
    assert wire.sent == [1, 2]

    wire.exchange.disconnected()
    wire.flush()
    for call in calls:
        wire.answer(req=call.req)

    assert wire.sent == [1, 2, 1, 2, 3, 4]
    assert all(isinstance(call.outcome, Ok) for call in calls)


def test_wait_is_given_the_time_it_asked_for(wire: Wire) -> None:
    call = wire.start(hold_s=30)

    assert wire.advance(30) == []
    assert wire.sent == [call.req]
    assert wire.answer(req=call.req) is call


def test_waits_do_not_fill_the_window() -> None:
    wire = Wire(window=2)

    for _ in range(100):
        wire.start(hold_s=10)
    call = wire.start()

    assert len(wire.sent) == 101
    assert wire.exchange.is_under_way(call)


def test_window_bounds_bytes_but_lets_one_large_request_through() -> None:
    wire = Wire(window_bytes=40)
    first, second = wire.start(), wire.start()
    assert wire.sent == [first.req]

    wire.answer(req=first.req)

    assert wire.sent == [first.req, second.req]


def test_slow_broker_that_answers_others_is_not_sent_the_same_again(wire: Wire) -> None:
    slow = wire.start()
    for _ in range(8):
        other = wire.start()
        wire.advance(1)
        wire.answer(req=other.req)

    assert wire.sent.count(slow.req) == 1


@pytest.mark.parametrize("garbage", ["junk", {"op": "new"}, {"op": "ok", "jobs": 5}])
def test_garbage_settles_the_only_call_under_way(wire: Wire, garbage: Any) -> None:
    call = wire.start()

    assert wire.deliver(garbage) is call
    assert isinstance(call.outcome, ProtocolError)


def test_garbage_with_a_number_settles_that_call(wire: Wire) -> None:
    wire.start()
    call = wire.start()

    assert wire.deliver({"op": "new", "req": call.req}) is call
    assert isinstance(call.outcome, ProtocolError)


def test_garbage_that_belongs_to_none_is_told_when_calls_are_given_up(wire: Wire) -> None:
    calls = [wire.start(), wire.start()]
    assert wire.deliver("junk") is None

    given_up = wire.advance(TIMEOUT_S + 1)

    assert given_up == calls
    assert all(isinstance(call.outcome, ProtocolError) for call in calls)


@pytest.mark.parametrize("req", ["x", None, [], 10**30, -1, 1.5])
def test_answer_with_a_number_that_was_never_given_is_dropped(wire: Wire, req: Any) -> None:
    wire.start()
    wire.start()

    assert wire.answer(req=req) is None


def test_timers_of_settled_calls_do_not_pile_up(wire: Wire) -> None:
    for _ in range(5000):
        wire.answer(req=wire.start().req)

    assert len(wire.exchange._timers) < 2000
