"""Front door of the client: asks a served model for scores. It needs httpx, NumPy and filelock, not torch."""

from dlrm_factory.tools.client.answers import Explanation, ModelDescription, RankedCandidate
from dlrm_factory.tools.client.async_client import AsyncDLRMClient
from dlrm_factory.tools.client.errors import (
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
from dlrm_factory.tools.client.retrying import Retry
from dlrm_factory.tools.client.sync_client import DLRMClient

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
