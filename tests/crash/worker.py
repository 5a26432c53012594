"""A worker process of the crash tests: computes, and notes what it does before and after.

``python -m tests.crash.worker STYLE ENDPOINT DIARY``, with the style ``push`` (`Worker`) or
``pull`` (`WorkerSession`).
"""

import sys
import time
from pathlib import Path
from typing import Any

from tests.crash.diary import Diary
from worker_sdk import Job, JobRejected, PointsmanError, Worker, WorkerSession
from worker_sdk.session import SessionJob

TYPES = ("step", "probe")


def carry_out(job: Job, diary: Diary) -> dict[str, Any]:
    """Do what the job's args say; the result depends on those of its dependencies."""
    diary.note("start", id=str(job.id), attempt=job.attempt)
    args = job.args
    number = args["number"] + sum(result["number"] for result in job.inputs.values())
    time.sleep(args["seconds"])
    if args["fails"] == "always":
        raise JobRejected("it was to fail")
    if args["fails"] == "once" and job.attempt == 1:
        raise ValueError("it was to fail once")
    diary.note("end", id=str(job.id), attempt=job.attempt)
    return {"number": number, "attempt": job.attempt}


def push(endpoint: str, diary: Diary) -> None:
    worker = Worker(endpoint, concurrency=3, grace=1)
    for type in TYPES:
        worker.add(type, lambda job: carry_out(job, diary))
    worker.run()


def pull(endpoint: str, diary: Diary) -> None:
    with WorkerSession(types=TYPES, endpoint=endpoint) as session:
        while True:
            job = session.dequeue(timeout=3600)
            if job is None:
                continue
            try:
                outcome = end(job, diary)
            except PointsmanError as refusal:
                diary.note("refused", id=str(job.id), attempt=job.attempt, code=refusal.code)
            else:
                diary.note("recorded", id=str(job.id), attempt=job.attempt, outcome=outcome)


def end(job: SessionJob, diary: Diary) -> str:
    """Run a job to its outcome; returns once that is committed."""
    try:
        result = carry_out(job, diary)
    except (JobRejected, ValueError) as error:
        job.fail(str(error), retry=not isinstance(error, JobRejected))
        return "failed"
    job.finish(result)
    return "finished"


if __name__ == "__main__":
    run = push if sys.argv[1] == "push" else pull
    run(sys.argv[2], Diary(Path(sys.argv[3])))
