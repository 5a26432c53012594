"""A client process of the crash tests: enqueues graphs, cancels, looks, and notes each answer.

``python -m tests.crash.client ENDPOINT DIARY SEED JOBS_MOST``. It notes what it is about to ask
before it asks, and what was acknowledged after.
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.crash.diary import Diary
from worker_sdk import BrokerBusy, BrokerUnreachable, Client, Dependency, JobSpec

PATIENT_ATTEMPTS = 1000
"""More than a job can lose to kills: such jobs finish, whatever happens to their workers."""


def draw_graph(rng: random.Random, known: list[str]) -> list[JobSpec]:
    """Give a few jobs that depend on each other and on earlier ones."""
    jobs: list[JobSpec] = []
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        near = [str(job.id) for job in jobs]
        candidates = near + rng.sample(known, min(len(known), 2))
        chosen = rng.sample(candidates, min(len(candidates), rng.choice((0, 1, 1, 2, 3))))
        args = {
            "number": rng.randrange(1000),
            "seconds": rng.choice((0, 0, 0, 0.002, 0.02, 0.1)),
            "fails": rng.choice((*(["never"] * 16), "once", "once", "always")),
        }
        jobs.append(
            JobSpec(
                "step",
                args,
                dependencies=[
                    Dependency(id, "ended" if rng.random() < 0.2 else "finished") for id in chosen
                ],
                priority=rng.choice((0, 0, 1)),
                max_attempts=2 if rng.random() < 0.05 else PATIENT_ATTEMPTS,
                backoff=0.05,
            )
        )
    return jobs


def described(job: JobSpec) -> dict[str, Any]:
    """Give a job as the audit wants to know it."""
    return {
        "id": str(job.id),
        "number": job.args["number"],
        "fails": job.args["fails"],
        "max_attempts": job.max_attempts,
        "dependencies": [
            [str(each.id), each.condition]
            if isinstance(each, Dependency)
            else [str(each), "finished"]
            for each in job.dependencies
        ],
    }


def main(endpoint: str, diary: Diary, rng: random.Random, jobs_most: int) -> None:
    acknowledged: list[str] = []
    with Client(endpoint, timeout=60) as client:
        while len(acknowledged) < jobs_most:
            time.sleep(rng.uniform(0, 0.03))
            try:
                _ask(client, diary, rng, acknowledged)
            except (BrokerBusy, BrokerUnreachable) as error:
                diary.note("unanswered", why=str(error))
    diary.note("done")


def _ask(client: Client, diary: Diary, rng: random.Random, acknowledged: list[str]) -> None:
    choice = rng.random()
    if choice < 0.7 or not acknowledged:
        graph = draw_graph(rng, acknowledged[-50:])
        diary.note("enqueue", jobs=[described(job) for job in graph])
        ids = [str(id) for id in client.enqueue_many(graph)]
        diary.note("enqueued", ids=ids)
        acknowledged.extend(ids)
    elif choice < 0.75:
        id = rng.choice(acknowledged[-20:])
        diary.note("cancel", id=id)
        diary.note("canceled", id=id, did=client.cancel(id))
    else:
        for job in client.status(rng.sample(acknowledged, min(5, len(acknowledged)))):
            if job.is_ended:
                diary.note("seen", id=str(job.id), state=job.state, result=job.result)


if __name__ == "__main__":
    main(sys.argv[1], Diary(Path(sys.argv[2])), random.Random(sys.argv[3]), int(sys.argv[4]))
