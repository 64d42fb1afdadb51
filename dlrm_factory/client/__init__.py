"""Asks a served model for scores. Needs httpx, NumPy and filelock, not torch; a server host has no use for it."""

from dlrm_factory.client.answers import Explanation, ModelDescription, RankedCandidate
from dlrm_factory.client.async_client import AsyncDLRMClient
from dlrm_factory.client.errors import (
    ClientError,
    InvalidRequest,
    ModelNotFound,
    NotReachable,
    Overloaded,
    Problem,
    ServerFault,
    TimedOut,
    TooLarge,
    Unauthorized,
)
from dlrm_factory.client.retrying import Retry
from dlrm_factory.client.sync_client import DLRMClient

__all__ = [
    "AsyncDLRMClient",
    "ClientError",
    "DLRMClient",
    "Explanation",
    "InvalidRequest",
    "ModelDescription",
    "ModelNotFound",
    "NotReachable",
    "Overloaded",
    "Problem",
    "RankedCandidate",
    "Retry",
    "ServerFault",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
]
