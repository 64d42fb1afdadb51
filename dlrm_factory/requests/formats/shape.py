"""What every request shape offers: the keys it is known by, and how a body becomes a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.errors import LimitError, RequestError, near_matches
from dlrm_factory.features import FeatureEncoder, FeatureError, shown
from dlrm_factory.requests.formats.mistakes import Mistakes
from dlrm_factory.requests.formats.paths import member

__all__ = [
    "Content",
    "DecodedRequest",
    "Entry",
    "Output",
    "PathOf",
    "RequestReader",
    "Shape",
    "check_known",
    "check_samples",
    "encode_columns",
    "encode_or_explain",
    "unknown_names",
]

Output = Literal["probability", "logit"]

PathOf = Callable[[FeatureError], str]
Content = Callable[[Sequence[float]], dict[str, Any]]
Entry = tuple[int, dict[str, Any]]
T = TypeVar("T")


def _in_order(scores: Sequence[float]) -> list[Entry]:
    return [(sample, {}) for sample in range(len(scores))]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedRequest:
    """One request, ready to be joined with others.

    Fields:
        batch: its samples.
        output: what a score is.
        content: the answer's JSON content, from one score (a float) a sample.
        path_of: the path of one of its values, for a mistake that only shows later.
        context: one sample whose bags all of ``batch`` share, where ``batch`` has empty ones.
        entries: which samples are answered, in what order, and what the answer says of each beside its score.
        arrow: the client takes its scores as an Arrow stream.
        binary: its scores follow the answer's JSON as float32, little-endian; ``content`` says so.
    """

    batch: FeatureBatch
    output: Output
    content: Content
    path_of: PathOf
    context: FeatureBatch | None = None
    entries: Callable[[Sequence[float]], list[Entry]] = _in_order
    arrow: bool = False
    binary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReader:
    """What decoding needs to know of the model.

    Fields:
        encoder: raw values → `FeatureBatch`.
        max_samples: the most samples in one request.
        model_name, model_version: for answers that repeat them.
    """

    encoder: FeatureEncoder
    max_samples: int
    model_name: str = "dlrm"
    model_version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One request shape.

    Fields:
        name: for messages.
        keys: its top-level keys; one of them in a body makes the body this shape.
        decode: ``(body, output, reader)`` → `DecodedRequest`; RequestError with the path of a mistake.
    """

    name: str
    keys: tuple[str, ...]
    decode: Callable[[Mapping[str, Any], Output, RequestReader], DecodedRequest]


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
    """What ``encode`` gives. If it raises FeatureError, RequestError with the mistakes that ``explain`` finds."""
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
