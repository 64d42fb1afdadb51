"""Runs TorchServe and talks to it: start, stop, scale, predict. ``ts`` is not imported."""

from dlrm_factory.serving.draining import Drain
from dlrm_factory.serving.failures import LogMarks
from dlrm_factory.serving.management import ManagementClient, error_text
from dlrm_factory.serving.predicting import Endpoint, find_endpoint, predict, probe_of
from dlrm_factory.serving.readiness import Progress
from dlrm_factory.serving.rundir import RunDir, ServerState
from dlrm_factory.serving.scaling import Scaled, scale_model
from dlrm_factory.serving.server import (
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
    "Progress",
    "RunDir",
    "RunningServer",
    "Scaled",
    "ServeOptions",
    "ServerState",
    "error_text",
    "find_endpoint",
    "management_client",
    "predict",
    "probe_of",
    "running_server",
    "scale_model",
    "start_server",
    "stop_server",
]
