"""Rules on the architecture, its outputs and sequences, part of `problems_of`."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterator

from dlrm_factory.config.declaration import DLRMDeclaration, ModuleArchitecture, Output
from dlrm_factory.config.expression import ranking_expression
from dlrm_factory.config.label import parse_label
from dlrm_factory.errors import near_matches

__all__ = ["ARCHITECTURE_RULES", "SAFE_NAME"]

SAFE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_MODULE = re.compile(r"(?P<file>[^:]+\.py):(?P<name>[A-Za-z_]\w*)")
_FILE = re.compile(r"(?P<stem>[A-Za-z_]\w*)\.py")
_MAX_VECTOR = 4096

_MLPS = ("dense_arch_layer_sizes", "over_arch_layer_sizes")
_BRANCHES = ("interaction_branch1_layer_sizes", "interaction_branch2_layer_sizes")
# Fields that an architecture needs; all others of these belong to another one.
_OPTIONS = {
    "dlrm": _MLPS,
    "dlrm_dcn": (*_MLPS, "dcn_num_layers", "dcn_low_rank_dim"),
    "dlrm_projection": (*_MLPS, *_BRANCHES),
    "dlrm_transformer": (*_MLPS, "nhead", "ntransformer_layers"),
    "deepfm": ("hidden_layer_size", "deep_fm_dimension"),
}


def _layer_sizes(d: DLRMDeclaration) -> Iterator[str]:
    for name in (*_MLPS, *_BRANCHES):
        sizes = getattr(d, name)
        if sizes is None:
            continue
        if not sizes:
            yield f"$.{name}: is empty; give at least one layer size"
        for i, size in enumerate(sizes):
            if size < 1:
                yield f"$.{name}[{i}]: {size} is not a positive layer size"


def _arch_ends(d: DLRMDeclaration) -> Iterator[str]:
    sizes = d.dense_arch_layer_sizes
    if sizes and d.tables and sizes[-1] != d.embedding_dim:
        yield (
            f"$.dense_arch_layer_sizes[{len(sizes) - 1}]: the last size is {sizes[-1]} but embedding_dim is "
            f"{d.embedding_dim}; they must be equal, so that dense and sparse features can interact"
        )
    sizes = d.over_arch_layer_sizes
    if sizes and sizes[-1] != 1:
        yield (
            f"$.over_arch_layer_sizes[{len(sizes) - 1}]: the last size is {sizes[-1]} but must be 1, "
            "the click logit"
        )
    # TorchRec's OverArch builds an MLP of all sizes but the last, and cannot build one of none.
    if sizes and len(sizes) == 1:
        yield "$.over_arch_layer_sizes: has one size; give at least one hidden layer before the last 1"


def _architecture_options(d: DLRMDeclaration) -> Iterator[str]:
    needed = _OPTIONS[d.architecture] if isinstance(d.architecture, str) else ()
    owners: dict[str, list[str]] = {}
    for architecture, fields in _OPTIONS.items():
        for field in fields:
            owners.setdefault(field, []).append(architecture)
    for field, architectures in owners.items():
        value = getattr(d, field)
        if field in needed and value is None:
            yield f"$.{field}: is missing; architecture {d.architecture} needs it"
        if field not in needed and value is not None:
            mine = d.architecture if isinstance(d.architecture, str) else "a module of one's own"
            yield f"$.{field}: belongs to architecture {' and '.join(architectures)}, not to {mine}; remove it"
        if isinstance(value, int) and value < 1:
            yield f"$.{field}: {value} is not positive"
    if d.nhead and d.nhead > 0 and d.tables and d.embedding_dim % d.nhead:
        yield f"$.nhead: {d.nhead} does not divide embedding_dim {d.embedding_dim}"


def _projection_branches(d: DLRMDeclaration) -> Iterator[str]:
    for name in _BRANCHES:
        sizes = getattr(d, name)
        if d.architecture != "dlrm_projection" or not sizes or not d.tables or d.embedding_dim < 1:
            continue
        if sizes[-1] % d.embedding_dim:
            yield (
                f"$.{name}[{len(sizes) - 1}]: the last size {sizes[-1]} is not a multiple of embedding_dim "
                f"{d.embedding_dim}"
            )


def _embedding_dims(d: DLRMDeclaration) -> Iterator[str]:
    if d.module is not None:
        return
    for i, table in enumerate(d.tables):
        if table.embedding_dim != d.tables[0].embedding_dim:
            yield (
                f"$.tables[{i}].embedding_dim: {table.embedding_dim} differs from "
                f'{d.tables[0].embedding_dim} of table "{d.tables[0].name}"; '
                f"{d.architecture} needs one embedding_dim for all tables"
            )


def _sequences(d: DLRMDeclaration) -> Iterator[str]:
    first: int | None = None
    for i, table in enumerate(d.tables):
        if table.pooling != "none":
            continue
        if d.module is None:
            yield (
                f"$.tables[{i}].pooling: none gives a vector an id, which architecture {d.architecture} cannot take; "
                "use sum or mean, or a module of your own"
            )
        first = first or table.embedding_dim
        if table.embedding_dim != first:
            yield (
                f"$.tables[{i}].embedding_dim: {table.embedding_dim} differs from {first}; TorchRec's "
                "EmbeddingCollection needs one embedding_dim for all tables with pooling: none"
            )
    names = {feature.name for feature in d.sequence_features}
    for i, sparse in enumerate(d.sparse_features):
        if sparse.weighted and sparse.name in names:
            yield (
                f'$.sparse_features[{i}].weighted: table "{sparse.table}" has pooling none, which sums nothing; '
                "remove it"
            )


def _module(d: DLRMDeclaration) -> Iterator[str]:
    module = d.module
    if module is None:
        return
    if _MODULE.fullmatch(module.module) is None:
        yield (
            f'$.architecture.module: "{module.module}" is not FILE.py:CLASS; name a Python file beside the '
            "declaration and the class in it, such as my_net.py:MyNet"
        )
        return
    seen: set[str] = set()
    for path, name in zip(_file_paths(module), module.file_names, strict=True):
        match = _FILE.fullmatch(name)
        if match is None or keyword.iskeyword(match["stem"]):
            yield (
                f'$.architecture.{path}: "{name}" is not the plain name of a Python file, such as my_net.py; put it '
                "beside the declaration"
            )
        elif name in seen:
            yield f'$.architecture.{path}: "{name}" is named twice; remove one'
        seen.add(name)


def _file_paths(module: ModuleArchitecture) -> list[str]:
    return ["module", *(f"files[{i}]" for i in range(len(module.files)))]


def _outputs(d: DLRMDeclaration) -> Iterator[str]:
    if d.outputs is None:
        return
    if not d.outputs:
        yield "$.outputs: is empty; name at least one, or leave it out for one probability called score"
    if d.module is None and (len(d.outputs) > 1 or any(each.kind != "probability" for each in d.outputs)):
        yield f"$.outputs: architecture {d.architecture} gives one probability; name one, or use a module of your own"
    seen: list[str] = []
    for i, output in enumerate(d.outputs):
        path = f"$.outputs[{i}]"
        if not SAFE_NAME.fullmatch(output.name):
            yield (
                f'{path}.name: "{output.name}" is not a name; use letters, digits, "_" and "-", '
                'starting with a letter or "_"'
            )
        if output.name in seen:
            yield f'{path}.name: duplicate output "{output.name}"; rename one'
        yield from _output(d, output, path, seen)
        seen.append(output.name)


def _answers(d: DLRMDeclaration) -> Iterator[str]:
    names, wanted = [output.name for output in d.all_outputs], d.serving.outputs
    if wanted == []:
        yield "$.serving.outputs: is empty; name at least one, or leave it out for all probabilities"
    for i, name in enumerate(wanted or ()):
        if name not in names:
            near = near_matches(name, names) or f"; name some of {', '.join(names)}"
            yield f'$.serving.outputs[{i}]: there is no output "{name}"{near}'
        elif name in (wanted or ())[:i]:
            yield f'$.serving.outputs[{i}]: output "{name}" is there twice; remove one'
    if d.serving.rank_by is not None:
        try:
            ranking_expression(d.serving.rank_by, d)
        except ValueError as error:
            yield f"$.serving.rank_by: {error}"


def _output(d: DLRMDeclaration, output: Output, path: str, before: list[str]) -> Iterator[str]:
    if output.kind == "vector":
        for field in ("label", "where"):
            if getattr(output, field) is not None:
                yield f"{path}.{field}: belongs to outputs of kind probability; remove it"
        if output.size is None:
            yield f"{path}.size: is missing; say how many numbers the vector has"
        elif not 1 <= output.size <= _MAX_VECTOR:
            yield f"{path}.size: {output.size} is outside [1, {_MAX_VECTOR}]"
        return
    if output.size is not None:
        yield f"{path}.size: belongs to outputs of kind vector; remove it"
    if output.label is None and len(d.probabilities) > 1:
        yield f"{path}.label: is missing; of several probabilities each needs its own"
    elif output.label is not None and parse_label(output.label).column in (*d.dense_names, *d.sparse_names):
        yield f'{path}.label: "{output.label}" is also a feature; the model would be told the answer'
    if output.where is not None and output.where not in before:
        yield (
            f'{path}.where: there is no output "{output.where}" before this one'
            f"{near_matches(output.where, before)}; name one whose label must be 1"
        )
    elif output.where is not None and any(
        each.name == output.where and each.kind != "probability" for each in d.all_outputs
    ):
        yield f'{path}.where: output "{output.where}" is a vector and has no label'
    if not 0 < output.loss_weight < math.inf:
        yield f"{path}.loss_weight: {output.loss_weight} is not a positive, finite number"


ARCHITECTURE_RULES = (
    _layer_sizes,
    _arch_ends,
    _architecture_options,
    _projection_branches,
    _module,
    _outputs,
    _answers,
    _sequences,
    _embedding_dims,
)
