"""Numbers of ranks that models are served with: as their archives say, or as `dlrm serve --ranks` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dlrm_factory.errors import ArchiveError, ServingError, WeightsError
from dlrm_factory.tools.archive.model_config import MODEL_CONFIG_FILE, ranks_of, with_ranks
from dlrm_factory.tools.archive.reading import read_archive_declaration, unpack_archive
from dlrm_factory.tools.server.store import ServedModel
from dlrm_factory.weights.seal import read_seal, write_seal

__all__ = ["with_other_ranks"]


def with_other_ranks(models: Sequence[ServedModel], ranks: int | None, folder: Path) -> list[ServedModel]:
    """``models``, each with ``ranks`` ranks a worker; None leaves them as their archives say.

    TorchServe knows the number from an archive's model-config.yaml alone. So an archive with another one is unpacked
    into ``folder``, as TorchServe would unpack it elsewhere, and served from there with a file of its own.

    ServingError if an archive was not made by dlrm, or wants several hosts and ``ranks`` is not given.
    """
    if ranks is None:
        for model in models:
            _check_hosts(model)
        return list(models)
    return [_with_ranks(model, ranks, folder / model.name) for model in models]


def _check_hosts(model: ServedModel) -> None:
    try:
        sharding = read_archive_declaration(model.path).sharding
    except ArchiveError:
        return  # a model of another kind, or one whose worker says what is wrong
    if sharding.hosts > 1:
        raise ServingError(
            f'model "{model.name}" declares {sharding.world_size} ranks on {sharding.hosts} hosts, and groups are '
            f"served on one host so far; give --ranks {sharding.world_size}, or fewer, to serve it on this one"
        )


def _with_ranks(model: ServedModel, ranks: int, folder: Path) -> ServedModel:
    try:
        if ranks_of(model.path) == ranks:
            return model
        folder.mkdir(parents=True)
        unpack_archive(model.path, folder, remedy="give --run-dir on another disk")
        _change_ranks(folder, ranks)
    except (ArchiveError, WeightsError) as error:
        raise ServingError(f'model "{model.name}" cannot be served with other ranks: {error}') from None
    return replace(model, location=str(folder), path=folder)


def _change_ranks(folder: Path, ranks: int) -> None:
    """Replace model-config.yaml, and its place in the seal, which holds for all else as before."""
    seal = read_seal(folder)
    seal.check(folder)
    config = folder / MODEL_CONFIG_FILE
    text = config.read_text(encoding="utf-8")
    # It may be a link to the archive's own.
    config.unlink()
    config.write_text(with_ranks(text, ranks), encoding="utf-8")
    write_seal(
        folder,
        list(seal.files),
        versions=seal.versions,
        training=seal.training,
        evaluation=seal.evaluation,
    )
