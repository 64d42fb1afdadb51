"""The source's weights under the declared model's names, or a list of all that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import WeightsError
from dlrm_factory.model.model import make_model
from dlrm_factory.tools.importing.dlrm_s_pytorch import check_declared, check_supported
from dlrm_factory.tools.importing.key_maps import Naming, ignored_names, names_of, naming_of
from dlrm_factory.tools.importing.opening import SourceFormat
from dlrm_factory.tools.importing.prefixes import strip_prefixes
from dlrm_factory.tools.importing.tiling import tiling_problems
from dlrm_factory.tools.importing.weights import Source, SourceWeight

__all__ = ["Matched", "Named", "match", "name_weights"]

_MOST_SHOWN = 20
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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
    named = name_weights(source, source_format)
    found = named.weights
    shapes = {name: weight.shape for name, weight in found.items()}
    if named.naming == "dlrm_s_pytorch":
        check_declared(declaration, shapes, source.place)
    model = make_model(declaration, dense_device="meta").state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in model.items()}
    names = names_of(named.naming, declaration, expected)
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
        raise _listed(f"{source.place}: its weights are not the declared model's", problems)
    torn = [f"  {problem}" for name in wanted for problem in tiling_problems(found[name])]
    if torn:
        raise _listed(f"{source.place}: its weights are not whole", torn)
    weights = {ours: found[theirs] for ours, theirs in names.items()}
    return Matched(naming=named.naming, weights=weights, ignored=named.ignored)


def _misshapen(shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [
        f"  {name}: is {list(shapes[name])}, the declaration says {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]


def _listed(head: str, problems: list[str]) -> WeightsError:
    more = len(problems) - _MOST_SHOWN
    tail = [f"  and {more} more"] if more > 0 else []
    return WeightsError("\n".join([head, *problems[:_MOST_SHOWN], *tail]))
