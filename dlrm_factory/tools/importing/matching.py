"""Names of a source's weights → the declared model's weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import WeightsError
from dlrm_factory.model.model import EMBEDDINGS_PREFIX, make_model, table_weight_key
from dlrm_factory.tools.importing.dlrm_s_pytorch import check_declared, check_supported
from dlrm_factory.tools.importing.opening import BEST, SourceFormat
from dlrm_factory.tools.importing.prefixes import name_before, with_prefixes
from dlrm_factory.tools.importing.weights import Piece, Source, SourceWeight

__all__ = [
    "Matched",
    "Named",
    "match",
    "name_weights",
    "names_of",
    "naming_of",
    "strip_prefixes",
    "tiling_problems",
]

# The attribute or the key under which each of these keeps the model.
WRAPPERS: dict[str, str] = {
    "model": "DLRMTrain, and many training loops",
    "module": "DataParallel, DistributedDataParallel, DistributedModelParallel",
    "_dmp_wrapped_module": "DistributedModelParallel",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_orig_mod": "torch.compile",
    "state_dict": "dlrm_s_pytorch, PyTorch Lightning",
    "model_state_dict": "PyTorch's tutorials",
    "model_state": "training loops",
    "train_model": "training loops",
    "dlrm": "training loops",
    "net": "training loops",
    "app": "torch.distributed.checkpoint's examples",
}
# Under these, names of weights are those of optimiser state.
OPTIMIZERS = ("optimizer", "optimizers", "optimizer_state_dict", "opt_state_dict", "optim", "opt")

_ROOTS = ("sparse_arch", "dense_arch", "inter_arch", "over_arch", "emb_l", "bot_l", "top_l", "v_W_l")
_ANCHOR = re.compile(rf"(?:^|\.)(?:{'|'.join(_ROOTS)})\.")

Naming = Literal["torchrec", "dlrm_s_pytorch", "snapshot", "prefixes"]
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
_MAX_PROBLEMS = 3  # of one weight; the rest is alike
Span = tuple[int, int]
_MAX_SHOWN = 20
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, kw_only=True)
class Stripped:
    """Names by their bare form.

    Fields:
        names: bare name → the source's.
        ignored: the source's names of what is not the model's.
        doubles: two names of the source with one bare form.
    """

    names: dict[str, str]
    ignored: list[str]
    doubles: list[tuple[str, str]]


def strip_prefixes(names: Iterable[str]) -> Stripped:
    """Take off the wrappers' prefixes.

    Where the model lies under a prefix, what lies elsewhere is not the model's, unless it looks like a model's weight.
    """
    names = list(names)
    prefixes = {name: _prefix(name) for name in names}
    counts = Counter(prefix for prefix in prefixes.values() if prefix is not None)
    main = counts.most_common(1)[0][0] if counts else ""
    found: dict[str, str] = {}
    ignored, doubles = [], []
    for name, prefix in prefixes.items():
        is_anchored = _ANCHOR.search(name) is not None
        if name.split(".", 1)[0] in OPTIMIZERS or (not is_anchored and main and not name.startswith(main)):
            ignored.append(name)
            continue
        bare = name.removeprefix(main if prefix is None else prefix)
        if bare in found:
            doubles.append((found[bare], name))
        else:
            found[bare] = name
    return Stripped(names=found, ignored=ignored, doubles=doubles)


def _prefix(name: str) -> str | None:
    """Prefix before the model's own name, if it is of wrappers alone; None if ``name`` is not a model's weight."""
    match = _ANCHOR.search(name)
    if match is None:
        return None
    start = match.start() + (name[match.start()] == ".")
    prefix = name[:start]
    return prefix if all(part in WRAPPERS for part in prefix.split(".")[:-1]) else None


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
    """Rules by which a source's names are made."""
    if any(name.startswith(("emb_l.", "bot_l.", "top_l.")) for name in names):
        return "dlrm_s_pytorch"
    if any(name.startswith("tables/") for name in names) and any(name.startswith("dense/") for name in names):
        return "snapshot"
    return "torchrec"


def ignored_names(naming: Naming, names: Iterable[str]) -> set[str]:
    """Names of what a source keeps beside its weights."""
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
        # A table whose bags are not pooled has another key, in the source as here.
        return [
            (key, key if theirs == mine else theirs.format(table=table.name, number=number))
            for number, table in enumerate(declaration.tables)
            for key in (table_weight_key(table.name, table.pooling),)
        ]
    if "{name}" in mine:
        return [rule]
    bottom = mine.startswith("dense_arch")
    sizes = declaration.dense_arch_layer_sizes if bottom else declaration.over_arch_layer_sizes
    layers = len(sizes or ())
    steps = range(layers if bottom else layers - 1) if "{i}" in mine else range(1)
    return [
        (
            mine.format(i=i, kind=kind),
            theirs.format(twice=2 * i, last=2 * (layers - 1), kind=kind),
        )
        for i in steps
        for kind in ("weight", "bias")
    ]


def tiling_problems(weight: SourceWeight) -> list[str]:
    """Rows that are missing, there twice or out of bounds; empty if the pieces tile the weight."""
    if len(weight.pieces) == 1 and weight.pieces[0].shape == weight.shape:
        return [] if not any(weight.pieces[0].offsets) else [f"{weight.name}: its only shard is out of place"]
    outside = [piece for piece in weight.pieces if not _is_inside(piece, weight)]
    if outside:
        piece = outside[0]
        return [
            f"{weight.name}: {piece.origin} has a shard {list(piece.shape)} at {list(piece.offsets)}, outside of "
            f"{list(weight.shape)}"
        ]
    if len(weight.shape) not in (1, 2):
        return [f"{weight.name}: has {len(weight.shape)} dimensions and {len(weight.pieces)} shards"]
    found: list[str] = []
    for problem in _problems(weight):
        if len(found) == _MAX_PROBLEMS:
            found.append(f"{weight.name}: and more rows")
            break
        found.append(problem)
    return found


def _is_inside(piece: Piece, weight: SourceWeight) -> bool:
    sizes = (piece.offsets, piece.shape, weight.shape)
    if len({len(each) for each in sizes}) != 1:
        return False
    return all(at >= 0 <= n and at + n <= whole for at, n, whole in zip(*sizes, strict=True))


def _problems(weight: SourceWeight) -> Iterator[str]:
    width = weight.shape[1] if len(weight.shape) == 2 else 1
    pieces = [(_rows(piece), _columns(piece), piece) for piece in weight.pieces if 0 not in piece.shape]
    waiting = sorted(pieces, key=lambda piece: piece[0], reverse=True)
    here: list[tuple[Span, Span, Piece]] = []  # those with rows [first, last)
    cuts = sorted({0, weight.shape[0], *(cut for rows, _, _ in pieces for cut in rows)})
    for first, last in pairwise(cuts):
        here = [piece for piece in here if piece[0][1] > first]
        while waiting and waiting[-1][0][0] == first:
            here.append(waiting.pop())
        at = 0
        for _, (start, stop), piece in sorted(here, key=lambda piece: piece[1]):
            if start > at:
                yield _missing(weight, (first, last), (at, start), width)
            elif start < at:
                yield f"{weight.name}: {_shown('rows', first, last)} are there twice, again in {piece.origin}"
            at = max(at, stop)
        if at < width:
            yield _missing(weight, (first, last), (at, width), width)


def _rows(piece: Piece) -> Span:
    return piece.offsets[0], piece.offsets[0] + piece.shape[0]


def _columns(piece: Piece) -> Span:
    return (0, 1) if len(piece.shape) == 1 else (piece.offsets[1], piece.offsets[1] + piece.shape[1])


def _missing(weight: SourceWeight, rows: Span, columns: Span, width: int) -> str:
    part = "" if columns == (0, width) else f", {_shown('columns', *columns)},"
    origins = ", ".join(dict.fromkeys(piece.origin for piece in weight.pieces[:4]))
    where = f" from {origins}" if origins else ""
    return f"{weight.name}: {_shown('rows', *rows)}{part} are missing{where}; give the files of all ranks"


def _shown(what: str, first: int, last: int) -> str:
    return f"{what} {first} to {last - 1}"


@dataclass(frozen=True, kw_only=True)
class Named:
    """The source's weights without prefixes, and by which rules they are named. ``ignored``: what is no weight."""

    naming: Naming
    weights: dict[str, SourceWeight]
    ignored: list[str]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """``weights``: the source's, under the declared model's names."""

    naming: Naming
    weights: dict[str, SourceWeight]
    ignored: list[str]


def name_weights(source: Source, source_format: SourceFormat) -> Named:
    """Take prefixes off and find out the naming. WeightsError if names are double, or of what is not supported."""
    stripped = strip_prefixes(source.weights)
    if stripped.doubles:
        pairs = [f"  {one} and {other} are one weight" for one, other in stripped.doubles]
        raise _listed(f"{source.place}: holds weights twice; save one model", pairs)
    naming = naming_of(stripped.names)
    if source_format in ("torchrec", "dlrm_s_pytorch") and naming not in (source_format, "snapshot"):
        raise WeightsError(
            f"{source.place}: its weights are named as by {naming}, not {source_format}; leave out --format"
        )
    if naming == "dlrm_s_pytorch":
        check_supported(list(stripped.names), source.place)
    buffers = ignored_names(naming, stripped.names)
    weights = {name: source.weights[found] for name, found in stripped.names.items() if name not in buffers}
    ignored = [*stripped.ignored, *sorted(buffers)]
    return Named(naming=naming, weights=weights, ignored=ignored)


def match(source: Source, declaration: DLRMDeclaration, source_format: SourceFormat) -> Matched:
    """WeightsError lists, by the source's names, what is missing, extra, misshapen, quantised or not whole."""
    model = make_model(declaration, dense_device="meta").state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in model.items()}
    prefixes = {} if declaration.module is None else declaration.module.prefixes
    if prefixes and naming_of(source.weights) != "snapshot":
        named, names = by_prefixes(source, prefixes, expected)
    else:
        named = name_weights(source, source_format)
        if named.naming == "dlrm_s_pytorch":
            check_declared(declaration, {n: w.shape for n, w in named.weights.items()}, source.place)
        names = names_of(named.naming, declaration, expected)
    found = named.weights
    shapes = {name: weight.shape for name, weight in found.items()}
    wanted = {names[ours]: shape for ours, shape in expected.items()}
    problems = [f"  missing: {name} {list(shape)}" for name, shape in wanted.items() if name not in found]
    problems += [f"  not of this model: {name} {list(shapes[name])}" for name in found if name not in wanted]
    problems += _misshapen(shapes, wanted)
    problems += [
        f"  {name}: is {weight.dtype}, not a float weight; import the float model that it was made from"
        for name, weight in found.items()
        if name in wanted and weight.dtype not in _FLOATS
    ]
    if problems:
        if named.naming == "prefixes":
            problems += [f"  under no declared prefix: {name}" for name in named.ignored]
        raise _listed(f"{source.place}: its weights are not the declared model's", problems)
    torn = [f"  {problem}" for name in wanted for problem in tiling_problems(found[name])]
    if torn:
        raise _listed(f"{source.place}: its weights are not whole", torn)
    weights = {ours: found[theirs] for ours, theirs in names.items()}
    return Matched(naming=named.naming, weights=weights, ignored=named.ignored)


def by_prefixes(
    source: Source, prefixes: Mapping[str, str], expected: Collection[str]
) -> tuple[Named, dict[str, str]]:
    """Weights that have a prefix of ``prefixes``, or that are called as in ``expected``, under the source's names.

    Also the source's name of each of ``expected``, the names of the declared model's weights. WeightsError if two
    weights of the source have one name then.
    """
    ours = {name: name for name in source.weights if name in expected}
    ours |= with_prefixes(
        [name for name in source.weights if name.split(".", 1)[0] not in OPTIMIZERS],
        prefixes,
        WRAPPERS.__contains__,
    )
    theirs: dict[str, str] = {}
    for name, mine in ours.items():
        if theirs.setdefault(mine, name) != name:
            raise _listed(
                f"{source.place}: holds weights twice; save one model, or mend $.architecture.prefixes",
                [f"  {theirs[mine]} and {name} are one weight, {mine}"],
            )
    named = Named(
        naming="prefixes",
        weights={name: source.weights[name] for name in ours},
        ignored=[name for name in source.weights if name not in ours],
    )
    return named, {mine: theirs.get(mine) or name_before(mine, prefixes) for mine in expected}


def _misshapen(shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [
        f"  {name}: is {list(shapes[name])}, the declaration says {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]


def _listed(head: str, problems: list[str]) -> WeightsError:
    more = len(problems) - _MAX_SHOWN
    tail = [f"  and {more} more"] if more > 0 else []
    return WeightsError("\n".join([head, *problems[:_MAX_SHOWN], *tail]))
