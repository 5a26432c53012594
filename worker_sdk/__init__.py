"""Pointsman's client and worker: what is embedded in services that enqueue and run jobs."""

from worker_sdk.aio import AsyncClient
from worker_sdk.client import Client
from worker_sdk.errors import (
    BrokerBusy,
    BrokerUnreachable,
    ClientClosed,
    Denied,
    DependencyCycle,
    InternalError,
    InvalidRequest,
    JobCanceled,
    JobConflict,
    JobFailed,
    JobNotExist,
    JobNotReady,
    JobNotRunning,
    NotEncodable,
    PointsmanError,
    ProtocolError,
    TooLarge,
    Unsupported,
    WaitTimeout,
)
from worker_sdk.graph import Dependency, JobSpec
from worker_sdk.ids import new_id
from worker_sdk.job import Job, JobRejected
from worker_sdk.keys import KeyFileError
from worker_sdk.messages import Backoff
from worker_sdk.requests import JobOptions, Page
from worker_sdk.session import SessionJob, WorkerSession
from worker_sdk.status import JobStatus
from worker_sdk.worker import Worker

__all__ = [
    "AsyncClient",
    "Backoff",
    "BrokerBusy",
    "BrokerUnreachable",
    "Client",
    "ClientClosed",
    "Denied",
    "Dependency",
    "DependencyCycle",
    "InternalError",
    "InvalidRequest",
    "Job",
    "JobCanceled",
    "JobConflict",
    "JobFailed",
    "JobNotExist",
    "JobNotReady",
    "JobNotRunning",
    "JobOptions",
    "JobRejected",
    "JobSpec",
    "JobStatus",
    "KeyFileError",
    "NotEncodable",
    "Page",
    "PointsmanError",
    "ProtocolError",
    "SessionJob",
    "TooLarge",
    "Unsupported",
    "WaitTimeout",
    "Worker",
    "WorkerSession",
    "new_id",
]
