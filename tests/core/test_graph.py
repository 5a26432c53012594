"""Dependencies: jobs wait for jobs, and go with them when they cannot run any more."""

import gc
from collections.abc import Iterator

import pytest

from broker.core.graph import Dependents
from tests.core.box import Box, Denied
from tests.core.invariants import check, check_empty
from worker_sdk.messages import Dependency

MANY = 50_000


def ended(id: str) -> Dependency:
    return Dependency(id, "ended")


# ---- waiting -----------------------------------------------------------------------------------


def test_dependent_waits_until_its_dependency_finished(box: Box) -> None:
    first = box.enqueue()
    second = box.enqueue(after=[first])
    worker = box.worker(credit=5)
    assert worker.got() == [first]

    worker.finish(first)

    assert worker.got() == [second]


def test_dependent_waits_for_all_of_its_dependencies(box: Box) -> None:
    parts = [box.enqueue() for _ in range(3)]
    whole = box.enqueue(after=parts)
    worker = box.worker(credit=5)

    worker.finish(parts[2])
    worker.finish(parts[0])
    assert box.state_of(whole) == "blocked"
    worker.finish(parts[1])

    assert box.state_of(whole) == "running"


def test_dependency_named_twice_counts_once(box: Box) -> None:
    first = box.enqueue()
    second = box.enqueue(after=[first, first])
    worker = box.worker(credit=5)

    worker.finish(first)

    assert worker.held[second].dependencies == (first,)
    assert box.info(second).dependencies == (first,)
    assert box.info(first).dependents == (second,)


def test_of_two_conditions_on_one_dependency_the_stricter_counts(box: Box) -> None:
    first = box.enqueue()
    one = box.enqueue(after=[first, ended(first)])
    two = box.enqueue(after=[ended(first), first])

    box.cancel(first)

    assert box.states_of(one, two) == ["canceled", "canceled"]


def test_dependency_that_finished_before_does_not_hold_up(box: Box) -> None:
    first = box.enqueue()
    box.worker().finish(first)

    second = box.enqueue(after=[first])

    assert box.state_of(second) == "running"


def test_dependency_may_finish_in_the_turn_of_the_enqueue(box: Box) -> None:
    first = box.enqueue()
    worker = box.worker()

    with box.together():
        worker.finish(first, result="in time")
        second = box.enqueue(after=[first])

    assert box.state_of(second) == "running"
    assert worker.held[second].inputs is not None


def test_dependency_may_fail_in_the_turn_of_the_enqueue(box: Box) -> None:
    first = box.enqueue()
    worker = box.worker()

    with box.together():
        worker.fail(first, retry=False)
        second = box.enqueue(after=[first])

    assert box.state_of(second) == "canceled"


def test_diamond_runs_in_order(box: Box) -> None:
    top = box.enqueue()
    left, right = box.enqueue(after=[top]), box.enqueue(after=[top])
    bottom = box.enqueue(after=[left, right])
    worker = box.worker(credit=5)

    worker.finish(top)
    worker.finish(right)
    worker.finish(left)

    assert worker.got() == [top, left, right, bottom]


# ---- results -----------------------------------------------------------------------------------


def test_job_comes_with_its_dependencies_results(box: Box) -> None:
    one, two = box.enqueue(), box.enqueue()
    whole = box.enqueue(after=[one, two])
    worker = box.worker(credit=5)

    worker.finish(one, result={"n": 1})
    worker.finish(two, result=None)

    got = worker.held[whole]
    assert {id: bytes(raw) for id, raw in (got.inputs or {}).items()} == {
        one: b'{"n":1}',
        two: b"null",
    }
    assert not got.inputs_left_out


def test_job_without_inputs_comes_with_ids_alone(box: Box) -> None:
    first = box.enqueue()
    second = box.enqueue(after=[first], inputs=False)
    worker = box.worker()

    worker.finish(first, result="unwanted")

    got = worker.held[second]
    assert got.dependencies == (first,)
    assert (got.inputs, got.inputs_left_out) == (None, False)


def test_dependency_that_ended_otherwise_has_no_result(box: Box) -> None:
    good, bad = box.enqueue(), box.enqueue()
    cleanup = box.enqueue(after=[ended(good), ended(bad)])
    worker = box.worker(credit=5)

    worker.finish(good, result=1)
    worker.fail(bad, retry=False)

    inputs = worker.held[cleanup].inputs
    assert inputs is not None
    assert set(inputs) == {good}


def test_results_over_the_bound_are_left_out_and_can_be_asked_for() -> None:
    box = Box(inputs_limit=100, max_message=2000)
    parts = [box.enqueue() for _ in range(4)]
    whole = box.enqueue(after=parts)
    worker = box.worker(credit=5)
    for part in parts:
        worker.finish(part, result="x" * 400)

    got = worker.held[whole]
    assert (got.inputs, got.inputs_left_out) == (None, True)
    some = worker.inputs(whole, *parts)
    assert 0 < len(some) < 4
    rest = worker.inputs(whole, *[part for part in parts if part not in some])
    assert {**some, **rest} == dict.fromkeys(parts, "x" * 400)


def test_one_result_is_given_however_large_it_is() -> None:
    box = Box(inputs_limit=0, max_message=1024)
    part = box.enqueue()
    whole = box.enqueue(after=[part])
    worker = box.worker()
    worker.finish(part, result="x" * 900)

    assert worker.inputs(whole, part) == {part: "x" * 900}


def test_inputs_are_only_for_the_running_attempt(box: Box) -> None:
    part = box.enqueue()
    whole = box.enqueue(after=[part])
    worker, other = box.worker(), box.worker(credit=0)
    worker.finish(part)

    with pytest.raises(Denied, match="not_running"):
        worker.inputs(whole, part, attempt=2)
    with pytest.raises(Denied, match="not_running"):
        other.inputs(whole, part, attempt=1)
    with pytest.raises(Denied, match="not_exist"):
        worker.inputs(box.new_id(), part, attempt=1)


def test_inputs_are_only_for_dependencies(box: Box) -> None:
    part, secret = box.enqueue(), box.enqueue()
    whole = box.enqueue(after=[part])
    worker = box.worker(credit=5)
    worker.finish(secret, result="not yours")
    worker.finish(part)

    with pytest.raises(Denied, match=rf"invalid: .* does not depend on {secret}") as denied:
        worker.inputs(whole, part, secret)

    assert denied.value.ids == [secret]


# ---- ends that doom ----------------------------------------------------------------------------


def test_dependent_of_failed_job_is_canceled(box: Box) -> None:
    first = box.enqueue()
    second = box.enqueue(after=[first])

    box.worker().fail(first, retry=False)

    info = box.info(second)
    assert (info.state, info.reason, info.culprit) == ("canceled", "dependency", first)
    assert (info.canceled, info.started, info.finished) == (True, None, None)
    assert info.ended is not None


def test_dependent_of_canceled_job_is_canceled_through_any_depth(box: Box) -> None:
    first = box.enqueue()
    second = box.enqueue(after=[first])
    third = box.enqueue(after=[second])

    assert box.cancel(first) == [first]

    assert box.states_of(first, second, third) == ["canceled"] * 3
    assert box.info(third).culprit == second


def test_dependent_on_any_end_runs_after_each_kind_of_end(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(3)]
    cleanups = [box.enqueue("cleanup", after=[ended(job)]) for job in jobs]
    worker = box.worker(credit=3)

    worker.finish(jobs[0])
    worker.fail(jobs[1], retry=False)
    box.cancel(jobs[2])

    assert box.worker("cleanup", credit=5).got() == cleanups


def test_retry_that_lies_ahead_dooms_nobody(box: Box) -> None:
    first = box.enqueue(max_attempts=2, backoff=0)
    second = box.enqueue(after=[first])
    worker = box.worker()

    worker.fail(first)
    worker.finish(first)

    assert box.state_of(second) == "running"


def test_dependent_with_a_doomed_and_a_live_dependency_is_canceled_at_once(box: Box) -> None:
    bad, good = box.enqueue(), box.enqueue()
    both = box.enqueue(after=[bad, good])

    box.cancel(bad)

    assert box.states_of(both, good) == ["canceled", "ready"]
    box.cancel(good)
    check_empty(box.engine)


def test_job_doomed_from_two_sides_ends_once(box: Box) -> None:
    top = box.enqueue()
    left, right = box.enqueue(after=[top]), box.enqueue(after=[top])
    bottom = box.enqueue(after=[left, right])

    box.cancel(top)

    assert box.info(bottom).culprit == left
    assert box.engine.life.totals["canceled"] == 4
    check_empty(box.engine)


def test_job_freed_on_one_side_and_doomed_on_the_other_is_canceled(box: Box) -> None:
    top = box.enqueue()
    doomed = box.enqueue(after=[top])
    both = box.enqueue(after=[ended(top), doomed])

    box.cancel(top)

    assert box.state_of(both) == "canceled"


def test_job_enqueued_after_its_dependency_failed_is_canceled_at_once(box: Box) -> None:
    first = box.enqueue()
    box.worker().fail(first, retry=False)

    second = box.enqueue(after=[first])
    cleanup = box.enqueue("cleanup", after=[ended(first)])

    info = box.info(second)
    assert (info.state, info.reason, info.culprit) == ("canceled", "dependency", first)
    assert box.state_of(cleanup) == "ready"


def test_graph_enqueued_on_a_failed_job_is_canceled_but_for_its_cleanup(box: Box) -> None:
    failed, live = box.enqueue("bad"), box.enqueue("live")
    worker = box.worker("bad")
    worker.fail(failed, retry=False)
    worker.bye()
    one = box.spec(after=[failed, live])
    two = box.spec(after=[one.id], delay=5.0, expires=3.0)
    cleanup = box.spec(after=[ended(two.id)])

    box.enqueue_all(one, two, cleanup)

    assert box.states_of(one.id, two.id, cleanup.id) == ["canceled", "canceled", "ready"]
    assert box.info(two.id).culprit == one.id
    box.cancel(live, cleanup.id)
    check_empty(box.engine)


# ---- what live jobs hold -----------------------------------------------------------------------


def test_ended_job_that_live_ones_depend_on_is_held(box: Box) -> None:
    first = box.enqueue()
    worker = box.worker(credit=0)
    others = [box.enqueue("later", after=[first]) for _ in range(3)]
    worker.heartbeat(credit=1)
    worker.finish(first)

    for other in others:
        assert box.engine.life.graph.holds(first)
        box.cancel(other)

    assert not box.engine.life.graph.holds(first)


@pytest.mark.parametrize("condition", ["finished", "ended"])
def test_many_dependents_that_end_early_are_not_remembered(box: Box, condition: str) -> None:
    root = box.enqueue()
    dependency = root if condition == "finished" else ended(root)
    for _ in range(200):
        box.cancel(box.enqueue(after=[dependency]))

    dependents = box.engine.life.jobs[root].dependents

    assert not isinstance(dependents, Dependents) or len(list(dependents)) < 50


# ---- size --------------------------------------------------------------------------------------


@pytest.fixture
def big_box() -> Iterator[Box]:
    """A broker for very many jobs, with nothing around it that slows them down."""
    gc.disable()
    yield Box(checked=False)
    gc.enable()


def test_long_chain_runs_to_its_end(big_box: Box) -> None:
    box = big_box
    chain = [box.spec()]
    for _ in range(MANY - 1):
        chain.append(box.spec(after=[chain[-1].id]))
    box.enqueue_all(*chain)
    worker = box.worker()

    for spec in chain[:2000]:
        worker.finish(spec.id)
    assert box.state_of(chain[2000].id) == "running"
    assert box.cancel(chain[2000].id) == [chain[2000].id]

    assert box.states_of(chain[2001].id, chain[-1].id) == ["canceled", "canceled"]
    assert box.info(chain[-1].id).culprit == chain[-2].id
    worker.bye()
    check_empty(box.engine)


def test_job_with_many_dependencies_runs_when_the_last_has_ended(big_box: Box) -> None:
    box = big_box
    parts = [box.spec() for _ in range(MANY)]
    whole = box.spec(after=[ended(spec.id) for spec in parts])
    box.enqueue_all(*parts, whole)
    worker = box.worker(credit=1000)

    worker.finish(*worker.got())
    worker.bye()
    box.cancel(*[spec.id for spec in parts[1001:]])
    assert box.state_of(whole.id) == "blocked"
    box.cancel(parts[1000].id)

    assert box.state_of(whole.id) == "ready"


def test_job_with_many_dependencies_is_canceled_with_the_first_that_fails(big_box: Box) -> None:
    box = big_box
    parts = [box.spec() for _ in range(MANY)]
    whole = box.spec(after=[spec.id for spec in parts])
    box.enqueue_all(*parts, whole)

    box.cancel(parts[0].id)
    assert box.state_of(whole.id) == "canceled"
    box.cancel(*[spec.id for spec in parts[1:]])

    check_empty(box.engine)


@pytest.mark.parametrize("end", ["finish", "cancel"])
def test_job_with_many_dependents_frees_or_cancels_all_of_them(big_box: Box, end: str) -> None:
    box = big_box
    root = box.spec("root")
    leaves = [box.spec(after=[root.id]) for _ in range(MANY)]
    box.enqueue_all(root, *leaves)

    if end == "finish":
        box.worker("root").finish(root.id)
        assert box.states_of(leaves[0].id, leaves[-1].id) == ["ready", "ready"]
        assert box.engine.life.graph._held == {root.id: MANY}
        box.cancel(*[spec.id for spec in leaves])
    else:
        box.cancel(root.id)

    assert box.states_of(leaves[0].id, leaves[-1].id) == ["canceled", "canceled"]
    box._workers.clear()
    box.advance(20)
    check_empty(box.engine)


def test_many_dependents_of_one_job_can_end_before_it(big_box: Box) -> None:
    box = big_box
    root = box.spec("root")
    leaves = [box.spec(after=[root.id]) for _ in range(MANY)]
    box.enqueue_all(root, *leaves)

    box.cancel(*[spec.id for spec in leaves], root.id)

    check_empty(box.engine)


def test_state_is_whole_after_a_cascade_in_a_lattice(box: Box) -> None:
    rows: list[list[str]] = [[box.enqueue() for _ in range(6)]]
    for _ in range(6):
        above = rows[-1]
        rows.append([box.enqueue(after=[above[i], above[(i + 1) % 6]]) for i in range(6)])

    box.cancel(rows[0][0])

    canceled = [sum(state == "canceled" for state in box.states_of(*row)) for row in rows]
    assert canceled == [1, 2, 3, 4, 5, 6, 6]
    check(box.engine)
