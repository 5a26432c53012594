"""Ended jobs: retried, deleted, and forgotten in time."""

from collections.abc import Iterator, Sequence

import pytest

from broker.core.records import Record
from tests.core.box import START_WALL, Box, BoxWorker, Denied
from tests.core.invariants import check_empty
from worker_sdk.messages import Delete, Dependency


def ended(id: str) -> Dependency:
    return Dependency(id, "ended")


def failed_job(box: Box, worker: BoxWorker) -> str:
    job = box.enqueue()
    worker.fail(job, retry=False)
    return job


# ---- retry ---------------------------------------------------------------------------------------


def test_failed_job_runs_again_with_all_its_attempts(box: Box) -> None:
    job = box.enqueue("work", {"n": 1}, max_attempts=2, backoff=0, priority=3)
    worker = box.worker()
    worker.fail(job)
    worker.fail(job)
    box.advance(5)

    assert box.retry(job) == [job]

    info = box.info(job)
    assert (info.state, info.attempt, info.queued) == ("running", 3, START_WALL + 5)
    assert (info.error, info.ended, info.priority) == (None, None, 3)
    worker.fail(job)
    assert worker.attempt_of(job) == 4
    worker.fail(job)
    assert box.state_of(job) == "failed"


def test_canceled_job_runs_again(box: Box) -> None:
    job = box.enqueue()
    box.cancel(job)

    box.retry(job)

    assert box.worker().got() == [job]


def test_expired_job_has_its_time_anew(box: Box) -> None:
    job = box.enqueue(expires=5)
    box.advance(6)

    box.retry(job)
    box.advance(4)
    assert box.state_of(job) == "ready"
    box.advance(2)

    assert box.state_of(job) == "canceled"


def test_delay_does_not_count_again(box: Box) -> None:
    job = box.enqueue(delay=50)
    box.cancel(job)

    box.retry(job)

    assert box.state_of(job) == "ready"


def test_whole_subtree_that_was_canceled_with_it_lives_again(box: Box) -> None:
    root = box.enqueue()
    left, right = box.enqueue("x", after=[root]), box.enqueue("x", after=[root])
    bottom = box.enqueue("x", after=[left, right])
    worker = box.worker()
    worker.fail(root, retry=False)
    assert box.states_of(left, right, bottom) == ["canceled"] * 3

    assert box.retry(root) == [root, left, right, bottom]

    assert box.states_of(root, left, right, bottom) == ["running"] + ["blocked"] * 3
    worker.finish(root)
    helper = box.worker("x", credit=5)
    helper.finish(left)
    helper.finish(right)
    helper.finish(bottom)
    assert box.state_of(bottom) == "finished"


def test_subtree_can_be_retried_again_and_again(box: Box) -> None:
    root = box.enqueue()
    middle = box.enqueue("x", after=[root])
    bottom = box.enqueue("x", after=[middle])
    worker = box.worker()

    for _ in range(4):
        worker.fail(root, retry=False)
        assert box.retry(root) == [root, middle, bottom]
    worker.finish(root)

    assert box.states_of(root, middle, bottom) == ["finished", "ready", "blocked"]


def test_dependents_canceled_on_their_own_stay_so(box: Box) -> None:
    root = box.enqueue()
    by_request = box.enqueue(after=[root])
    box.cancel(by_request)
    box.cancel(root)

    assert box.retry(root) == [root]

    assert box.state_of(by_request) == "canceled"


def test_dependent_of_two_ended_jobs_lives_again_only_with_both(box: Box) -> None:
    one, two = box.enqueue(), box.enqueue()
    both = box.enqueue(after=[one, two])
    below = box.enqueue(after=[both])
    box.cancel(one)
    box.cancel(two)

    assert box.retry(one) == [one]
    assert box.state_of(both) == "canceled"
    box.cancel(one)

    assert sorted(box.retry(two, one)) == sorted([one, two, both, below])
    assert box.states_of(one, two, both, below) == ["ready", "ready", "blocked", "blocked"]


def test_dependencies_retried_at_different_times_revive_their_dependent_with_the_last(
    box: Box,
) -> None:
    one, two = box.enqueue(), box.enqueue()
    both = box.enqueue(after=[one, two])
    box.cancel(one)
    box.cancel(two)

    box.retry(one)
    assert box.state_of(both) == "canceled"
    box.retry(two)

    assert box.state_of(both) == "blocked"


def test_dependent_asked_for_beside_dependencies_that_are_younger_by_a_retry(box: Box) -> None:
    one, two = box.enqueue(), box.enqueue()
    both = box.enqueue(after=[one, two])
    box.cancel(one)
    box.cancel(two)
    box.retry(one)
    box.cancel(one)

    assert set(box.retry(both, two, one)) == {one, two, both}

    assert box.state_of(both) == "blocked"


def test_retry_of_a_job_whose_dependency_failed_is_a_conflict(box: Box) -> None:
    root = failed_job(box, box.worker())
    dependent = box.enqueue(after=[root])

    with pytest.raises(Denied, match=f"its dependency {root} is failed: retry that one") as denied:
        box.retry(dependent)

    assert denied.value.code == "conflict"
    assert denied.value.ids == [dependent]


def test_retry_of_a_job_whose_dependency_is_gone_is_a_conflict(box: Box) -> None:
    root = box.enqueue()
    dependent = box.enqueue(after=[root])
    box.cancel(root)
    box.delete(root)

    with pytest.raises(Denied, match=f"its dependency {root} does not exist any more"):
        box.retry(dependent)


def test_retry_of_a_job_that_ran_does_without_a_dependency_that_is_gone(box: Box) -> None:
    root = box.enqueue()
    dependent = box.enqueue(after=[root])
    worker = box.worker()
    worker.finish(root)
    worker.fail(dependent, retry=False)
    box.delete(root)

    box.retry(dependent)

    assert worker.held[dependent].dependencies == (root,)
    worker.finish(dependent)
    worker.bye()
    check_empty(box.engine)


def test_retry_leaves_live_jobs_as_they_are(box: Box) -> None:
    job = box.enqueue()
    worker = box.worker()

    assert box.retry(job) == []

    assert worker.attempt_of(job) == 1


def test_retry_of_a_finished_job_is_a_conflict_and_nothing_is_done(box: Box) -> None:
    worker = box.worker()
    failed = failed_job(box, worker)
    finished = box.enqueue()
    worker.finish(finished)

    with pytest.raises(Denied, match="conflict: finished already") as denied:
        box.retry(failed, finished)

    assert denied.value.ids == [finished]
    assert box.state_of(failed) == "failed"


def test_retry_of_unknown_jobs_names_them(box: Box) -> None:
    nobody = box.new_id()

    with pytest.raises(Denied, match="not_exist") as denied:
        box.retry(nobody, nobody)

    assert denied.value.ids == [nobody]


def test_retry_of_a_job_named_twice_revives_it_once(box: Box) -> None:
    job = box.enqueue()
    box.cancel(job)

    assert box.retry(job, job) == [job]


def test_retry_is_refused_while_a_live_job_builds_on_the_end(box: Box) -> None:
    job = box.enqueue()
    cleanup = box.enqueue(after=[ended(job)])
    box.cancel(job)

    with pytest.raises(Denied, match="conflict: live jobs depend on") as denied:
        box.retry(job)
    assert denied.value.ids == [job]
    box.cancel(cleanup)

    assert box.retry(job) == [job]


def test_dependent_that_a_live_job_builds_on_is_not_revived(box: Box) -> None:
    root = box.enqueue()
    middle = box.enqueue(after=[root])
    box.enqueue(after=[ended(middle)])
    box.cancel(root)

    assert box.retry(root) == [root]

    assert box.state_of(middle) == "canceled"


def test_retry_at_the_bound_is_refused_as_busy() -> None:
    box = Box(max_jobs=2)
    one = box.enqueue()
    two = box.enqueue(after=[one])
    box.cancel(one)
    box.enqueue()

    with pytest.raises(Denied, match="busy"):
        box.retry(one)

    assert box.states_of(one, two) == ["canceled", "canceled"]


def test_retry_counts_args_against_their_bound() -> None:
    box = Box(max_bytes=100)
    one = box.enqueue(args="x" * 60)
    box.cancel(one)
    box.enqueue(args="x" * 60)

    with pytest.raises(Denied, match="busy"):
        box.retry(one)


def test_retry_in_the_turn_of_the_end_is_carried_out(box: Box) -> None:
    job = box.enqueue()
    dependent = box.enqueue(after=[job])
    worker = box.worker()

    with box.together():
        worker.fail(job, retry=False)
        box.retry(job)

    assert worker.attempt_of(job) == 2
    assert box.state_of(dependent) == "blocked"


def test_jobs_that_depend_on_each_other_by_a_reused_id_cannot_be_retried(box: Box) -> None:
    first, second = box.spec(), box.new_id()
    box.enqueue_all(first, box.spec(id=second, after=[first.id]))
    box.cancel(first.id)
    box.delete(first.id)
    box.enqueue(id=first.id, after=[second])

    with pytest.raises(Denied, match="circle") as denied:
        box.retry(first.id)

    assert (denied.value.code, denied.value.ids) == ("conflict", [first.id])
    assert box.states_of(first.id, second) == ["canceled", "canceled"]


def test_many_deletes_in_one_turn_take_one_commit(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(10)]
    box.cancel(*jobs)
    before = box.turns

    with box.together():
        for job in jobs:
            box.delete(job)

    assert box.turns == before + 1
    assert not any(box.exists(job) for job in jobs)


def test_many_retries_in_the_turn_of_an_end_wait_for_the_next_one_only(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(10)]
    box.cancel(*jobs)
    other = box.enqueue()
    before = box.turns

    with box.together():
        box.cancel(other)
        for job in jobs:
            box.retry(job)

    assert box.turns == before + 2
    assert box.states_of(*jobs) == ["ready"] * 10


def test_request_that_waits_for_the_next_turn_comes_before_what_ends_then(box: Box) -> None:
    # If it had to wait for every end, it would wait for ever where jobs expire in each turn.
    job, other = box.enqueue(), box.enqueue()
    box.cancel(job)
    box.enqueue(expires=10)
    box.advance(9)

    with box.together():
        box.cancel(other)
        box.retry(job)
        box.now += 1

    assert box.state_of(job) == "ready"


def test_job_deleted_twice_in_one_turn_does_not_exist_the_second_time(box: Box) -> None:
    job = box.enqueue()
    box.cancel(job)

    with box.together():
        box.delete(job)
        second = box.demand(Delete((job,)))

    with pytest.raises(Denied, match="does not exist"):
        second.ok()


def test_many_retries_and_deletes_in_one_turn_are_all_carried_out(box: Box) -> None:
    jobs = [box.enqueue() for _ in range(10)]
    box.cancel(*jobs)

    with box.together():
        for job in jobs[:5]:
            box.retry(job)
        for job in jobs[5:]:
            box.delete(job)

    assert box.states_of(*jobs[:5]) == ["ready"] * 5
    assert not any(box.exists(job) for job in jobs[5:])


def test_fan_lives_again_by_a_few_looks_into_the_store(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = box.enqueue()
    box.cancel(other)
    root = box.spec()
    children = [box.spec(after=[root.id, Dependency(other, "ended")]) for _ in range(50)]
    box.enqueue_all(root, *children)
    box.cancel(root.id)
    looks = 0
    read = box.store.read

    def counted(ids: Sequence[str]) -> Iterator[Record]:
        nonlocal looks
        looks += 1
        return read(ids)

    monkeypatch.setattr(box.store, "read", counted)

    assert len(box.retry(root.id)) == 51
    assert looks <= 4


def test_long_chain_lives_again_as_a_whole(box: Box) -> None:
    box.checked = False
    chain = [box.spec()]
    for _ in range(5000):
        chain.append(box.spec(after=[chain[-1].id]))
    box.enqueue_all(*chain)
    box.cancel(chain[0].id)

    assert box.retry(chain[0].id) == [spec.id for spec in chain]

    assert box.worker().got() == [chain[0].id]


# ---- delete --------------------------------------------------------------------------------------


def test_deleted_job_is_gone(box: Box) -> None:
    one, two = box.enqueue(), box.enqueue()
    box.cancel(one, two)

    assert box.delete(two, one, two) == [two, one]

    assert not box.exists(one)
    assert not box.exists(two)


def test_live_job_cannot_be_deleted(box: Box) -> None:
    gone, live = box.enqueue(), box.enqueue()
    box.cancel(gone)

    with pytest.raises(Denied, match=r"conflict: .* is ready: only ended jobs go") as denied:
        box.delete(gone, live)

    assert denied.value.ids == [live]
    assert box.exists(gone)


def test_job_that_a_live_one_depends_on_cannot_be_deleted(box: Box) -> None:
    job = box.enqueue()
    dependent = box.enqueue(after=[ended(job)])
    box.cancel(job)

    with pytest.raises(Denied, match="conflict: live jobs depend on"):
        box.delete(job)
    box.cancel(dependent)

    assert box.delete(job) == [job]
    assert box.info(dependent).dependencies == (ended(job),)


def test_delete_of_unknown_jobs_names_them_and_does_nothing(box: Box) -> None:
    job, nobody = box.enqueue(), box.new_id()
    box.cancel(job)

    with pytest.raises(Denied, match="not_exist") as denied:
        box.delete(job, nobody)

    assert denied.value.ids == [nobody]
    assert box.exists(job)


def test_id_of_a_deleted_job_can_be_used_anew(box: Box) -> None:
    spec = box.spec("work", {"n": 1})
    box.enqueue_all(spec)
    box.cancel(spec.id)

    with box.together():
        box.delete(spec.id)
        box.enqueue("work", {"n": 2}, id=spec.id)

    assert box.state_of(spec.id) == "ready"


def test_dependency_on_a_job_deleted_in_the_same_turn_does_not_exist(box: Box) -> None:
    job = box.enqueue()
    box.cancel(job)
    spec = box.spec(after=[ended(job)])

    with box.together():
        box.delete(job)
        answer = box.enqueue_all(spec)

    with pytest.raises(Denied, match="not_exist"):
        answer.ok()


# ---- retention -----------------------------------------------------------------------------------


def test_ended_jobs_are_forgotten_after_their_time() -> None:
    box = Box(retention=100)
    early = box.enqueue()
    box.cancel(early)
    box.advance(50)
    late = box.enqueue()
    box.cancel(late)

    box.advance(49)
    assert box.exists(early)
    box.advance(2)

    assert not box.exists(early)
    assert box.exists(late)


def test_oldest_go_when_there_are_too_many() -> None:
    box = Box(max_ended=3)
    jobs = [box.enqueue() for _ in range(5)]
    for job in jobs:
        box.cancel(job)

    box.advance(1)

    assert [box.exists(job) for job in jobs] == [False, False, True, True, True]


def test_many_are_forgotten_a_bounded_number_at_a_time() -> None:
    box = Box(retention=10, checked=False)
    specs = [box.spec() for _ in range(2500)]
    box.enqueue_all(*specs)
    box.cancel(*[spec.id for spec in specs])

    box.jump(10)
    assert box.store.ended_count == 1500
    box.advance(0.03)

    assert box.store.ended_count == 0


def test_ended_job_that_a_live_one_depends_on_stays() -> None:
    box = Box(retention=10)
    job = box.enqueue()
    dependent = box.enqueue("later", after=[job])
    worker = box.worker()
    worker.finish(job, result=42)
    worker.bye()

    box.advance(60)
    assert box.exists(job)
    worker = box.worker("later")
    assert worker.held[dependent].inputs is not None
    worker.finish(dependent)
    box.advance(60)

    assert not box.exists(job)


def test_ended_jobs_that_are_held_do_not_keep_others() -> None:
    box = Box(max_ended=0)
    held = [box.enqueue() for _ in range(3)]
    box.enqueue("later", after=[ended(job) for job in held])
    free = [box.enqueue() for _ in range(3)]
    box.cancel(*held, *free)

    box.advance(1)

    assert [box.exists(job) for job in (*held, *free)] == [True] * 3 + [False] * 3


def test_no_more_is_read_than_is_due_to_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(retention=10)
    box.cancel(box.enqueue(), box.enqueue())
    box.advance(5)
    box.cancel(*[box.enqueue() for _ in range(50)])
    read: list[str] = []
    oldest = box.store.oldest

    def counted() -> Iterator[tuple[str, float]]:
        for each in oldest():
            read.append(each[0])
            yield each

    monkeypatch.setattr(box.store, "oldest", counted)
    box.advance(6)

    # One that is not due at each look, and two that were.
    assert len(read) <= 6 + 2
    assert box.store.ended_count == 50


def test_some_that_are_held_do_not_slow_the_forgetting_of_others() -> None:
    box = Box(retention=10, checked=False)
    specs = [box.spec() for _ in range(2500)]
    box.enqueue_all(*specs)
    box.enqueue("later", after=[ended(specs[7].id)])
    box.cancel(*[spec.id for spec in specs])

    box.jump(10)
    box.advance(0.03)

    assert box.store.ended_count == 1


def test_job_is_deleted_in_the_turn_in_which_it_was_held_for_longer() -> None:
    box = Box(retention=10)
    job = box.enqueue()
    dependent = box.enqueue("later", after=[ended(job)])
    box.cancel(job)
    box.advance(9.5)

    box.now += 1
    with box.together():
        box.cancel(dependent)
        box.delete(job)

    assert not box.exists(job)


def test_what_was_deleted_a_moment_before_is_not_forgotten_again() -> None:
    box = Box(retention=10)
    job, other = box.enqueue(), box.enqueue()
    box.cancel(job)
    box.advance(9.5)

    with box.together():
        box.cancel(other)
        box.retry(other)  # waits for the next turn, and keeps all behind it waiting
        box.cancel(job)
        box.delete(job)
        box.now += 1

    assert not box.exists(job)


def test_id_of_a_deleted_job_is_not_free_while_a_retried_one_depends_on_it(box: Box) -> None:
    first = box.enqueue("first")
    retried = box.enqueue(after=[first], max_attempts=1)
    worker = box.worker("first", "work", credit=1)
    worker.finish(first)
    worker.fail(retried)
    worker.bye()
    box.delete(first)
    box.retry(retried)

    with pytest.raises(Denied, match="live jobs depend on"):
        box.enqueue("first", id=first)
    box.cancel(retried)

    box.enqueue("first", id=first)


def test_broker_without_work_forgets_too() -> None:
    box = Box(retention=10)
    box.cancel(box.enqueue())

    box.advance(11)

    assert box.store.ended_count == 0
