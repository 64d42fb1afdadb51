"""Sharded TorchRec deep learning recommendation models, from declaration to served scores.

All that the command line does is here for Python: `train`, `tune`, `import_weights`, `evaluate`, `archive_model`,
`verify`, `stage`, `start_server` and what they take. An archive carries no tools, so on a server's own code those
names are missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dlrm_factory._version import __version__ as __version__

if TYPE_CHECKING:
    from dlrm_factory.batch import FeatureBatch
    from dlrm_factory.config import DLRMDeclaration, criteo, dump_declaration, preset, read_declaration
    from dlrm_factory.errors import DLRMError, LimitError, RequestError, UntrustedCodeError
    from dlrm_factory.factory import BuiltDLRM, DLRMFactory
    from dlrm_factory.model.hardware import Hardware
    from dlrm_factory.scorer import Scorer
    from dlrm_factory.tools.archive.sealing import archive_model
    from dlrm_factory.tools.archive.staging import stage
    from dlrm_factory.tools.archive.verification import verify
    from dlrm_factory.tools.capacity import (
        Capacity,
        Deployment,
        ServingCosts,
        ServingHosts,
        best_use,
        capacity_of,
        hosts_for,
        traffic_of,
    )
    from dlrm_factory.tools.evaluation import EvaluationSource, evaluate, write_report
    from dlrm_factory.tools.importing import first_declaration, import_weights
    from dlrm_factory.tools.init import draft_declaration
    from dlrm_factory.tools.join import JoinOptions, join_leader
    from dlrm_factory.tools.monitoring.exporter import read_metrics
    from dlrm_factory.tools.monitoring.labels import join_labels
    from dlrm_factory.tools.monitoring.status import read_status
    from dlrm_factory.tools.plan_picture import draw_plan
    from dlrm_factory.tools.rollout import RolloutBounds, RolloutOptions, roll_back, roll_out
    from dlrm_factory.tools.server import ServeOptions, health_of, scale_workers, start_server, stop_server
    from dlrm_factory.tools.sidecar.autoscaling import AutoscaleSettings, autoscale_model
    from dlrm_factory.tools.training import train
    from dlrm_factory.tools.tuning import draw_tuning, tune
    from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint

_HOMES = {
    "AutoscaleSettings": "tools.sidecar.autoscaling",
    "BuiltDLRM": "factory",
    "Capacity": "tools.capacity",
    "DLRMDeclaration": "config",
    "DLRMError": "errors",
    "DLRMFactory": "factory",
    "Deployment": "tools.capacity",
    "EvaluationSource": "tools.evaluation",
    "FeatureBatch": "batch",
    "Hardware": "model.hardware",
    "JoinOptions": "tools.join",
    "LimitError": "errors",
    "RequestError": "errors",
    "RolloutBounds": "tools.rollout",
    "RolloutOptions": "tools.rollout",
    "Scorer": "scorer",
    "ServeOptions": "tools.server",
    "ServingCosts": "tools.capacity",
    "ServingHosts": "tools.capacity",
    "UntrustedCodeError": "errors",
    "archive_model": "tools.archive.sealing",
    "autoscale_model": "tools.sidecar.autoscaling",
    "best_use": "tools.capacity",
    "capacity_of": "tools.capacity",
    "criteo": "config",
    "draft_declaration": "tools.init",
    "draw_plan": "tools.plan_picture",
    "draw_tuning": "tools.tuning",
    "dump_declaration": "config",
    "evaluate": "tools.evaluation",
    "first_declaration": "tools.importing",
    "health_of": "tools.server",
    "hosts_for": "tools.capacity",
    "import_weights": "tools.importing",
    "join_labels": "tools.monitoring.labels",
    "join_leader": "tools.join",
    "open_checkpoint": "weights.checkpoint",
    "preset": "config",
    "read_declaration": "config",
    "read_metrics": "tools.monitoring.exporter",
    "read_status": "tools.monitoring.status",
    "roll_back": "tools.rollout",
    "roll_out": "tools.rollout",
    "save_checkpoint": "weights.checkpoint",
    "scale_workers": "tools.server",
    "stage": "tools.archive.staging",
    "start_server": "tools.server",
    "stop_server": "tools.server",
    "traffic_of": "tools.capacity",
    "train": "tools.training",
    "trust_code": "config.trust",
    "tune": "tools.tuning",
    "verify": "tools.archive.verification",
    "write_report": "tools.evaluation",
}

__all__ = [
    "AutoscaleSettings",
    "BuiltDLRM",
    "Capacity",
    "DLRMDeclaration",
    "DLRMError",
    "DLRMFactory",
    "Deployment",
    "EvaluationSource",
    "FeatureBatch",
    "Hardware",
    "JoinOptions",
    "LimitError",
    "RequestError",
    "RolloutBounds",
    "RolloutOptions",
    "Scorer",
    "ServeOptions",
    "ServingCosts",
    "ServingHosts",
    "UntrustedCodeError",
    "archive_model",
    "autoscale_model",
    "best_use",
    "capacity_of",
    "criteo",
    "draft_declaration",
    "draw_plan",
    "draw_tuning",
    "dump_declaration",
    "evaluate",
    "first_declaration",
    "health_of",
    "hosts_for",
    "import_weights",
    "join_labels",
    "join_leader",
    "open_checkpoint",
    "preset",
    "read_declaration",
    "read_metrics",
    "read_status",
    "roll_back",
    "roll_out",
    "save_checkpoint",
    "scale_workers",
    "stage",
    "start_server",
    "stop_server",
    "traffic_of",
    "train",
    "trust_code",
    "tune",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: most of it brings torch, and `dlrm --help` need not wait for that.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
