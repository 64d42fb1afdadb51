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
from dlrm_factory.model.net_inputs import SHARED, TakenInputs, place_of, shared_features, shared_tensors
from dlrm_factory.model.user_code import load_class, naming_the_line

__all__ = ["Net", "NetInputs", "user_module"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetInputs:
    """Inputs of a module, for one whose ``__init__`` takes ``inputs``.

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
    kind = load_class(declaration)
    arguments = dict(declared.arguments)
    if "inputs" in inspect.signature(kind).parameters:
        arguments["inputs"] = NetInputs.of(declaration)
    with naming_the_line(
        kind.__module__, f"{declared.module} cannot be made with the declared arguments", called=kind.__init__
    ):
        return kind(**arguments)


class Net(nn.Module):
    """Calls ``module`` with the inputs that its forward names, and checks what it returns.

    forward(dense float32 [B, number of dense features], pooled float32 [B, W], each sequence feature's vectors
    [B, T, D] with zeros past its end, their lengths int64 [B], and what `shared_part` gave, if it has been computed) →
    float32 [B, C], the columns of all outputs.
    Features are in declared order. B and T are at least 1. ModuleError for a module that raises or returns anything
    but the declared outputs.
    """

    def __init__(self, declaration: DLRMDeclaration, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._outputs = declaration.all_outputs
        self._may_change = declaration.module is not None
        self._name = type(module).__name__
        own = type(module).forward
        file, line = place_of(own)
        self._at = f"{file}:{line}: forward of {self._name}"
        self._takes = TakenInputs(own, declaration, what=f"forward of {self._name}")
        self._shared_takes = self._of_shared(declaration) if self._takes.takes_shared else None
        self._shared_names: list[str] | None = None

    def _of_shared(self, declaration: DLRMDeclaration) -> TakenInputs:
        """Inputs of the module's `shared`, whose features these alone are of."""
        at = self._at
        function = getattr(type(self.module), SHARED, None)
        if not inspect.isfunction(function):
            raise ModuleError(f"{at} takes shared, but {self._name} has no method shared, which gives it")
        self.shared_features = shared_features(self.module, declaration, at)
        what = f"shared of {self._name}"
        return TakenInputs(function, declaration, what=what, features=self.shared_features)

    @property
    def shares(self) -> bool:
        """True if the module has a part that reads ``shared_features`` alone, see `shared_part`."""
        return self._shared_takes is not None

    def shared_part(
        self,
        dense: torch.Tensor,
        pooled: torch.Tensor,
        sequences: Sequence[torch.Tensor] = (),
        lengths: Sequence[torch.Tensor] = (),
    ) -> tuple[torch.Tensor, ...]:
        """Tensors [B, …] that the module's own `shared` gives; none if it has none. Inputs are those of forward."""
        if self._shared_takes is None:
            return ()
        given = self._shared_takes.give(self._own_copy(dense), pooled, sequences, lengths)
        with naming_the_line(type(self.module).__module__, f"{self._name} cannot score"):
            found = self.module.shared(**given)
        self._shared_names, tensors = shared_tensors(found, dense.shape[0], self._name)
        return tensors

    def forward(
        self,
        dense: torch.Tensor,
        pooled: torch.Tensor,
        sequences: Sequence[torch.Tensor] = (),
        lengths: Sequence[torch.Tensor] = (),
        shared: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        given = self._takes.give(self._own_copy(dense), pooled, sequences, lengths)
        if self.shares:
            parts = tuple(shared) or self.shared_part(dense, pooled, sequences, lengths)
            names = self._shared_names
            given[SHARED] = parts[0] if names is None else dict(zip(names, parts, strict=True))
        with naming_the_line(type(self.module).__module__, f"{self._name} cannot score"):
            found = self.module(**given)
        return self._columns(found, dense.shape[0])

    def _own_copy(self, dense: torch.Tensor) -> torch.Tensor:
        """``dense``, which is the request's own memory, for a module that may change what it is given."""
        return dense.clone() if self._may_change else dense

    def _columns(self, found: Any, samples: int) -> torch.Tensor:
        if isinstance(found, torch.Tensor):
            if len(self._outputs) > 1:
                raise ModuleError(
                    f"{self._at} returns one tensor, and {len(self._outputs)} outputs are declared "
                    f"({', '.join(each.name for each in self._outputs)}); return a dict of them by name"
                )
            return self._checked(found, self._outputs[0], samples)
        if not isinstance(found, Mapping):
            raise ModuleError(
                f"{self._at} returns a {type(found).__name__}; return logits [B], or a dict of outputs by name"
            )
        declared = [output.name for output in self._outputs]
        for name in found:
            if name not in declared:
                raise ModuleError(
                    f'{self._at} returns an output "{name}" that is not declared; declare it under $.outputs '
                    f"(declared are {', '.join(declared)})"
                )
        columns = []
        for output in self._outputs:
            if output.name not in found:
                raise ModuleError(f'{self._at} returns no output "{output.name}", which is declared')
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
                f'{self._at} returns {shape} as output "{output.name}" for B = {samples} samples; return {wanted}'
            )
        if not found.dtype.is_floating_point:
            raise ModuleError(f'{self._at} returns {found.dtype} as output "{output.name}"; return floats')
        return found.float()
