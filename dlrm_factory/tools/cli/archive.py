"""``dlrm archive``: a checkpoint → the archive that TorchServe loads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from dlrm_factory.config import format_bytes
from dlrm_factory.tools.cli.byte_progress import byte_progress
from dlrm_factory.tools.cli.quality_bounds import MaxAucLoss, MaxDifference, MaxDrift, MinOverlap
from dlrm_factory.tools.cli.waiting import telling_of_compiling

__all__ = ["archive"]


def archive(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Checkpoint (.safetensors), or a folder of sealed weights.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="[default: model_store/MODEL_NAME.mar]")
    ] = None,
    model_name: Annotated[str, typer.Option(help="As in /predictions/MODEL_NAME.")] = "dlrm",
    version: Annotated[str, typer.Option(help="The model's version.")] = "1.0",
    archive_format: Annotated[
        Literal["default", "directory"],
        typer.Option("--format", help="default: one .mar file. directory: a folder, served without a copy."),
    ] = "default",
    max_auc_loss: MaxAucLoss = 0.0005,
    max_drift: MaxDrift = 0.02,
    max_difference: MaxDifference = 0.02,
    min_overlap: MinOverlap = 0.9,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an archive that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make a self-contained archive: code, declaration, weights, golden requests, settings for TorchServe."""
    # Brings torch, which `dlrm --help` need not wait for.
    from dlrm_factory.requests.replay import replay_with
    from dlrm_factory.tools.archive import archive_model, read_archive_listing

    suffix = ".mar" if archive_format == "default" else ""
    output = output or Path("model_store") / f"{model_name}{suffix}"
    with byte_progress("archiving") as progress, telling_of_compiling(Console(stderr=True)):
        found = archive_model(
            checkpoint,
            output,
            model_name=model_name,
            version=version,
            archive_format=archive_format,
            force=force,
            max_auc_loss=max_auc_loss,
            max_drift=max_drift,
            max_difference=max_difference,
            min_overlap=min_overlap,
            replay=replay_with,
            progress=progress,
        )
    listing = read_archive_listing(output)
    if as_json:
        made: dict[str, Any] = {
            "path": str(output),
            "model_name": model_name,
            "version": version,
            "format": archive_format,
        }
        drift = [asdict(engine) for engine in found.engines] if found else []
        compiled = asdict(found.compiled) if found and found.compiled else None
        made |= {"bytes": listing.total_bytes, "files": listing.files, "engines": drift, "compiled": compiled}
        typer.echo(json.dumps(made))
        return
    typer.echo(f"made {output}: model {model_name} {version}, {format_bytes(listing.total_bytes)} unpacked")
    if found and found.goldens:
        typer.echo(
            f"{found.goldens.requests} golden requests reproduced, the largest difference "
            f"{max(found.goldens.largest.values()):.1e}"
        )
    for engine in found.engines if found else ():
        typer.echo(
            f"{engine.engine}: AUC {engine.auc:.4f}, {engine.auc_loss:+.5f} lost against the trained model"
        )
    if found and found.compiled:
        overlap = found.compiled.top_10_overlap
        same = "" if overlap is None else f", {100 * overlap:.2f}% of the top 10 the same"
        typer.echo(
            f"compiled in {found.precision}: within {found.compiled.max_difference:.1e} of eager{same}"
        )
