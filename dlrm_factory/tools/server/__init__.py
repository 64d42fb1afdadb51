"""Runs TorchServe and talks to it: start, stop, scale, predict. ``ts`` is not imported."""

from dlrm_factory.tools.server.management import ManagementClient, ModelVersion, error_text
from dlrm_factory.tools.server.predicting import Endpoint, find_endpoint, predict, probe_of
from dlrm_factory.tools.server.readiness import LogMarks, Progress
from dlrm_factory.tools.server.rundir import RunDir, ServerState
from dlrm_factory.tools.server.scaling import Drain, Scaled, core_oversubscription, scale_model, scale_workers
from dlrm_factory.tools.server.server import (
    RunningServer,
    ServeOptions,
    management_client,
    running_server,
    start_server,
    stop_server,
)

__all__ = [
    "Drain",
    "Endpoint",
    "LogMarks",
    "ManagementClient",
    "ModelVersion",
    "Progress",
    "RunDir",
    "RunningServer",
    "Scaled",
    "ServeOptions",
    "ServerState",
    "core_oversubscription",
    "error_text",
    "find_endpoint",
    "management_client",
    "predict",
    "probe_of",
    "running_server",
    "scale_model",
    "scale_workers",
    "start_server",
    "stop_server",
]
