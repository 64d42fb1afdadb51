"""The archive's model-config.yaml: how TorchServe runs the model."""

from __future__ import annotations

from dlrm_factory.config import DLRMDeclaration

__all__ = ["MODEL_CONFIG_FILE", "model_config"]

MODEL_CONFIG_FILE = "model-config.yaml"

_HEAD = """\
# How TorchServe runs this model, from `serving` and `sharding.device` of declaration.yaml.
# What stands here wins over config.properties.
"""


def model_config(declaration: DLRMDeclaration) -> str:
    """The file's text: one key of TorchServe's a line, each with its meaning."""
    serving = declaration.serving
    lines: list[tuple[str, int | str, str]] = [
        ("minWorkers", serving.min_workers, "worker processes at start"),
        ("maxWorkers", serving.max_workers, "the most workers TorchServe keeps until it is scaled"),
        ("batchSize", serving.batch_requests, "the most requests handed to a worker at once"),
        ("maxBatchDelay", serving.batch_delay_ms, "ms a batch's first request waits for others"),
        ("responseTimeout", serving.response_timeout_s, "s until a batch fails and its worker is restarted"),
        ("startupTimeout", serving.startup_timeout_s, "s a worker may take to load the model"),
        (
            "deviceType",
            "gpu" if declaration.sharding.device == "cuda" else "cpu",
            "where the model is computed",
        ),
    ]
    return _HEAD + "".join(f"{key}: {value}  # {meaning}\n" for key, value, meaning in lines)
