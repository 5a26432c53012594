"""Jobs come in: all of a request or none, once, and only as many as there may be."""

import msgspec
import pytest
from msgspec import Raw

from tests.core.box import START_WALL, Box, Denied
from tests.core.invariants import check_empty
from worker_sdk.messages import Backoff, Dependency, Enqueue

# ---- what comes in -----------------------------------------------------------------------------


def test_answer_gives_the_ids_in_the_order_of_the_request(box: Box) -> None:
    specs = [box.spec() for _ in range(3)]

    answer = box.enqueue_all(*specs)

    assert answer.ids == [spec.id for spec in specs]


def test_empty_request_is_carried_out(box: Box) -> None:
    assert box.enqueue_all().ids == []


def test_status_shows_what_was_enqueued(box: Box) -> None:
    dependency = box.enqueue()
    box.advance(7)

    job = box.enqueue(
        "resize",
        {"w": 80},
        [dependency],
        channel="tenant",
        priority=5,
        max_attempts=7,
    )

    info = box.info(job)
    assert (info.type, info.channel, info.priority) == ("resize", "tenant", 5)
    assert (info.state, info.attempt, info.max_attempts) == ("blocked", 0, 7)
    assert info.queued == START_WALL + 7
    assert info.dependencies == (dependency,)
    assert isinstance(info.args, Raw)
    assert bytes(info.args) == b'{"w":80}'
    assert (info.started, info.finished, info.ended, info.canceled) == (None, None, None, False)
    assert box.info(dependency).dependents == (job,)


def test_args_left_out_are_null(box: Box) -> None:
    info = box.info(box.enqueue())

    assert isinstance(info.args, Raw)
    assert bytes(info.args) == b"null"


def test_worker_gets_the_job_as_it_was_enqueued(box: Box) -> None:
    args = {"text": "a\u0000b \U0001f682"}
    job = box.enqueue("resize", args, channel="tenant", timeout=30)

    worker = box.worker("resize", channels=("tenant",))

    got = worker.held[job]
    assert (got.id, got.attempt, got.type, got.channel) == (job, 1, "resize", "tenant")
    assert got.timeout == 30
    assert bytes(got.args) == '{"text":"a\\u0000b \U0001f682"}'.encode()
    assert got.dependencies == ()
    assert got.inputs is None


# ---- sent again --------------------------------------------------------------------------------


def test_same_job_sent_again_is_answered_as_the_first_time(box: Box) -> None:
    spec = box.spec("work", {"a": 1}, priority=3, delay=0.0, backoff=Backoff(first=2))
    first = box.enqueue_all(spec)

    again = box.enqueue_all(spec)

    assert again.ids == first.ids
    assert box.worker(credit=5).got() == [spec.id]


@pytest.mark.parametrize("end", ["finish", "fail", "cancel"])
def test_same_job_sent_again_after_its_end_stays_ended(box: Box, end: str) -> None:
    spec = box.spec()
    box.enqueue_all(spec)
    worker = box.worker()
    if end == "finish":
        worker.finish(spec.id, result=42)
    elif end == "fail":
        worker.fail(spec.id, retry=False)
    else:
        box.cancel(spec.id)
    state = box.state_of(spec.id)
    worker.got()

    assert box.enqueue_all(spec).ids == [spec.id]

    assert box.state_of(spec.id) == state
    assert worker.got() == []


def test_same_job_written_otherwise_is_the_same(box: Box) -> None:
    dependency, other = box.enqueue(), box.enqueue()
    spec = box.spec(after=[dependency, other], backoff=1.0)
    spec.args = Raw(b'{"a":1,"b":[1.5]}')
    box.enqueue_all(spec)
    alike = box.spec(id=spec.id, after=[dependency, Dependency(other), dependency])
    alike.args = Raw(b'{ "b": [1.50], "a": 1 }')

    box.enqueue_all(alike)

    assert box.info(spec.id).dependencies == (dependency, other)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "other"},
        {"channel": "other"},
        {"priority": 1},
        {"delay": 1.0},
        {"timeout": 1.0},
        {"expires": 1.0},
        {"max_attempts": 1},
        {"backoff": 2.0},
        {"inputs": False},
        {"args": Raw(b"1")},
        {"args": Raw(b"false")},
        {"dependencies": ()},
    ],
    ids=lambda change: "-".join(change),
)
@pytest.mark.parametrize("ended", [False, True], ids=["live", "ended"])
def test_same_id_with_other_content_is_a_conflict(
    box: Box, change: dict[str, object], ended: bool
) -> None:
    dependency = box.enqueue()
    spec = box.spec(after=[Dependency(dependency, "ended")])
    spec.args = Raw(b"0")
    box.enqueue_all(spec)
    if ended:
        box.cancel(spec.id)
    other = box.spec(id=spec.id, after=[Dependency(dependency, "ended")])
    other.args = Raw(b"0")
    for name, value in change.items():
        setattr(other, name, value)

    with pytest.raises(Denied, match="conflict: enqueued before with other content") as denied:
        box.enqueue_all(other)

    assert denied.value.ids == [spec.id]


@pytest.mark.parametrize("ended", [False, True], ids=["live", "ended"])
def test_default_that_is_said_is_the_same_as_one_that_is_left_out(box: Box, ended: bool) -> None:
    said = b'{"first":0.5,"factor":2,"limit":300,"jitter":0.1}'
    spec, other = box.spec(), box.spec()
    other.id = spec.id
    spec.backoff = msgspec.json.decode(b'{"first":0.5}', type=Backoff)
    other.backoff = msgspec.json.decode(said, type=Backoff)
    box.enqueue_all(spec)
    if ended:
        box.cancel(spec.id)

    assert box.enqueue_all(other).ids == [spec.id]


def test_number_that_cannot_be_compared_is_the_same_only_as_itself(box: Box) -> None:
    spec, other = box.spec(), box.spec()
    spec.args, other.args = Raw(b"1e999"), Raw(b"1e998")
    other.id = spec.id
    box.enqueue_all(spec)

    box.enqueue_all(spec)
    with pytest.raises(Denied, match="conflict"):
        box.enqueue_all(other)


def test_args_that_are_deep_are_compared_too(box: Box) -> None:
    spec, other = box.spec(), box.spec()
    spec.args, other.args = Raw(b"[" * 500 + b"]" * 500), Raw(b"[" * 500 + b" " + b"]" * 500)
    other.id = spec.id
    box.enqueue_all(spec)

    assert box.enqueue_all(other).ids == [spec.id]


def test_same_job_twice_in_one_request_counts_once(box: Box) -> None:
    dependency = box.spec()
    spec = box.spec(after=[dependency.id, dependency.id])

    answer = box.enqueue_all(dependency, spec, spec)

    assert answer.ids == [dependency.id, spec.id, spec.id]
    worker = box.worker(credit=5)
    worker.finish(dependency.id)
    assert worker.got() == [dependency.id, spec.id]


def test_same_id_twice_in_one_request_with_other_content_is_a_conflict(box: Box) -> None:
    spec = box.spec(priority=1)
    other = box.spec(id=spec.id, priority=2)

    with pytest.raises(Denied, match="conflict") as denied:
        box.enqueue_all(spec, other)

    assert denied.value.ids == [spec.id]
    assert not box.exists(spec.id)


def test_request_that_mixes_old_and_new_jobs_takes_in_the_new(box: Box) -> None:
    ended, live = box.spec(), box.spec()
    box.enqueue_all(ended, live)
    box.cancel(ended.id)
    new = box.spec(after=[live.id])

    answer = box.enqueue_all(ended, live, new)

    assert answer.ids == [ended.id, live.id, new.id]
    assert box.states_of(ended.id, live.id, new.id) == ["canceled", "ready", "blocked"]


# ---- all or nothing ----------------------------------------------------------------------------


def test_unknown_dependency_refuses_the_whole_request_and_names_the_culprits(box: Box) -> None:
    good = box.spec()
    nobody, noone = box.new_id(), box.new_id()
    bad, worse = box.spec(after=[good.id, nobody]), box.spec(after=[noone])

    with pytest.raises(Denied, match=rf"not_exist: .*dependency {nobody} does not exist") as denied:
        box.enqueue_all(good, bad, worse)

    assert denied.value.ids == [bad.id, worse.id, nobody, noone]
    assert not box.exists(good.id)
    check_empty(box.engine)


def test_dependency_that_stands_later_in_the_request_is_invalid(box: Box) -> None:
    last = box.spec()
    first = box.spec(after=[last.id])

    with pytest.raises(Denied, match=r"invalid: .* stands later in the request") as denied:
        box.enqueue_all(first, last)

    assert denied.value.ids == [first.id]
    check_empty(box.engine)


def test_job_that_depends_on_itself_is_invalid(box: Box) -> None:
    spec = box.spec()
    spec.dependencies = (spec.id,)

    with pytest.raises(Denied, match=r"invalid: .* depends on itself"):
        box.enqueue_all(spec)


def test_all_culprits_are_named_whatever_each_has_done(box: Box) -> None:
    old = box.spec()
    box.enqueue_all(old)
    other, selfish, lost, deep = box.spec(priority=9), box.spec(), box.spec(), box.spec()
    other.id, unknown = old.id, box.new_id()
    selfish.dependencies, lost.dependencies = (selfish.id,), (unknown,)
    deep.args = Raw(b"[" * 501 + b"]" * 501)

    with pytest.raises(Denied) as denied:
        box.enqueue_all(other, box.spec(), selfish, lost, deep)

    named = dict(zip(denied.value.ids, denied.value.codes, strict=True))
    assert named == {
        old.id: "conflict",
        selfish.id: "invalid",
        lost.id: "not_exist",
        unknown: "not_exist",
        deep.id: "invalid",
    }
    assert denied.value.code == "conflict"
    for part in ("other content", "depends on itself", "does not exist", "nested deeper"):
        assert part in denied.value.message


def test_conflict_refuses_the_whole_request(box: Box) -> None:
    old = box.spec()
    box.enqueue_all(old)
    new = box.spec("unheard-of")

    with pytest.raises(Denied, match="conflict"):
        box.enqueue_all(new, box.spec("other", id=old.id))

    assert not box.exists(new.id)
    assert len(box.engine.life.lanes) == 1


def test_refused_request_leaves_no_trace_in_the_numbers(box: Box) -> None:
    before = box.enqueue()

    with pytest.raises(Denied):
        box.enqueue(after=[box.new_id()])

    after = box.enqueue()
    jobs = box.engine.life.jobs
    assert jobs[after].seq == jobs[before].seq + 1


# ---- bounds ------------------------------------------------------------------------------------


def test_more_jobs_than_there_may_be_are_refused_as_busy() -> None:
    box = Box(max_jobs=2)
    first = box.enqueue()

    with pytest.raises(Denied, match="busy: 1 jobs are live, at most 2 may be"):
        box.enqueue_all(box.spec(), box.spec())
    box.enqueue()
    with pytest.raises(Denied, match="busy"):
        box.enqueue()
    box.cancel(first)

    assert box.state_of(box.enqueue()) == "ready"


def test_args_over_the_bound_are_refused_as_busy() -> None:
    box = Box(max_bytes=100)
    first = box.enqueue(args="x" * 60)

    with pytest.raises(Denied, match="busy: the args of live jobs take 62 bytes"):
        box.enqueue(args="x" * 60)
    box.cancel(first)

    box.enqueue(args="x" * 60)


def test_job_sent_again_passes_at_the_bound() -> None:
    box = Box(max_jobs=1, max_bytes=10)
    spec = box.spec(args="x" * 8)
    box.enqueue_all(spec)

    assert box.enqueue_all(spec).ids == [spec.id]


def test_broker_that_drains_takes_nothing_in(box: Box) -> None:
    box.engine.draining = True

    with pytest.raises(Denied, match="busy: the broker is about to stop"):
        box.enqueue()


# ---- enqueue and wait --------------------------------------------------------------------------


def test_enqueue_with_wait_is_answered_when_all_have_ended(box: Box) -> None:
    one, two = box.spec(), box.spec()
    answer = box.demand(Enqueue((one, two), wait=60))
    worker = box.worker(credit=2)

    worker.finish(one.id, result="done")
    assert not answer.is_answered
    worker.fail(two.id, "broken", retry=False)

    assert answer.done
    assert answer.states == ["finished", "failed"]
    assert [job.id for job in answer.jobs] == [one.id, two.id]


def test_enqueue_with_wait_is_answered_when_the_time_is_over(box: Box) -> None:
    spec = box.spec()
    answer = box.demand(Enqueue((spec,), wait=5))

    box.advance(5)

    assert not answer.done
    assert answer.states == ["ready"]


def test_enqueue_with_no_patience_is_answered_at_once(box: Box) -> None:
    spec = box.spec()

    answer = box.demand(Enqueue((spec,), wait=0))

    assert not answer.done


def test_enqueue_with_wait_takes_nothing_in_if_it_may_not_wait() -> None:
    box = Box(max_waits=1)
    box.wait(box.enqueue())
    spec = box.spec()

    with pytest.raises(Denied, match="busy: 1 waits are open"):
        box.demand(Enqueue((spec,), wait=5))

    assert not box.exists(spec.id)


def test_enqueue_with_wait_sent_again_after_the_end_is_answered_at_once(box: Box) -> None:
    spec = box.spec()
    box.enqueue_all(spec)
    box.worker().finish(spec.id, result=7)

    answer = box.demand(Enqueue((spec,), wait=5))

    assert answer.done
    result = answer.jobs[0].result
    assert isinstance(result, Raw)
    assert bytes(result) == b"7"
