"""Order of candidates: by an output, or by an expression of outputs and dense features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.config.expression import Expression
from dlrm_factory.errors import RequestError
from dlrm_factory.features import shown
from dlrm_factory.requests.formats.mistakes import element
from dlrm_factory.requests.formats.outputs import Asked, Scores
from dlrm_factory.requests.numbers import answered_probabilities

__all__ = ["ByExpression", "ByOutput", "Order", "order_of"]

Float64 = npt.NDArray[np.float64]
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class ByOutput:
    """Order by the probability called ``name``."""

    name: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs that the order needs."""
        return (self.name,)

    def numbers(self, scores: Scores, left_out: Sequence[str | None] = (None,)) -> list[float]:
        """Scores as the answer gives them, one a sample."""
        return scores.numbers[self.name]

    def best(self, scores: Scores) -> npt.NDArray[np.intp]:
        """Candidates by falling logit; of equal ones the first comes first."""
        return np.argsort(-scores.logits[self.name], kind="stable")

    def is_all(self, asked: Asked) -> bool:
        """True if the score is the one output that is asked for."""
        return asked.names == (self.name,)


@dataclass(frozen=True, slots=True, eq=False)
class ByExpression:
    """Order by the value of ``expression``.

    Fields:
        dense: values of the dense features in it, as they were sent: one a candidate, or one for all.
        defaults: their declared defaults.
        path: of the candidates, where they are a list; None where they are columns.
    """

    expression: Expression
    dense: Mapping[str, Float64]
    defaults: Mapping[str, float]
    path: str | None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs that the order needs."""
        return tuple(name for name in self.expression.names if name not in self.dense)

    def numbers(self, scores: Scores, left_out: Sequence[str | None] = (None,)) -> list[float]:
        """Values, one a sample. RequestError names the first that is not finite.

        ``left_out``: see `AnswerForm.columns`.
        """
        chances = {name: answered_probabilities(scores.logits[name]) for name in self.outputs}
        size = scores.samples // len(left_out)
        found: list[float] = []
        for copy, feature in enumerate(left_out):
            values: dict[str, Any] = {
                name: each[copy * size : (copy + 1) * size] for name, each in chances.items()
            }
            values |= self.dense
            if feature is not None and feature in self.defaults:
                values[feature] = self.defaults[feature]
            result = self.expression(values, size)
            if not np.isfinite(result).all():
                raise self._not_finite(result, values, feature)
            found += result.tolist()
        return found

    def best(self, scores: Scores) -> npt.NDArray[np.intp]:
        """Candidates by falling value; of equal ones the first comes first."""
        return np.argsort(-np.array(self.numbers(scores)), kind="stable")

    def is_all(self, asked: Asked) -> bool:
        """False: the score is no output."""
        return False

    def _not_finite(self, result: Float64, values: Mapping[str, Any], left_out: str | None) -> RequestError:
        candidate = int(np.argmin(np.isfinite(result)))
        given = ", ".join(
            f"{name} {np.broadcast_to(values[name], result.shape)[candidate]:.6g}"
            for name in self.expression.names
        )
        without = f", without {left_out}," if left_out else ""
        return RequestError(
            f"rank_by {shown(self.expression.text)} is not a finite number for candidate {candidate}{without} where "
            f"{given}; leave the candidate out, or choose an expression that has a value there",
            "$.candidates" if self.path is None else element(self.path, candidate),
        )


Order = ByOutput | ByExpression


def order_of(
    expression: Expression,
    declaration: DLRMDeclaration,
    context: Mapping[str, Any],
    columns: Columns,
    path: str | None,
) -> Order:
    """The order by ``expression`` of candidates with ``columns``, checked before, and ``context``.

    A dense feature is as it was sent, in the context or with the candidates, before any transform; a missing one has
    its default. ``path``: see `ByExpression`.
    """
    outputs = {output.name for output in declaration.all_outputs}
    if expression.is_name and expression.names[0] in outputs:
        return ByOutput(expression.names[0])
    defaults = {
        feature.name: feature.default
        for feature in declaration.dense_features
        if feature.name in expression.names and feature.name not in outputs
    }
    dense = {
        name: _sent(columns[name] if name in columns else context.get(name), default)
        for name, default in defaults.items()
    }
    return ByExpression(expression, dense, defaults, path)


def _sent(values: Any, default: float) -> Float64:
    """Float64 [candidates], or [] for one number, of JSON's ``values``; null is the default."""
    if isinstance(values, list | tuple):
        return np.array([default if value is None else value for value in values], dtype=np.float64)
    return np.array(default if values is None else values, dtype=np.float64)
