"""Description of the model: its inputs and outputs, the places of its tables, and its packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.weights.seal import installed_versions

__all__ = ["describe"]

_LIMITS = ("max_samples", "max_body_bytes")


def describe(
    declaration: DLRMDeclaration,
    *,
    plan: Mapping[str, Any] | None = None,
    model_name: str = "dlrm",
    model_version: str | None = None,
) -> dict[str, Any]:
    """The model's schema, limits, plan and versions, as plain values.

    ``name``, ``versions``, ``platform``, ``inputs`` and ``outputs`` are the metadata of KServe v2. ``plan``: where
    the tables lie, if it is known.
    """
    return {
        "name": model_name,
        "versions": [] if model_version is None else [model_version],
        "platform": "torchserve_dlrm",
        "inputs": _tensors(declaration),
        "outputs": [
            {"name": each.name, "datatype": "FP32", "shape": [-1] if each.size is None else [-1, each.size]}
            for each in declaration.all_outputs
        ],
        "default_outputs": declaration.default_outputs,
        "rank_by": declaration.serving.rank_by,
        "architecture": _architecture(declaration),
        "dense_features": _plain(declaration.dense_features),
        "sparse_features": _plain(declaration.sparse_features),
        "tables": _plain(declaration.tables),
        "limits": {name: getattr(declaration.serving, name) for name in _LIMITS},
        "batching": {
            "batch_size": declaration.serving.batch_requests,
            "max_batch_delay_ms": declaration.serving.batch_delay_ms,
        },
        "plan": plan,
        "package_versions": installed_versions(also=("torchserve",)),
    }


def _architecture(declaration: DLRMDeclaration) -> Any:
    """Name of the architecture; of a module of the user's own how it is declared, without its text."""
    module = declaration.module
    if module is None:
        return declaration.architecture
    return {"module": module.module, "arguments": module.arguments, "files": module.files}


def _tensors(declaration: DLRMDeclaration) -> list[dict[str, Any]]:
    dense = [{"name": name, "datatype": "FP32", "shape": [-1]} for name in declaration.dense_names]
    sparse = [
        {
            "name": feature.name,
            "datatype": "INT64" if feature.ids == "index" else "BYTES",
            "shape": [-1, -1],
        }
        for feature in declaration.sparse_features
    ]
    return dense + sparse


def _plain(structs: Any) -> Any:
    """Plain values of ``structs``, without fields that are not given."""
    return [
        {key: value for key, value in one.items() if value is not None}
        for one in msgspec.to_builtins(structs)
    ]
