"""A checkpoint → the archive that TorchServe loads: a `.mar`, or the same content as a folder."""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dlrm_factory.errors import ArchiveError
from dlrm_factory.tools.archive.model_config import MODEL_CONFIG_FILE
from dlrm_factory.tools.archive.staging import (
    HANDLER_FILE,
    Progress,
    check_replaceable,
    disk_errors,
    fill_stage,
    open_weights,
    partial_beside,
    replace_folder,
)
from dlrm_factory.weights.seal import MANIFEST, read_seal
from dlrm_factory.weights.sealed import reseal

if TYPE_CHECKING:
    from dlrm_factory.tools.archive.findings import Verification

__all__ = [
    "MANIFEST",
    "archive_model",
    "check_names",
]

# The archiver's own rule for model names; a version is a part of URLs.
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*")
_VERSION = re.compile(r"[A-Za-z0-9_\-.]+")

ArchiveFormat = Literal["default", "directory"]
_BLOCK = 8 << 20
# Weights hardly compress, and deflating them takes minutes a gigabyte.
_STORED = (".bin", ".safetensors")
_EPOCH = (1980, 1, 1, 0, 0, 0)


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


def archive_model(
    weights: Path,
    output: Path,
    *,
    model_name: str = "dlrm",
    version: str = "1.0",
    archive_format: ArchiveFormat = "default",
    force: bool = False,
    max_auc_loss: float | None = None,
    max_drift: float | None = None,
    max_difference: float | None = None,
    min_overlap: float | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Verification | None:
    """Make the archive ``output``. The archive appears whole or not at all; an older one stays until then.

    Equal inputs give equal bytes, but for the time of creation in the manifest (see `manifest_json`).

    Args:
        weights: a checkpoint, or a folder of sealed weights.
        output: a file that ends in ``.mar``; for ``directory`` a folder.
        max_auc_loss: the most AUC that serving may lose against the trained model; None does not compare.
        max_drift: the most that golden probabilities may be from the trained model's, on average; None for 0.02.
        max_difference: the most that a compiled probability may be from the eager one; None for 0.02.
        min_overlap: the least share of the eager top 10 that the compiled one must have; None for 0.9.
        strict: refuse what is over a bound also where so few samples may show it by chance.
        progress: called with (bytes written, bytes in all), first of the tables, then of the archive.

    Returns:
        What was found when the sealed weights were compared with the trained ones; None if they were not.

    Raises:
        WeightsError: ``weights`` cannot be used, what is sealed does not give the golden scores, or it scores worse
            than the bounds allow.
        ArchiveError: a bad name, ``output`` is in the way, or the disk is full.
    """
    check_names(model_name, version)
    if archive_format == "directory":
        check_replaceable(output, force=force)
    else:
        _check_file(output, force=force)
    source = open_weights(weights)
    with partial_beside(output) as partial, disk_errors(output):
        fill_stage(source, partial, progress=progress)
        found = None
        if max_auc_loss is not None:
            given = {"max_drift": max_drift, "max_difference": max_difference, "min_overlap": min_overlap}
            bounds = {name: bound for name, bound in given.items() if bound is not None}
            found = _compare(partial, {"max_auc_loss": max_auc_loss, **bounds}, strict=strict)
        (partial / MANIFEST).parent.mkdir()
        (partial / MANIFEST).write_text(manifest_json(model_name, version), encoding="utf-8")
        if archive_format == "directory":
            replace_folder(partial, output)
        else:
            _zip(partial, output, progress)
    return found


def _compare(folder: Path, bounds: Mapping[str, float], *, strict: bool) -> Verification:
    """Verify what is to be packed, and keep the figures in its seal. ``bounds``: of `Verification.check`."""
    # It brings TorchRec and the compiler, which an archive made without it does not need.
    from dlrm_factory.tools.archive.verification import verify_weights

    found = verify_weights(folder)
    found.check(**bounds, strict=strict)
    reseal(folder, read_seal(folder), evaluation=found.evaluation())
    return found


def _check_file(output: Path, *, force: bool) -> None:
    if output.suffix != ".mar":
        # TorchServe takes every other file for a gzipped tar.
        raise ArchiveError(f"{output}: the name of an archive must end in .mar")
    if output.is_dir():
        raise ArchiveError(f"{output}: is a folder; name a file, or choose --format directory")
    if output.exists() and not force:
        raise ArchiveError(f"{output}: exists; give --force to replace it")


def _zip(folder: Path, output: Path, progress: Progress | None) -> None:
    """Zip ``folder`` beside it, remove each file once it is in, and move the zip to ``output``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    total, done = sum(path.stat().st_size for path in files), 0
    partial = folder.with_name(folder.name + ".zip")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for path in files:
                entry = _entry(path, folder)
                with path.open("rb") as source, archive.open(entry, "w") as target:
                    while block := source.read(_BLOCK):
                        target.write(block)
                        done += len(block)
                        if progress:
                            progress(done, total)
                path.unlink()
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _entry(path: Path, folder: Path) -> zipfile.ZipInfo:
    """Names sorted, one date, one mode: equal inputs give equal bytes."""
    entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
    entry.compress_type = zipfile.ZIP_STORED if path.suffix in _STORED else zipfile.ZIP_DEFLATED
    entry.external_attr = 0o100644 << 16
    entry.file_size = path.stat().st_size  # zipfile chooses zip64 by it
    return entry
