"""Request shapes: the keys each is known by, the batch that a body becomes, and the form of its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.errors import LimitError, RequestError, near_matches
from dlrm_factory.features import FeatureEncoder, FeatureError, shown
from dlrm_factory.requests.formats.mistakes import Mistakes, member
from dlrm_factory.requests.formats.outputs import Asked, ModelOutputs, Scores

__all__ = [
    "FALL_BACKS",
    "AnswerForm",
    "DecodedRequest",
    "Encoding",
    "Entry",
    "FallBack",
    "PathOf",
    "PlainForm",
    "RequestReader",
    "RequestShape",
    "Shape",
    "check_known",
    "check_samples",
    "encode_columns",
    "encode_or_explain",
    "unknown_names",
]

RequestShape = Literal["columns", "rows", "torchserve", "ranking", "kserve", "arrow"]

PathOf = Callable[[FeatureError], str]
Entry = tuple[int, dict[str, Any]]
T = TypeVar("T")


class FallBack(Exception):
    """A fast reader leaves the body, wrong or unusual, to the reference reader."""


# Errors of msgspec and an encoder that mean the same.
FALL_BACKS = (FallBack, FeatureError, RecursionError, msgspec.DecodeError, UnicodeDecodeError)


class AnswerForm:
    """Form of an answer: scores → its JSON. A value: two of the same form are equal."""

    @property
    def also(self) -> tuple[str, ...]:
        """Outputs that the form needs beside those that are asked for."""
        return ()

    def content(self, scores: Scores, asked: Asked) -> dict[str, Any]:
        """The answer's JSON. RequestError if what the client sent lets there be none."""
        raise NotImplementedError

    def entries(self, scores: Scores, asked: Asked) -> list[Entry]:
        """The samples that are answered, in order, and what the answer says of each: at least its ``score``."""
        return [(i, {"score": score}) for i, score in enumerate(scores.values(asked.names))]

    def columns(
        self, scores: Scores, asked: Asked, left_out: Sequence[str | None]
    ) -> Mapping[str, Sequence[float]]:
        """Probabilities, or logits, that make up a score: name → one number a sample.

        ``left_out``: the samples stand as many times one after another, each time without this feature.
        """
        return {name: scores.numbers[name] for name in asked.names}

    def parts(self, scores: Scores) -> list[npt.NDArray[np.float32]]:
        """Numbers that stand behind the JSON."""
        return []


class PlainForm(AnswerForm, Enum):
    """Forms that hold scores and nothing else. Each is JSON ``before`` and ``after`` its one score."""

    PREDICTIONS = b'{"predictions":[', b"]}"
    SCORE = b'{"score":', b"}"

    def __init__(self, before: bytes, after: bytes) -> None:
        self.before = before
        self.after = after

    def content(self, scores: Scores, asked: Asked) -> dict[str, Any]:
        """All scores in the request's order; or that of the one sample."""
        values = scores.values(asked.names)
        return {"predictions": values} if self is PlainForm.PREDICTIONS else self.of_one(values[0])

    def of_one(self, value: Any) -> dict[str, Any]:
        """The answer for one sample, whose JSON ``value`` is."""
        return {"predictions": [value]} if self is PlainForm.PREDICTIONS else {"score": value}


class Encoding(Enum):
    """Bytes that a client takes its answer in.

    BINARY: JSON, and behind it numbers as float32, little-endian. ARROW: a stream of the scores.
    """

    JSON = "JSON"
    BINARY = "binary"
    ARROW = "Arrow"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedRequest:
    """One request, ready to be joined with others.

    Fields:
        batch: its samples.
        asked: outputs that it asks for.
        form: of its answer.
        path_of: the path of one of its values, for a mistake that only shows later.
        shape: of its body.
        context: one sample whose bags all of ``batch`` share, where ``batch`` has empty ones, with the dense features
            that they share, which ``batch`` has too.
        encoding: of its answer.
        copies: times that its samples stand in ``batch``, one after another.
    """

    batch: FeatureBatch
    asked: Asked
    form: AnswerForm
    path_of: PathOf
    shape: RequestShape
    context: FeatureBatch | None = None
    encoding: Encoding = Encoding.JSON
    copies: int = 1

    @property
    def as_logit(self) -> bool:
        """True if a logit is given of a probability."""
        return self.asked.output == "logit"

    @property
    def outputs(self) -> Sequence[str]:
        """Names of all outputs that the answer needs."""
        return (
            tuple(dict.fromkeys((*self.asked.names, *self.form.also))) if self.form.also else self.asked.names
        )

    def requests(self) -> list[DecodedRequest]:
        """The request alone."""
        return [self]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReader:
    """Facts of the model that decoding needs.

    Fields:
        encoder: raw values → `FeatureBatch`.
        max_samples: the most samples in one request.
        model_name, model_version: for answers that repeat them.
        outputs: of the model.
    """

    encoder: FeatureEncoder
    max_samples: int
    model_name: str = "dlrm"
    model_version: str | None = None
    outputs: ModelOutputs = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", ModelOutputs(self.encoder.declaration))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One request shape.

    Fields:
        name: for messages.
        keys: its top-level keys; one of them in a body makes the body this shape.
        decode: ``(body, asked, reader)`` → `DecodedRequest`; RequestError with the path of a mistake.
    """

    name: str
    keys: tuple[str, ...]
    decode: Callable[[Mapping[str, Any], Asked, RequestReader], DecodedRequest]


def encode_columns(
    reader: RequestReader, columns: Mapping[str, Sequence[Any]], size: int, path_of: PathOf
) -> FeatureBatch:
    """The batch of ``size`` samples; wrong values raise RequestError with their paths."""
    return encode_or_explain(
        lambda: reader.encoder.encode(columns, size),
        lambda: reader.encoder.mistakes(columns, size),
        path_of,
    )


def encode_or_explain(
    encode: Callable[[], T], explain: Callable[[], Iterable[FeatureError]], path_of: PathOf
) -> T:
    """The result of ``encode``. If it raises FeatureError, RequestError with the mistakes that ``explain`` finds."""
    try:
        return encode()
    except FeatureError as error:
        first = error
    mistakes = Mistakes()
    mistakes.add_all(_as_request_error(error, path_of) for error in explain())
    mistakes.check()
    raise _as_request_error(first, path_of)


def _as_request_error(error: FeatureError, path_of: PathOf) -> RequestError:
    kind = LimitError if error.over_limit else RequestError
    return kind(error.message, path_of(error))


def check_known(names: Iterable[str], reader: RequestReader, path: str) -> None:
    """RequestError if some of ``names``, keys of the object at ``path``, are not features."""
    mistakes = Mistakes()
    mistakes.add_all(unknown_names(names, reader, path))
    mistakes.check()


def unknown_names(
    names: Iterable[str], reader: RequestReader, path: str, *, also: AbstractSet[str] = frozenset()
) -> Iterator[RequestError]:
    """A RequestError for each of ``names``, keys of the object at ``path``, that is not a feature or in ``also``."""
    for name in names:
        if name not in reader.encoder.known and name not in also:
            near = near_matches(name[:100], reader.encoder.names)
            yield RequestError(
                f"{shown(name)} is not a feature of this model{near or '; remove it, or declare it'}",
                member(path, name),
            )


def check_samples(count: int, reader: RequestReader, path: str) -> None:
    """LimitError for more than max_samples."""
    if count > reader.max_samples:
        raise LimitError(
            f"{count} samples are over max_samples {reader.max_samples}; send fewer samples a request, "
            "or raise serving.max_samples in the declaration",
            path,
        )
