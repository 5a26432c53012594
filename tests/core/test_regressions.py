"""Faults of the core that the simulation found, each as the shortest history that shows it."""

from tests.core.box import Box


def test_jobs_of_two_types_that_nobody_claims_after_a_restart_run_again(lasting: Box) -> None:
    a, b = lasting.enqueue("a"), lasting.enqueue("b")
    lasting.worker("a", "b", credit=2)
    lasting.restart()

    lasting.advance(lasting.limits.grace)
    worker = lasting.worker("a", "b", credit=2)

    assert worker.got() == [a, b]


def test_lost_jobs_go_before_what_became_ready_before_the_restart(lasting: Box) -> None:
    a = lasting.enqueue("a")
    lasting.worker("a")
    b = lasting.enqueue("b")
    lasting.restart()

    lasting.advance(lasting.limits.grace)
    worker = lasting.worker("b", "a", credit=2)

    assert worker.got() == [a, b]


def test_due_is_shown_only_while_scheduled(box: Box) -> None:
    a = box.enqueue()
    b = box.enqueue(after=[a], delay=10)

    assert (box.info(b).state, box.info(b).due) == ("blocked", None)


def test_job_that_was_claimed_out_of_turn_and_handed_back_holds_nobody_up(box: Box) -> None:
    first, second, third = box.enqueue("fetch"), box.enqueue("pack"), box.enqueue("pack")
    claimed = box.enqueue("fetch")
    worker = box.worker("fetch", "pack", credit=0)
    worker.claim(claimed)
    worker.release(claimed)
    worker.got()

    worker.heartbeat(credit=1)

    started = []
    while got := worker.got():
        started += got
        worker.finish(*got)
    assert started == [claimed, first, second, third]


def test_finish_that_waited_while_the_broker_was_held_up_beats_the_time_out(box: Box) -> None:
    job = box.enqueue(timeout=1.0)
    worker = box.worker()

    with box.together():
        worker.finish(job)
        box.now += 1.5

    assert box.state_of(job) == "finished"


def test_job_that_was_claimed_and_failed_holds_up_nobody_that_stands_behind_its_old_place(
    box: Box,
) -> None:
    claimed = box.enqueue("fetch", backoff=1.0)
    first, second, third = box.enqueue("fetch"), box.enqueue("pack"), box.enqueue("pack")
    worker = box.worker("fetch", "pack", credit=0)
    worker.claim(claimed)
    worker.fail(claimed)
    box.advance(1.5)
    worker.got()

    worker.heartbeat(credit=1)

    started = []
    while got := worker.got():
        started += got
        worker.finish(*got)
    assert started == [first, second, third, claimed]


def test_results_that_are_gone_are_not_waited_for_whatever_the_bound() -> None:
    box = Box(inputs_limit=1)
    part = box.enqueue()
    whole = box.enqueue(after=[part])
    worker = box.worker()
    worker.finish(part)
    assert worker.held[whole].inputs_left_out
    worker.fail(whole, retry=False)
    box.delete(part)

    box.retry(whole)

    got = worker.held[whole]
    assert (got.inputs, got.inputs_left_out) == ({}, False)
