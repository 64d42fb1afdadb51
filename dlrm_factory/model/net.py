"""Door to every dense net: looked-up vectors in, all outputs out, whoever wrote the module behind it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dlrm_factory.config.declaration import DLRMDeclaration, Output
from dlrm_factory.errors import ModuleError
from dlrm_factory.model.user_code import load_class, naming_the_line

__all__ = ["Net", "NetInputs", "user_module"]

_INPUTS = ("dense", "pooled", "pooled_by_name", "sequences", "lengths")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetInputs:
    """What a module is given, for a module whose ``__init__`` takes ``inputs``.

    Fields:
        dense: names of the dense features, in order.
        pooled: embedding_dim of each pooled feature, in order.
        sequences: embedding_dim of each sequence feature, in order.
        outputs: columns of each output: 1 of a probability.
    """

    dense: list[str]
    pooled: dict[str, int]
    sequences: dict[str, int]
    outputs: dict[str, int]

    @classmethod
    def of(cls, declaration: DLRMDeclaration) -> NetInputs:
        """Inputs of the net of ``declaration``."""

        def dims(features: Sequence[Any]) -> dict[str, int]:
            return {f.name: declaration.table(f.table).embedding_dim for f in features}

        return cls(
            dense=declaration.dense_names,
            pooled=dims(declaration.pooled_features),
            sequences=dims(declaration.sequence_features),
            outputs={output.name: output.columns for output in declaration.all_outputs},
        )


def user_module(declaration: DLRMDeclaration) -> nn.Module:
    """The declared module of the user's own, made with its arguments.

    UntrustedCodeError if this process was not told to run its code; ModuleError if it cannot be made.
    """
    declared = declaration.module
    assert declared is not None
    kind = load_class(declared)
    arguments = dict(declared.arguments)
    if "inputs" in inspect.signature(kind).parameters:
        arguments["inputs"] = NetInputs.of(declaration)
    with naming_the_line(kind.__module__, f"{declared.module} cannot be made with the declared arguments"):
        return kind(**arguments)


class Net(nn.Module):
    """Calls ``module`` with the inputs that its forward names, and checks what it returns.

    forward(dense float32 [B, number of dense features], pooled float32 [B, W], each sequence feature's vectors
    [B, T, D] with zeros past its end, and their lengths int64 [B]) → float32 [B, C], the columns of all outputs.
    Features are in declared order. B and T are at least 1. ModuleError for a module that raises or returns anything
    but the declared outputs.
    """

    def __init__(self, declaration: DLRMDeclaration, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        inputs = NetInputs.of(declaration)
        self._dims = list(inputs.pooled.values())
        self._pooled, self._sequences = list(inputs.pooled), list(inputs.sequences)
        self._outputs = declaration.all_outputs
        self._name = type(module).__name__
        self._takes = self._wanted(declaration)

    def _wanted(self, declaration: DLRMDeclaration) -> list[str]:
        """Names of the inputs that the module's forward takes."""
        own = type(self.module).forward
        parameters = list(inspect.signature(own).parameters.values())[1:]
        file, line = _place_of(own, declaration)
        at = f"{file}:{line}: forward of {self._name}"
        known = ", ".join(_INPUTS)
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ModuleError(f"{at} takes *args or **kwargs; name its inputs: any of {known}")
            if parameter.name not in _INPUTS and parameter.default is parameter.empty:
                raise ModuleError(
                    f'{at} takes "{parameter.name}", which is no input; it may take any of {known}'
                )
        names = [parameter.name for parameter in parameters if parameter.name in _INPUTS]
        if not names:
            raise ModuleError(f"{at} takes no input; it may take any of {known}")
        if "pooled" in names and len(set(self._dims)) > 1:
            raise ModuleError(
                f"{at} takes pooled, [B, F, D], but the pooled features' tables have embedding_dims "
                f"{sorted(set(self._dims))}; take pooled_by_name, or give all tables one"
            )
        if "pooled" in names and not self._dims:
            raise ModuleError(f"{at} takes pooled, but every table has pooling: none; take sequences")
        return names

    def forward(
        self,
        dense: torch.Tensor,
        pooled: torch.Tensor,
        sequences: Sequence[torch.Tensor] = (),
        lengths: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        given: dict[str, Any] = {}
        for name in self._takes:
            if name == "dense":
                given[name] = dense
            elif name == "pooled":
                given[name] = pooled.unflatten(1, (len(self._dims), self._dims[0]))
            elif name == "pooled_by_name":
                given[name] = dict(zip(self._pooled, pooled.split(self._dims, dim=1), strict=True))
            elif name == "sequences":
                given[name] = dict(zip(self._sequences, sequences, strict=True))
            else:
                given[name] = dict(zip(self._sequences, lengths, strict=True))
        with naming_the_line(type(self.module).__module__, f"{self._name} cannot score"):
            found = self.module(**given)
        return self._columns(found, dense.shape[0])

    def _columns(self, found: Any, samples: int) -> torch.Tensor:
        if isinstance(found, torch.Tensor):
            if len(self._outputs) > 1:
                raise ModuleError(
                    f"{self._name} returns one tensor, and {len(self._outputs)} outputs are declared "
                    f"({', '.join(each.name for each in self._outputs)}); return a dict of them by name"
                )
            return self._checked(found, self._outputs[0], samples)
        if not isinstance(found, Mapping):
            raise ModuleError(
                f"{self._name} returns a {type(found).__name__}; return logits [B], or a dict of outputs by name"
            )
        declared = [output.name for output in self._outputs]
        for name in found:
            if name not in declared:
                raise ModuleError(
                    f'{self._name} returns an output "{name}" that is not declared; declare it under $.outputs '
                    f"(declared are {', '.join(declared)})"
                )
        columns = []
        for output in self._outputs:
            if output.name not in found:
                raise ModuleError(f'{self._name} returns no output "{output.name}", which is declared')
            columns.append(self._checked(found[output.name], output, samples))
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)

    def _checked(self, found: Any, output: Output, samples: int) -> torch.Tensor:
        """``found`` as float32 [B, columns of ``output``]."""
        wanted = "[B]" if output.kind == "probability" else f"[B, {output.columns}]"
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        flat = isinstance(found, torch.Tensor) and found.dim() == 1 and output.columns == 1
        if flat:
            found = found.unsqueeze(1)
        if (
            not isinstance(found, torch.Tensor)
            or found.dim() != 2
            or found.shape[1] != output.columns
            or found.shape[0] != samples
        ):
            raise ModuleError(
                f'{self._name} returns {shape} as output "{output.name}" for B = {samples} samples; return {wanted}'
            )
        if not found.dtype.is_floating_point:
            raise ModuleError(f'{self._name} returns {found.dtype} as output "{output.name}"; return floats')
        return found.float()


def _place_of(function: Any, declaration: DLRMDeclaration) -> tuple[str, int]:
    code = inspect.unwrap(function).__code__
    return code.co_filename.strip("<>").rpartition("/")[2], code.co_firstlineno
