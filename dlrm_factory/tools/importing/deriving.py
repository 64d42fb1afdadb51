"""A first declaration from the shapes of weights, for a user who has none."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dlrm_factory.config.checks import problems_of
from dlrm_factory.config.declaration import Architecture, DenseFeature, DLRMDeclaration, SparseFeature, Table
from dlrm_factory.errors import WeightsError
from dlrm_factory.model.model import EMBEDDINGS_PREFIX, make_model
from dlrm_factory.tools.importing.dlrm_s_pytorch import interaction_problem
from dlrm_factory.tools.importing.matching import Named

__all__ = ["derive_declaration"]

Shapes = Mapping[str, tuple[int, ...]]

_MAX_DENSE = 100_000

_PATTERNS: dict[str, tuple[str, str, str]] = {  # (tables, bottom layers, top layers), of weights
    "torchrec": (
        rf"{re.escape(EMBEDDINGS_PREFIX)}\.(.+)\.weight",
        r"dense_arch\.model\._mlp\.(\d+)\._linear\.weight",
        r"over_arch\.model\.0\._mlp\.(\d+)\._linear\.weight",
    ),
    "dlrm_s_pytorch": (r"emb_l\.(\d+)\.weight", r"bot_l\.(\d+)\.weight", r"top_l\.(\d+)\.weight"),
    "snapshot": (
        r"tables/(.+)/weight",
        r"dense/dense_arch\.model\._mlp\.(\d+)\._linear\.weight",
        r"dense/over_arch\.model\.0\._mlp\.(\d+)\._linear\.weight",
    ),
}
_LAST = r"(?:dense/)?over_arch\.model\.(1)\.weight"  # dlrm_s_pytorch's is one of the top layers
_BRANCH = r"(?:dense/)?inter_arch\.interaction_branch{}\.model\._mlp\.(\d+)\._linear\.weight"


def derive_declaration(named: Named, place: str) -> DLRMDeclaration:
    """Sizes are the weights'; names come from their names, and the rest is a default to be looked over.

    A feature a table; its ids are rows, its bags are summed. WeightsError if the shapes are of no model that can be
    declared so.
    """
    shapes = {name: weight.shape for name, weight in named.weights.items()}
    tables, bottom, top = (_found(pattern, shapes) for pattern in _PATTERNS[named.naming])
    if not (tables and bottom and top) or any(
        len(s) != 2 for s in [*tables.values(), *bottom.values(), *top.values()]
    ):
        raise WeightsError(
            f"{place}: tables, bottom MLP and top MLP cannot be told from its weights; write the declaration by hand"
        )
    if _first(bottom)[1] > _MAX_DENSE:
        raise WeightsError(
            f"{place}: its bottom MLP takes {_first(bottom)[1]} numbers; no declaration lists so many"
        )
    names = _in_order(list(tables))
    labels = {name: f"t_cat_{name}" if named.naming == "dlrm_s_pytorch" else name for name in names}
    branches = {i: _sizes(_found(_BRANCH.format(i), shapes)) for i in (1, 2)}
    kernels = sorted(name for name in shapes if "inter_arch.crossnet.W_kernels." in name)
    architecture: Architecture = "dlrm_dcn" if kernels else "dlrm_projection" if branches[1] else "dlrm"
    declaration = DLRMDeclaration(
        architecture=architecture,
        dense_arch_layer_sizes=_sizes(bottom),
        over_arch_layer_sizes=_sizes(top) + _sizes(_found(_LAST, shapes)),
        dcn_num_layers=len(kernels) or None,
        dcn_low_rank_dim=shapes[kernels[0]][-1] if kernels else None,
        interaction_branch1_layer_sizes=branches[1] or None,
        interaction_branch2_layer_sizes=branches[2] or None,
        dense_features=[DenseFeature(name=f"dense_{i}") for i in range(_first(bottom)[1])],
        sparse_features=[SparseFeature(name=labels[n].removeprefix("t_"), table=labels[n]) for n in names],
        tables=[
            Table(name=labels[name], num_embeddings=tables[name][0], embedding_dim=tables[name][1])
            for name in names
        ],
    )
    _check(declaration, shapes, named, _first(top)[1], place)
    return declaration


def _check(declaration: DLRMDeclaration, shapes: Shapes, named: Named, width: int, place: str) -> None:
    if named.naming == "dlrm_s_pytorch":
        problem = interaction_problem(width, len(declaration.tables), declaration.embedding_dim)
        if problem:
            raise WeightsError(f"{place}: {problem}")
    problems = problems_of(declaration)
    if problems:
        raise WeightsError(
            f"{place}: its weights give no valid declaration\n" + "\n".join(f"  {p}" for p in problems[:20])
        )
    expected = make_model(declaration, dense_device="meta").state_dict()[
        "over_arch.model.0._mlp.0._linear.weight"
    ]
    if expected.shape[1] != width:
        raise WeightsError(
            f"{place}: its top MLP takes {width} inputs, but a feature a table gives {expected.shape[1]}: some tables "
            "serve several features. Which, the weights do not say: write the declaration by hand"
        )


def _found(pattern: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    matches = ((re.fullmatch(pattern, name), shape) for name, shape in shapes.items())
    return {match.group(1): shape for match, shape in matches if match}


def _first(layers: Shapes) -> tuple[int, ...]:
    return layers[min(layers, key=int)]


def _sizes(layers: Shapes) -> list[int]:
    return [layers[i][0] for i in sorted(layers, key=int)]


def _in_order(names: list[str]) -> list[str]:
    """Names in the file's order; if they are sorted as text, 10 before 2, as a sharded model's are, by number."""
    if names != sorted(names):
        return names
    return sorted(
        names, key=lambda name: [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]
    )
