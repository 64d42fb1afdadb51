"""Numbers of ranks and hosts that models are served with: as their archives say, or as `dlrm serve` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dlrm_factory.errors import ArchiveError, ServingError, WeightsError
from dlrm_factory.tools.archive.model_config import MODEL_CONFIG_FILE, group_of, with_ranks
from dlrm_factory.tools.archive.reading import unpack_archive
from dlrm_factory.tools.server.store import ServedModel
from dlrm_factory.weights.seal import read_seal, read_sealed_declaration, write_seal

__all__ = ["hosts_of", "with_other_ranks"]


def with_other_ranks(
    models: Sequence[ServedModel], ranks: int | None, folder: Path, *, hosts: int | None = None
) -> list[ServedModel]:
    """``models``, each with ``ranks`` ranks a worker on ``hosts`` hosts, 1 if None; no ranks leave them as they are.

    TorchServe knows the number from an archive's model-config.yaml alone. So an archive with another one is unpacked
    into ``folder``, as TorchServe would unpack it elsewhere, and served from there with a file of its own.

    ServingError if an archive was not made by dlrm, or the hosts cannot share the ranks evenly.
    """
    if ranks is None:
        if hosts is not None:
            raise ServingError(f"--hosts {hosts} says how --ranks are spread; give --ranks too")
        return list(models)
    hosts = hosts or 1
    if ranks % hosts:
        raise ServingError(f"{hosts} hosts cannot share {ranks} ranks evenly; give a multiple as --ranks")
    return [_with_ranks(model, ranks, hosts, folder / model.name) for model in models]


def hosts_of(model: ServedModel) -> int:
    """Hosts of the groups that serve ``model``."""
    try:
        return group_of(model.path)[1]
    except ArchiveError:
        return 1  # its worker says what is wrong


def _with_ranks(model: ServedModel, ranks: int, hosts: int, folder: Path) -> ServedModel:
    try:
        if group_of(model.path) == (ranks, hosts):
            return model
        folder.mkdir(parents=True)
        unpack_archive(model.path, folder, remedy="give --run-dir on another disk")
        _change_ranks(folder, ranks, hosts)
    except (ArchiveError, WeightsError) as error:
        raise ServingError(f'model "{model.name}" cannot be served with other ranks: {error}') from None
    return replace(model, location=str(folder), path=folder)


def _change_ranks(folder: Path, ranks: int, hosts: int) -> None:
    """Replace model-config.yaml, and its place in the seal, which holds for all else as before."""
    seal = read_seal(folder)
    seal.check(folder)
    config = folder / MODEL_CONFIG_FILE
    text = config.read_text(encoding="utf-8")
    # It may be a link to the archive's own.
    config.unlink()
    start_s = read_sealed_declaration(folder).serving.startup_timeout_s
    config.write_text(with_ranks(text, ranks, hosts=hosts, startup_timeout_s=start_s), encoding="utf-8")
    write_seal(
        folder,
        list(seal.files),
        versions=seal.versions,
        training=seal.training,
        evaluation=seal.evaluation,
    )
