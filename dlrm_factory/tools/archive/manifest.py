"""MAR-INF/MANIFEST.json, made by torch-model-archiver itself."""

from __future__ import annotations

import json
import os
import re
import warnings
from datetime import datetime, timezone

from dlrm_factory.errors import ArchiveError
from dlrm_factory.tools.archive.model_config import MODEL_CONFIG_FILE
from dlrm_factory.tools.archive.packing import HANDLER_FILE
from dlrm_factory.weights.seal import MANIFEST

__all__ = ["MANIFEST", "check_names", "manifest_json"]

# The archiver's own rule for model names; a version is a part of URLs.
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*")
_VERSION = re.compile(r"[A-Za-z0-9_\-.]+")


def check_names(model_name: str, version: str) -> None:
    """ArchiveError for a model name or version that TorchServe's addresses cannot carry."""
    if not _MODEL_NAME.fullmatch(model_name):
        raise ArchiveError(
            f'model name "{model_name}": use letters, digits, "_", "-" and ".", '
            "and start with a letter or digit"
        )
    if not _VERSION.fullmatch(version):
        raise ArchiveError(f'version "{version}": use letters, digits, "_", "-" and "."')


def manifest_json(model_name: str, version: str) -> str:
    """The manifest's text. ``SOURCE_DATE_EPOCH``, in seconds, replaces the time of creation."""
    with warnings.catch_warnings():
        # The archiver leaves its version file open when it is imported.
        warnings.simplefilter("ignore", ResourceWarning)
        from model_archiver.model_archiver_config import ModelArchiverConfig
        from model_archiver.model_packaging_utils import ModelExportUtils
    config = ModelArchiverConfig(
        model_name=model_name, version=version, handler=HANDLER_FILE, config_file=MODEL_CONFIG_FILE
    )
    manifest = json.loads(ModelExportUtils.generate_manifest_json(config))
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        moment = datetime.fromtimestamp(int(epoch), tz=timezone.utc)
        manifest["createdOn"] = moment.strftime("%d/%m/%Y %H:%M:%S")
    return json.dumps(manifest, indent=2)
