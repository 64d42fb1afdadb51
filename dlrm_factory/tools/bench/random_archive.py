"""Archives of random weights: what is measured does not depend on what was learned."""

from __future__ import annotations

from pathlib import Path

from dlrm_factory.config import DLRMDeclaration, criteo, format_bytes
from dlrm_factory.errors import ConfigError
from dlrm_factory.model.dtypes import row_bytes
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.weights.sealed import seal_weights
from dlrm_factory.weights.table_file import Progress

__all__ = ["archive_random_model", "criteo_of_size", "table_bytes"]


def archive_random_model(
    declaration: DLRMDeclaration, folder: Path, progress: Progress | None = None
) -> Path:
    """Seal random weights in ``folder``/sealed, and an archive (a folder, so nothing is copied) beside them."""
    sealed, archive = folder / "sealed", folder / "model_store" / "dlrm"
    seal_weights(RandomWeights(declaration), sealed, progress=progress)
    archive_model(sealed, archive, archive_format="directory")
    return archive


def table_bytes(declaration: DLRMDeclaration) -> int:
    """Bytes of all encoded rows."""
    return sum(t.num_embeddings * row_bytes(t.dtype, t.embedding_dim) for t in declaration.tables)


def criteo_of_size(size: int) -> DLRMDeclaration:
    """The Criteo shape in int8, tables capped so that they take about ``size`` bytes in all.

    ConfigError for more than the whole of Criteo.
    """
    whole = table_bytes(criteo())
    if size > whole:
        raise ConfigError(
            [f"{format_bytes(size)}: the whole Criteo shape has {format_bytes(whole)}; ask for less"]
        )
    low, high = 1, max(table.num_embeddings for table in criteo().tables)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if table_bytes(criteo(cap=middle)) < size else (low, middle)
    return criteo(cap=low)
