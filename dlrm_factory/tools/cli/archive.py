"""``dlrm archive``, ``verify`` and ``stage``: a checkpoint → an archive, and its proof without a server."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from dlrm_factory.config import format_bytes
from dlrm_factory.tools.archive.listing import read_archive_listing
from dlrm_factory.tools.cli.progress import byte_progress, show_compiling
from dlrm_factory.tools.cli.tables import wide_console
from dlrm_factory.weights.seal import REFERENCE_FILE

if TYPE_CHECKING:
    from dlrm_factory.tools.archive.findings import EngineDrift, Verification
    from dlrm_factory.tools.archive.group_replay import GroupReplay

__all__ = [
    "archive",
    "stage",
    "verify",
]

MaxAucLoss = Annotated[
    float,
    typer.Option(
        min=0,
        help="The most AUC that serving may lose against the trained model. A larger loss passes, and is told of, "
        "where so few held-out samples can show it by chance (its 95 % interval holds 0); --strict refuses it.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Refuse what is over a bound also where it may be chance: AUC lost, and the top 10 of fewer than 5 "
        "rankings.",
    ),
]
MaxDrift = Annotated[
    float,
    typer.Option(min=0, help="The most that golden probabilities may be from trained ones, on average."),
]
MaxDifference = Annotated[
    float,
    typer.Option(
        min=0,
        help="The most that a compiled probability may be from the eager one, or from the same in another batch.",
    ),
]
MinOverlap = Annotated[
    float,
    typer.Option(min=0, max=1, help="The least share of the eager top 10 that the compiled one must have."),
]


def stage(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Checkpoint (.safetensors), or a folder of sealed weights.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder to write; must not exist or be empty.", show_default=False
        ),
    ],
    model_name: Annotated[str, typer.Option(help="Of the archive in the command that is printed.")] = "dlrm",
    version: Annotated[str, typer.Option(help="Of the archive in the command that is printed.")] = "1.0",
    export_path: Annotated[Path, typer.Option(help="Model store in the command that is printed.")] = Path(
        "model_store"
    ),
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a folder staged before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print folder and command as JSON.")] = False,
) -> None:
    """Write an archive's content into a folder, for torch-model-archiver; prints the command."""
    # Brings torch, which `dlrm --help` need not wait for.
    from dlrm_factory.tools.archive.sealing import check_names
    from dlrm_factory.tools.archive.staging import archiver_command
    from dlrm_factory.tools.archive.staging import stage as stage_archive

    check_names(model_name, version)
    # Asked for first: a folder that the command cannot use is refused before the work.
    command = archiver_command(output, model_name=model_name, version=version, export_path=export_path)
    with byte_progress("staging") as progress:
        stage_archive(checkpoint, output, force=force, progress=progress)
    if as_json:
        typer.echo(json.dumps({"folder": str(output), "command": command}))
    else:
        typer.echo(f"staged {output}; make the archive with\n{command}")


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
    strict: Strict = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an archive that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make a self-contained archive: code, declaration, weights, golden requests, settings for TorchServe."""
    # Brings torch, which `dlrm --help` need not wait for.
    from dlrm_factory.tools.archive.sealing import archive_model

    suffix = ".mar" if archive_format == "default" else ""
    output = output or Path("model_store") / f"{model_name}{suffix}"
    with byte_progress("archiving") as progress, show_compiling(Console(stderr=True)):
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
            strict=strict,
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
        about = _as_json(found, max_auc_loss, min_overlap) if found else {}
        kept = ("engines", "compiled", "precision", "eager_reason", "max_auc_loss", "min_overlap", "remarks")
        made |= {"bytes": listing.total_bytes, "files": listing.files, "strict": strict}
        typer.echo(json.dumps(made | {name: about.get(name) for name in kept}))
        return
    typer.echo(f"made {output}: model {model_name} {version}, {format_bytes(listing.total_bytes)} unpacked")
    if REFERENCE_FILE not in listing.files:
        typer.echo("it has no reference of drift, which takes 1,000 held-out samples (docs/metrics.md)")
    if found:
        _print_findings(found, max_auc_loss, min_overlap)


def _print_findings(found: Verification, max_auc_loss: float, min_overlap: float) -> None:
    if found.goldens:
        typer.echo(
            f"{found.goldens.requests} golden requests reproduced, the largest difference "
            f"{max(found.goldens.largest.values()):.1e}"
        )
    for engine in found.engines:
        typer.echo(
            f"{engine.engine}: AUC {engine.auc:.4f}, {engine.auc_loss:+.5f} lost against the trained model; "
            f"{engine.ties:,} of {found.samples:,} answers tie"
        )
        if engine.float32_auc_loss > max(max_auc_loss, engine.auc_loss):
            typer.echo(_float32_line(engine))
    if found.compiled:
        overlap = found.compiled.top_10_overlap
        same = "" if overlap is None else f", {100 * overlap:.2f}% of the top 10 the same"
        typer.echo(
            f"compiled in {found.precision}: within {found.compiled.max_difference:.1e} of eager, and within "
            f"{found.compiled.batch_difference:.1e} in any batch{same}"
        )
    _print_remarks(found, max_auc_loss, min_overlap)


def verify(
    archive: Annotated[
        Path, typer.Argument(help="A .mar, a .tar.gz, or a folder of an archive or of sealed weights.")
    ],
    max_auc_loss: MaxAucLoss = 0.0005,
    max_drift: MaxDrift = 0.02,
    max_difference: MaxDifference = 0.02,
    min_overlap: MinOverlap = 0.9,
    strict: Strict = False,
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Replay the golden requests through a group of so many processes too. Default: as the archive says.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove an archive without a server: every file, its golden requests, served scores against trained ones."""
    # Brings torch, which `dlrm --help` need not wait for.
    from dlrm_factory.tools.archive.verification import verify as verify_archive

    console = Console(stderr=True)
    with console.status(f"verifying {archive}"), show_compiling(console):
        found = verify_archive(archive, ranks=ranks)
    if as_json:
        typer.echo(json.dumps(_as_json(found, max_auc_loss, min_overlap) | {"strict": strict}, indent=2))
    else:
        _print_verification(archive, found)
        _print_remarks(found, max_auc_loss, min_overlap)
        if found.group is not None:
            _print_group(found.group, found.precision)
    found.check(
        max_auc_loss, max_drift, max_difference=max_difference, min_overlap=min_overlap, strict=strict
    )


def _as_json(found: Verification, max_auc_loss: float, min_overlap: float) -> dict[str, Any]:
    """All that was found; of each way of scoring also how its loss stands to the bound."""
    content = asdict(found)
    for engine, drift in zip(content["engines"], found.engines, strict=True):
        engine["auc_verdict"] = drift.verdict(max_auc_loss)
    remarks = found.remarks(max_auc_loss=max_auc_loss, min_overlap=min_overlap)
    return content | {"max_auc_loss": max_auc_loss, "min_overlap": min_overlap, "remarks": remarks}


def _print_remarks(found: Verification, max_auc_loss: float, min_overlap: float) -> None:
    for remark in found.remarks(max_auc_loss=max_auc_loss, min_overlap=min_overlap):
        typer.echo(remark)
    if found.eager_reason is not None:
        typer.echo(f"the dense parts are scored eagerly here: {found.eager_reason}")
    if (sentence := found.precision_sentence) is not None:
        typer.echo(sentence)


def _print_verification(archive: Path, found: Verification) -> None:
    typer.echo(
        f"{archive}: {found.files} files agree with their seal, {found.tables} tables agree with their checksums"
    )
    for sentence in () if found.code is None else found.code.sentences():
        typer.echo(sentence)
    for name, (then, now) in sorted(found.other_versions.items()):
        typer.echo(f"warning: made with {name} {then or '(none)'}, but {now or 'none'} is installed here")
    _print_goldens(found)
    _print_compiled(found)
    if not found.engines:
        typer.echo("no held-out samples travel with it, so its AUC was not compared")
        return
    table = Table("", "AUC", "AUC lost", "log-loss", "mean difference", "max difference", "ties")
    table.add_row("as trained", f"{found.float_auc:.5f}", "", f"{found.float_log_loss:.5f}", "", "", "")
    for drift in found.engines:
        table.add_row(
            _engine(drift.engine, found.precision),
            f"{drift.auc:.5f}",
            f"{drift.auc_loss:+.5f}",
            f"{drift.log_loss:.5f}",
            f"{drift.mean_difference:.1e}",
            f"{drift.max_difference:.1e}",
            f"{drift.ties:,}",
        )
    wide_console().print(table)
    typer.echo(f"over {found.samples:,} held-out samples, of the probabilities that JSON answers hold")
    for drift in found.engines:
        typer.echo(_float32_line(drift))


def _float32_line(drift: EngineDrift) -> str:
    return (
        f"{drift.engine}, probabilities sent as float32 (Arrow, binary KServe): {drift.float32_auc_loss:+.5f} AUC "
        f"lost, {drift.float32_ties:,} tie"
    )


def _print_goldens(found: Verification) -> None:
    goldens = found.goldens
    if goldens is None:
        typer.echo("no golden requests travel with it, so its scores are not proven")
        return
    engines = "; ".join(
        f"{_engine(name, found.precision)} within {largest:.1e}" for name, largest in goldens.largest.items()
    )
    typer.echo(
        f"{goldens.requests} golden requests ({goldens.real} real) reproduced, alone and in a batch: {engines}"
    )
    if goldens.mean_drift is not None:
        typer.echo(
            f"their probabilities are {goldens.mean_drift:.1e} from the trained model's on average, "
            f"{goldens.max_drift:.1e} at most"
        )


def _print_group(group: GroupReplay, precision: str) -> None:
    table = Table(
        f"{group.ranks} ranks", "golden requests", "largest difference", title="one model, a group of ranks"
    )
    for name, largest in group.largest.items():
        table.add_row(_engine(name, precision), str(group.requests), f"{largest:.1e}")
    Console().print(table)
    kinds = Counter(group.shardings.values())
    placed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    held = ", ".join(format_bytes(size) for size in group.rank_bytes)
    typer.echo(f"tables: {placed}; bytes by rank: {held}")


def _print_compiled(found: Verification) -> None:
    compiled = found.compiled
    if compiled is None:
        return
    line = f"compiled scores ({found.precision}) are within {compiled.max_difference:.1e} of the eager probabilities"
    if compiled.top_10_overlap is not None:
        line += f", and {100 * compiled.top_10_overlap:.2f}% of the top 10 are the same, over {compiled.rankings:,} "
        line += "rankings of 100 held-out samples"
    typer.echo(line)
    typer.echo(f"a sample's compiled score is the same within {compiled.batch_difference:.1e} in any batch")


def _engine(name: str, precision: str) -> str:
    return f"compiled, {precision}" if name == "compiled" else name
