"""Inputs that a function of a module names, and what they are for some of the features."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import ModuleError, near_matches

__all__ = ["INPUTS", "SHARED", "TakenInputs", "place_of", "shared_features", "shared_tensors"]

INPUTS = ("dense", "pooled", "pooled_by_name", "sequences", "lengths")
SHARED = "shared"  # what a module's own `shared` has given


class TakenInputs:
    """Inputs that one function of a module takes, of all features or of some."""

    def __init__(
        self,
        function: Callable[..., Any],
        declaration: DLRMDeclaration,
        *,
        what: str,
        features: Sequence[str] | None = None,
    ) -> None:
        """ModuleError, with file and line, for parameters that are no inputs.

        Args:
            what: of the function, for messages, such as ``forward of MyNet``.
            features: the only ones that the inputs are of; None for all.
        """

        def is_meant(name: str) -> bool:
            return features is None or name in features

        dims = {f.name: declaration.table(f.table).embedding_dim for f in declaration.pooled_features}
        self._all_dims = list(dims.values())
        self._pooled = [(name, i) for i, name in enumerate(dims) if is_meant(name)]
        self._dims = [dims[name] for name, _ in self._pooled]
        self._sequences = [
            (f.name, i) for i, f in enumerate(declaration.sequence_features) if is_meant(f.name)
        ]
        dense = [i for i, name in enumerate(declaration.dense_names) if is_meant(name)]
        self._dense = None if len(dense) == len(declaration.dense_names) else dense
        self.names = self._wanted(function, what, forward=features is None)
        self.takes_shared = SHARED in self.names

    def _wanted(self, function: Callable[..., Any], what: str, *, forward: bool) -> list[str]:
        file, line = place_of(function)
        at = f"{file}:{line}: {what}"
        known = ", ".join(INPUTS)
        may_take = (*INPUTS, SHARED) if forward else INPUTS
        parameters = list(inspect.signature(function).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ModuleError(f"{at} takes *args or **kwargs; name its inputs: any of {known}")
            if parameter.name not in may_take and parameter.default is parameter.empty:
                raise ModuleError(
                    f'{at} takes "{parameter.name}", which is no input; it may take any of {known}'
                )
        names = [parameter.name for parameter in parameters if parameter.name in may_take]
        if not names:
            raise ModuleError(f"{at} takes no input; it may take any of {known}")
        if "pooled" in names and len(set(self._dims)) > 1:
            raise ModuleError(
                f"{at} takes pooled, [B, F, D], but the pooled features' tables have embedding_dims "
                f"{sorted(set(self._dims))}; take pooled_by_name, or give all tables one"
            )
        if "pooled" in names and not self._dims:
            raise ModuleError(
                f"{at} takes pooled, but "
                + (
                    "every table has pooling: none; take sequences"
                    if forward
                    else "none of its features is pooled"
                )
            )
        return names

    def give(
        self,
        dense: torch.Tensor,
        pooled: torch.Tensor,
        sequences: Sequence[torch.Tensor],
        lengths: Sequence[torch.Tensor],
    ) -> dict[str, Any]:
        """Arguments by name, of the inputs of `dlrm_factory.model.net.Net`."""
        given: dict[str, Any] = {}
        for name in self.names:
            if name == "dense":
                given[name] = dense if self._dense is None else dense[:, self._dense]
            elif name == "pooled":
                given[name] = (
                    torch.stack(list(self._by_name(pooled).values()), dim=1)
                    if self._is_part
                    else (pooled.unflatten(1, (len(self._dims), self._dims[0])))
                )
            elif name == "pooled_by_name":
                given[name] = self._by_name(pooled)
            elif name == "sequences":
                given[name] = {feature: sequences[i] for feature, i in self._sequences}
            elif name == "lengths":
                given[name] = {feature: lengths[i] for feature, i in self._sequences}
        return given

    @property
    def _is_part(self) -> bool:
        return len(self._dims) < len(self._all_dims)

    def _by_name(self, pooled: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = pooled.split(self._all_dims, dim=1) if self._all_dims else ()
        return {feature: parts[i] for feature, i in self._pooled}


def shared_features(module: Any, declaration: DLRMDeclaration, at: str) -> list[str]:
    """The features that ``module`` says its `shared` reads. ModuleError, which starts with ``at``, if wrong."""
    names = getattr(module, "shared_features", None)
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    if names is None or not is_list or not names or not all(isinstance(name, str) for name in names):
        found = "is missing" if names is None else f"is {names!r}"
        raise ModuleError(
            f"{at} takes shared, but shared_features {found}; give the list of the features' names that shared reads"
        )
    known = [*declaration.dense_names, *declaration.sparse_names]
    for name in names:
        if name not in known:
            raise ModuleError(
                f'{at}: shared_features names "{name}", which is not a feature{near_matches(name, known)}'
            )
    return list(names)


def shared_tensors(found: Any, samples: int, name: str) -> tuple[list[str] | None, tuple[torch.Tensor, ...]]:
    """Result of `shared` of the module ``name``: names of a dict's entries, None for a tensor; and the tensors.

    ModuleError for anything but tensors of floats [B, …].
    """
    if isinstance(found, Mapping) and found:
        names: list[str] | None = [str(key) for key in found]
        tensors = tuple(found.values())
    else:
        names, tensors = None, (found,)
    for each in tensors:
        if not isinstance(each, torch.Tensor) or each.dim() < 1 or each.shape[0] != samples:
            shape = tuple(each.shape) if isinstance(each, torch.Tensor) else type(each).__name__
            raise ModuleError(
                f"shared of {name} returns {shape} for B = {samples} samples; return a tensor [B, …], or a dict of them"
            )
    return names, tensors


def place_of(function: Callable[..., Any]) -> tuple[str, int]:
    """File and line where ``function`` is written."""
    code = inspect.unwrap(function).__code__
    return code.co_filename.strip("<>").rpartition("/")[2], code.co_firstlineno
