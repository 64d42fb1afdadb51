"""How each source names the weights of the declared model: tables of names, to be read in both directions."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.model import EMBEDDINGS_PREFIX
from dlrm_factory.tools.importing.snapshots import BEST

__all__ = ["DLRM_S", "SNAPSHOT", "TORCHREC", "Naming", "ignored_names", "names_of", "naming_of"]

Naming = Literal["torchrec", "dlrm_s_pytorch", "snapshot"]

_OURS = f"{EMBEDDINGS_PREFIX}.{{table}}.weight"
_Rule = tuple[str, str]  # (ours, the source's)

# {table}: a table's name; {number}: its place; {name}: all of a name that no other rule has; {i}: a layer, from 0;
# {twice}: 2 * i, as a Sequential counts that has an activation after each layer; {last}: 2 * (layers - 1);
# {kind}: weight or bias.
TORCHREC: tuple[_Rule, ...] = ((_OURS, _OURS), ("{name}", "{name}"))
DLRM_S: tuple[_Rule, ...] = (
    (_OURS, "emb_l.{number}.weight"),
    ("dense_arch.model._mlp.{i}._linear.{kind}", "bot_l.{twice}.{kind}"),
    ("over_arch.model.0._mlp.{i}._linear.{kind}", "top_l.{twice}.{kind}"),
    ("over_arch.model.1.{kind}", "top_l.{last}.{kind}"),
)
# Of `dlrm train --checkpoint-dir`.
SNAPSHOT: tuple[_Rule, ...] = ((_OURS, "tables/{table}/weight"), ("{name}", "dense/{name}"))

_RULES: dict[Naming, tuple[_Rule, ...]] = {
    "torchrec": TORCHREC,
    "dlrm_s_pytorch": DLRM_S,
    "snapshot": SNAPSHOT,
}
# Buffers that older versions kept in the state dict; they follow from the sizes.
_BUFFERS = ("inter_arch.triu_indices",)


def names_of(naming: Naming, declaration: DLRMDeclaration, ours: Iterable[str]) -> dict[str, str]:
    """The source's name of each of ``ours``, the names of the declared model's weights."""
    forms = [pair for rule in _RULES[naming] for pair in _spelled(rule, declaration)]
    fixed = {mine: theirs for mine, theirs in forms if "{" not in mine}
    rest = next((theirs for mine, theirs in forms if mine == "{name}"), None)
    names = {}
    for name in ours:
        if name in fixed:
            names[name] = fixed[name]
        else:
            assert rest is not None, f"{naming} has no rule for {name}"
            names[name] = rest.format(name=name)
    return names


def naming_of(names: Collection[str]) -> Naming:
    """By which rules a source's names are made."""
    if any(name.startswith(("emb_l.", "bot_l.", "top_l.")) for name in names):
        return "dlrm_s_pytorch"
    if any(name.startswith("tables/") for name in names) and any(name.startswith("dense/") for name in names):
        return "snapshot"
    return "torchrec"


def ignored_names(naming: Naming, names: Iterable[str]) -> set[str]:
    """What a source keeps beside its weights."""
    if naming != "snapshot":
        return {name for name in names if name in _BUFFERS}
    return {
        name
        for name in names
        if name.startswith(("dense_optimizer/", BEST))
        or (name.startswith("tables/") and not name.endswith("/weight"))
    }


def _spelled(rule: _Rule, declaration: DLRMDeclaration) -> list[_Rule]:
    """The rule for every table, layer and kind of the model."""
    mine, theirs = rule
    if "{table}" in mine:
        return [
            (mine.format(table=table.name), theirs.format(table=table.name, number=number))
            for number, table in enumerate(declaration.tables)
        ]
    if "{name}" in mine:
        return [rule]
    bottom = mine.startswith("dense_arch")
    layers = len(declaration.dense_arch_layer_sizes if bottom else declaration.over_arch_layer_sizes)
    steps = range(layers if bottom else layers - 1) if "{i}" in mine else range(1)
    return [
        (
            mine.format(i=i, kind=kind),
            theirs.format(twice=2 * i, last=2 * (layers - 1), kind=kind),
        )
        for i in steps
        for kind in ("weight", "bias")
    ]
