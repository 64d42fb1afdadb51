"""Front door of the client: asks a served model for scores. The client needs httpx, NumPy and filelock, not torch."""

from dlrm_factory.tools.client.calls import Explanation, ModelDescription, RankedCandidate
from dlrm_factory.tools.client.canary import Canary
from dlrm_factory.tools.client.clients import AsyncDLRMClient, DLRMClient
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

__all__ = [
    "AsyncDLRMClient",
    "Canary",
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
