"""The demo's worker: ``pointsman worker broker.demo.handlers`` runs it.

Two job types make the tree: a leaf's result is its digest, a folder's is made of the results of
the jobs that it depends on. A third does nothing, to measure how long a hop takes.
"""

import os
import time
from pathlib import Path
from typing import Any

from broker.demo.tree import Listed, decode_path, encode_path, folder_digest, leaf_digest
from worker_sdk import Job, Worker

LEAF = "demo.leaf"
FOLDER = "demo.folder"
HOP = "demo.hop"

JOURNAL_VARIABLE = "POINTSMAN_DEMO_JOURNAL"
"""The file to which each attempt is noted as it starts: one line with job, attempt, process."""
GATE_VARIABLE = "POINTSMAN_DEMO_GATE"
"""Jobs with ``wait`` in their args do not go on before this file exists."""
GATE_POLL_S = 0.02

worker = Worker(concurrency=8)


@worker.job(LEAF)
def leaf(job: Job) -> dict[str, Any]:
    """The digest of a file or a symbolic link."""
    _begin(job)
    path = decode_path(job.args["path"])
    return _result(job, job.args["kind"], leaf_digest(path, job.args["kind"]))


@worker.job(FOLDER)
def folder(job: Job) -> dict[str, Any]:
    """The digest of a folder, from the results of the jobs of its entries."""
    _begin(job)
    entries = [job.inputs[each] for each in job.dependencies]
    listing = [Listed(each["name"], each["kind"], each["digest"]) for each in entries]
    return _result(job, "folder", folder_digest(listing))


@worker.job(HOP)
def hop(job: Job) -> None:
    """Nothing at all."""


def _result(job: Job, kind: str, digest: str) -> dict[str, Any]:
    name = encode_path(os.path.basename(decode_path(job.args["path"])))
    return {"name": name, "kind": kind, "digest": digest, "attempt": job.attempt}


def _begin(job: Job) -> None:
    """Note the attempt in the journal; then wait at the gate, if the job is one that waits."""
    journal = os.environ.get(JOURNAL_VARIABLE)
    if journal:
        line = f"{job.id} {job.attempt} {os.getpid()}\n"
        handle = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line.encode())  # one short write: lines of two workers never mix
        finally:
            os.close(handle)
    gate = os.environ.get(GATE_VARIABLE)
    while gate and job.args.get("wait") and not Path(gate).exists() and not job.canceled:
        time.sleep(GATE_POLL_S)
