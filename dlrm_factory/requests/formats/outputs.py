"""Outputs that a request asks for, and what the model gave for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.config.expression import Expression, ranking_expression
from dlrm_factory.errors import LimitError, RequestError, near_matches
from dlrm_factory.features import shown
from dlrm_factory.requests.formats.mistakes import Mistakes, element
from dlrm_factory.requests.numbers import shortest

__all__ = ["OUTPUTS_PATH", "Asked", "ModelOutputs", "Output", "Scores"]

Output = Literal["probability", "logit"]

Float32 = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]

OUTPUTS_PATH, RANK_BY_PATH = "$.outputs", "$.rank_by"
# In JSON a number of a vector takes 15 bytes at most, and all answers of a batch go to TorchServe in one piece.
_MAX_VECTOR_NUMBERS = 4_000_000
_MAX_EXPRESSIONS_KEPT = 64


class Asked(NamedTuple):
    """Outputs that a request asks for.

    Fields:
        output: what is given of a probability.
        names: of the outputs, in the order of the answer; at least one.
    """

    output: Output
    names: tuple[str, ...]


class Scores(NamedTuple):
    """Outputs of some samples, in order, by name.

    Fields:
        numbers: of a probability one number a sample, whose JSON is short; of no meaning where it is not finite.
        logits: of a probability float32 [B], which tell samples apart whose probabilities are equal.
        vectors: of a vector float32 [B, size].
        finite: bool [B], True where all of these are; None where all samples' are.
        finite_by_name: the same of each output whose samples' are not all finite.
    """

    numbers: Mapping[str, list[float]]
    logits: Mapping[str, Float32]
    vectors: Mapping[str, Float32]
    finite: Masks | None = None
    finite_by_name: Mapping[str, Masks] = {}

    @property
    def samples(self) -> int:
        """Samples that there are outputs of."""
        columns: list[list[float] | Float32] = [*self.numbers.values(), *self.vectors.values()]
        return len(columns[0])

    def first(self, size: int) -> Scores:
        """Those of the first ``size`` samples."""
        return Scores(
            {name: numbers[:size] for name, numbers in self.numbers.items()},
            {name: logits[:size] for name, logits in self.logits.items()},
            {name: vectors[:size] for name, vectors in self.vectors.items()},
            None if self.finite is None else self.finite[:size],
            {name: finite[:size] for name, finite in self.finite_by_name.items()},
        )

    def values(self, names: Sequence[str]) -> list[Any]:
        """One JSON value a sample: of one output its number, or a list of a vector's; of several an object by name."""
        return self._column(names[0]) if len(names) == 1 else self.objects(names)

    def objects(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """One object a sample, the outputs by name."""
        columns = [self._column(name) for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def not_finite(self, sample: int) -> str:
        """Name of the first output that is not finite for ``sample``, which has one."""
        return next(name for name, finite in self.finite_by_name.items() if not finite[sample])

    def array(self, name: str) -> Float32:
        """Float32 [B] of a probability, [B, size] of a vector."""
        if name in self.vectors:
            return self.vectors[name]
        return np.array(self.numbers[name], dtype=np.float32)

    def _column(self, name: str) -> list[Any]:
        if name not in self.vectors:
            return self.numbers[name]
        vectors = self.vectors[name]
        size = vectors.shape[1]
        flat = shortest(vectors.reshape(-1))
        return [flat[i * size : (i + 1) * size] for i in range(len(vectors))]


class ModelOutputs:
    """Outputs of a model, as requests choose them. For one thread at a time."""

    def __init__(self, declaration: DLRMDeclaration) -> None:
        self._declaration = declaration
        self.names = tuple(output.name for output in declaration.all_outputs)
        self.default = tuple(declaration.default_outputs)
        # What most requests ask for, made once.
        self.asked: dict[Output, Asked] = {
            "probability": Asked("probability", self.default),
            "logit": Asked("logit", self.default),
        }
        self.sizes = {each.name: each.columns for each in declaration.all_outputs if each.kind == "vector"}
        self.max_numbers = _MAX_VECTOR_NUMBERS // declaration.serving.batch_requests
        self._expressions: dict[str, Expression] = {}

    def chosen(self, sent: Any) -> tuple[str, ...]:
        """Names in ``sent``, null for the default ones. RequestError with the path of what is wrong."""
        if sent is None:
            return self.default
        if not isinstance(sent, list) or not sent:
            found = "an empty list" if sent == [] else shown(sent)
            raise RequestError(
                f"outputs is {found}; send a list of names, of {', '.join(self.names)}, or leave it out",
                OUTPUTS_PATH,
            )
        mistakes = Mistakes()
        seen: set[str] = set()
        for i, name in enumerate(sent):
            if not isinstance(name, str) or name not in self.names:
                mistakes.add(RequestError(self.unknown(name), element(OUTPUTS_PATH, i)))
            elif name in seen:
                mistakes.add(
                    RequestError(
                        f"output {shown(name)} is there twice; send it once", element(OUTPUTS_PATH, i)
                    )
                )
            else:
                seen.add(name)
            if mistakes.full:
                break
        mistakes.check()
        return tuple(sent)

    def unknown(self, name: Any) -> str:
        """Message for a ``name`` that is no output."""
        near = near_matches(name[:100], self.names) if isinstance(name, str) else ""
        return f"{shown(name)} is not an output of this model{near or '; it has ' + ', '.join(self.names)}"

    def are_plain(self, names: Sequence[str]) -> bool:
        """Tell if ``names`` are right, and an answer of one sample may hold these outputs."""
        return (
            0 < len(names) == len(set(names))
            and set(names) <= set(self.names)
            and self.numbers(names) <= self.max_numbers
        )

    def numbers(self, names: Sequence[str]) -> int:
        """Numbers a sample in the vectors among ``names``."""
        return sum(self.sizes.get(name, 0) for name in names)

    def check_size(self, names: Sequence[str], samples: int) -> None:
        """LimitError if ``samples`` with these outputs make an answer that is too large."""
        each = self.numbers(names)
        if each * samples > self.max_numbers:
            raise LimitError(
                f"{samples} samples with vectors of {each} numbers give {each * samples} numbers, over "
                f"{self.max_numbers}; send at most {self.max_numbers // each} samples a request, or ask for "
                "other outputs",
                OUTPUTS_PATH,
            )

    def rank_by(self, sent: Any, names: Sequence[str]) -> Expression:
        """Expression in ``sent``, null for the declared one, or the first probability of ``names``, or of the model.

        RequestError if it is wrong, or there is nothing to rank by.
        """
        text = self._declaration.serving.rank_by if sent is None else sent
        if text is None:
            text = self._first_probability(names)
        if not isinstance(text, str):
            raise RequestError(
                f"rank_by is {shown(text)}; send an expression of outputs and dense features, such as "
                f'"{self.names[0]}"',
                RANK_BY_PATH,
            )
        expression = self._expressions.get(text)
        if expression is None:
            try:
                expression = ranking_expression(text, self._declaration)
            except ValueError as error:
                raise RequestError(f"rank_by {shown(text)}: {error}", RANK_BY_PATH) from None
            # Clients send the same again and again.
            if len(self._expressions) < _MAX_EXPRESSIONS_KEPT:
                self._expressions[text] = expression
        return expression

    def _first_probability(self, names: Sequence[str]) -> str:
        for name in (*names, *self.names):
            if name not in self.sizes:
                return f"`{name}`"
        raise RequestError(
            "the model gives no probability to rank by; send rank_by, an expression of dense features",
            RANK_BY_PATH,
        )
