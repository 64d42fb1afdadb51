"""Peculiarities of models of facebookresearch/dlrm's dlrm_s_pytorch.py.

Interaction there has the dot products of TorchRec's in another order, so the columns of the first top
layer trade places.
Both codes end the bottom MLP in a ReLU; the top MLP there ends in a sigmoid, TorchRec's in the logit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import WeightsError

__all__ = ["check_supported", "interaction_columns", "interaction_problem", "source_columns"]

FIRST_TOP_LAYER = "over_arch.model.0._mlp.0._linear.weight"


def interaction_columns(tables: int, embedding_dim: int) -> list[int]:
    """Map each column of TorchRec's first top layer to the source's column with the same input.

    With v[0] the bottom MLP's output and v[1], v[2], … the tables': TorchRec pairs (0, 1), (0, 2), …, (1, 2), …, row by
    row above the diagonal; the source (1, 0), (2, 0), (2, 1), …, row by row below it. The first embedding_dim
    columns are the bottom MLP's output in both.
    """
    pairs = [(a, b) for a in range(tables + 1) for b in range(a + 1, tables + 1)]
    return [*range(embedding_dim), *(embedding_dim + b * (b - 1) // 2 + a for a, b in pairs)]


def source_columns(tables: int, embedding_dim: int) -> list[int]:
    """The other way: for each column of the source's, TorchRec's."""
    columns = interaction_columns(tables, embedding_dim)
    back = [0] * len(columns)
    for ours, theirs in enumerate(columns):
        back[theirs] = ours
    return back


def interaction_problem(width: int, tables: int, embedding_dim: int) -> str | None:
    """Problem of importing a first top layer of ``width`` inputs; None if there is none."""
    pairs = tables * (tables + 1) // 2
    if width == embedding_dim + pairs:
        return None
    if width == embedding_dim + pairs + tables + 1:
        return (
            "was trained with --arch-interaction-itself, whose squares TorchRec's interaction does not have"
        )
    if width == embedding_dim * (tables + 1):
        return "was trained with --arch-interaction-op=cat, which TorchRec's DLRM does not have"
    return (
        f"takes {width} inputs in its top MLP, but {tables} tables of {embedding_dim} columns give "
        f"{embedding_dim + pairs}"
    )


def check_supported(names: Sequence[str], place: str) -> None:
    """WeightsError, with what to do, if the names are those of an embedding that TorchRec's DLRM does not have."""
    for reason, found in _peculiar(names).items():
        if found:
            raise WeightsError(f"{place}: {reason} ({found[0]})")


def check_declared(declaration: DLRMDeclaration, shapes: Mapping[str, tuple[int, ...]], place: str) -> None:
    """WeightsError if the declared model cannot be one of dlrm_s_pytorch."""
    if declaration.architecture != "dlrm":
        raise WeightsError(f"{place}: is of dlrm_s_pytorch, which has architecture dlrm alone; declare that")
    means = [table.name for table in declaration.tables if table.pooling != "sum"]
    if means:
        raise WeightsError(
            f"{place}: dlrm_s_pytorch sums its bags; declare pooling: sum for {', '.join(means[:5])}"
        )
    shared = [table.name for table in declaration.tables if len(declaration.features_of(table.name)) > 1]
    if shared:
        raise WeightsError(
            f"{place}: dlrm_s_pytorch has a table for each feature, but several features use {', '.join(shared[:5])}"
        )
    first = shapes.get("top_l.0.weight")
    if first is not None and len(first) == 2:
        problem = interaction_problem(first[1], len(declaration.tables), declaration.embedding_dim)
        if problem:
            raise WeightsError(f"{place}: {problem}")


def _peculiar(names: Sequence[str]) -> dict[str, list[str]]:
    return {
        "has quotient-remainder embeddings (--qr-flag), which TorchRec's DLRM does not have; train it "
        "with plain tables": [n for n in names if n.endswith((".weight_q", ".weight_r"))],
        "has mixed-dimension embeddings (--md-flag), which TorchRec's DLRM does not have; multiply them out: "
        "emb_l.N.weight = embs.weight @ proj.weight.T": [
            n for n in names if n.startswith("emb_l.") and (".embs." in n or ".proj." in n)
        ],
        "has a learned weight for each row (--weighted-pooling); multiply it in, emb_l.N.weight * v_W_l.N[:, None], "
        "and save without v_W_l": [n for n in names if n.startswith("v_W_l.")],
        "is quantised; import the float model it was made from": [
            n for n in names if "_packed_params" in n or n.endswith((".scale", ".zero_point"))
        ],
    }
