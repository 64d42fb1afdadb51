"""One context, many candidates, the best first.

::

    {"context": {"user_id": "u17", "price": 9.5},
     "candidates": [{"id": "sku-1", "item_id": 12}, {"id": "sku-2", "item_tags": [3, 9]}],
     "top_k": 10,
     "rank_by": "click * price"}

The candidates may also be columns: ``{"id": ["sku-1", "sku-2"], "item_id": [12, null]}``. The context is decoded,
looked up and pooled once, and so is what the model computes of it alone.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, Substitutions
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import RequestError
from dlrm_factory.features import FeatureError, shown
from dlrm_factory.requests.formats.columns.reference import check_columns, column_path
from dlrm_factory.requests.formats.mistakes import Mistakes, element, member
from dlrm_factory.requests.formats.outputs import Asked, Scores
from dlrm_factory.requests.formats.ranking.order import Order, order_of
from dlrm_factory.requests.formats.rows.reference import check_rows, columns_of, row_path, value_path
from dlrm_factory.requests.formats.shape import (
    AnswerForm,
    DecodedRequest,
    Entry,
    PathOf,
    RequestReader,
    Shape,
    check_known,
    encode_or_explain,
)

__all__ = ["ID", "RANKING", "RankingForm", "is_wrong_id", "with_context"]

ID = "id"
_CONTEXT, _CANDIDATES, _TOP_K, _RANK_BY = "context", "candidates", "top_k", "rank_by"
_CONTEXT_PATH, _CANDIDATES_PATH = "$.context", "$.candidates"
_MAX_ID = 2**63 - 1

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingForm(AnswerForm):
    """The best candidates first.

    Fields:
        labels: ``{"id": …}`` of each candidate, ``{}`` where it has none; empty if no candidate has one.
        top_k: candidates in the answer; None for all.
        order: what they are ranked by.
    """

    labels: Sequence[Mapping[str, Any]]
    top_k: int | None
    order: Order

    @property
    def also(self) -> tuple[str, ...]:
        """Outputs that the order needs."""
        return self.order.outputs

    def content(self, scores: Scores, asked: Asked) -> dict[str, Any]:
        """``{"ranking": [{"id": "sku-1", "index": 0, "score": 0.31}, …]}``, with ``outputs`` of each if wanted."""
        return {"ranking": [entry for _, entry in self.entries(scores, asked)]}

    def entries(self, scores: Scores, asked: Asked) -> list[Entry]:
        """The candidates, the best first; of equal ones the first comes first."""
        best = self.order.best(scores)[: self.top_k].tolist()
        numbers, labels = self.order.numbers(scores), self.labels
        if self.order.is_all(asked):
            return [
                (
                    i,
                    {**labels[i], "index": i, "score": numbers[i]}
                    if labels
                    else {"index": i, "score": numbers[i]},
                )
                for i in best
            ]
        outputs = scores.objects(asked.names)
        return [
            (
                i,
                {
                    **(labels[i] if labels else {}),
                    "index": i,
                    "score": numbers[i],
                    "outputs": outputs[i],
                },
            )
            for i in best
        ]

    def columns(
        self, scores: Scores, asked: Asked, left_out: Sequence[str | None]
    ) -> Mapping[str, Sequence[float]]:
        """The one number that candidates are ranked by."""
        return {"score": self.order.numbers(scores, left_out)}


def _decode(body: Mapping[str, Any], asked: Asked, reader: RequestReader) -> DecodedRequest:
    context, sent = body.get(_CONTEXT), body.get(_CANDIDATES)
    context = {} if context is None else context
    _check_context(context, reader)
    columns, size = _candidate_columns(sent, reader)
    _check_apart(context, sent, columns)
    labels = _labels(sent, columns, reader)
    top_k = _top_k(body.get(_TOP_K))
    rank_by = reader.outputs.rank_by(body.get(_RANK_BY), asked.names)

    def path_of(error: FeatureError) -> str:
        if error.feature in context:
            return value_path(context, error, _CONTEXT_PATH)
        return _candidate_path(sent, error)

    shared, batch = _encode(reader, context, columns, size, path_of)

    path = _CANDIDATES_PATH if isinstance(sent, list) else None
    order = order_of(rank_by, reader.encoder.declaration, context, columns, path)
    form = RankingForm(labels=labels, top_k=top_k, order=order)
    return DecodedRequest(
        batch=batch, asked=asked, form=form, path_of=path_of, context=shared, shape="ranking"
    )


def _check_context(context: Any, reader: RequestReader) -> None:
    if not isinstance(context, dict):
        raise RequestError(
            f"{shown(context)} is not an object; send the features that all candidates share, by name",
            _CONTEXT_PATH,
        )
    check_known(context, reader, _CONTEXT_PATH)


def _candidate_columns(sent: Any, reader: RequestReader) -> tuple[dict[str, Sequence[Any]], int]:
    """The candidates' values by name, their ids too, and how many candidates there are."""
    if isinstance(sent, dict):
        return sent, check_columns(sent, reader, _CANDIDATES_PATH, also={ID})
    if not isinstance(sent, list):
        found = "are missing" if sent is None else f"are {shown(sent)}"
        raise RequestError(
            f"the candidates {found}; send a list of objects, or an object of lists", _CANDIDATES_PATH
        )
    check_rows(sent, reader, _CANDIDATES_PATH, also={ID})
    return columns_of(sent), len(sent)


def _check_apart(context: Mapping[str, Any], sent: Any, columns: Columns) -> None:
    """RequestError for a feature that stands in the context and with candidates."""
    mistakes = Mistakes()
    for name in context:
        if name not in columns:
            continue
        path = _CANDIDATES_PATH
        if isinstance(sent, list):
            path = element(path, next(i for i, row in enumerate(sent) if name in row))
        mistakes.add(
            RequestError(
                f"{shown(name)} is in the context and with the candidates; send it in one of them",
                member(path, name),
            )
        )
    mistakes.check()


def _labels(sent: Any, columns: Columns, reader: RequestReader) -> list[dict[str, Any]]:
    """``{"id": …}`` a candidate, ``{}`` where it has none; an empty list if no candidate has one."""
    ids = columns.get(ID)
    if ids is None:
        return []
    if ID not in reader.encoder.known:  # else the feature's own checks hold
        mistakes = Mistakes()
        mistakes.add_all(_wrong_ids(sent, ids))
        mistakes.check()
    return [{} if is_wrong_id(label) or label is None else {ID: label} for label in ids]


def _wrong_ids(sent: Any, ids: Iterable[Any]) -> Iterator[RequestError]:
    for i, label in enumerate(ids):
        if is_wrong_id(label):
            yield RequestError(
                f"{shown(label)} is not a candidate's id; send a string or an int64, or leave it out",
                _candidate_path(sent, FeatureError("", feature=ID, sample=i)),
            )


def is_wrong_id(label: Any) -> bool:
    """True unless ``label`` is null, an int64, or a string that can be written back."""
    if isinstance(label, str):
        # Ascii is the common case; half a surrogate pair cannot be written back.
        return not label.isascii() and any("\ud800" <= character <= "\udfff" for character in label)
    if type(label) is int:
        return not -_MAX_ID - 1 <= label <= _MAX_ID
    return label is not None


def _top_k(top_k: Any) -> int | None:
    if top_k is None:
        return None
    if type(top_k) is not int or top_k < 1:
        raise RequestError(
            f"top_k is {shown(top_k)}; send a whole number of at least 1, or leave it out for all candidates",
            member("$", _TOP_K),
        )
    return top_k


def _encode(
    reader: RequestReader, context: Mapping[str, Any], columns: Columns, size: int, path_of: PathOf
) -> tuple[FeatureBatch | None, FeatureBatch]:
    """The context as one sample, None if it holds nothing, and the candidates with its dense features."""
    encoder = reader.encoder
    one = {name: [value] for name, value in context.items()}
    shared, batch = encode_or_explain(
        lambda: (encoder.encode(one, 1), encoder.encode(columns, size)),
        lambda: chain(encoder.mistakes(one, 1), encoder.mistakes(columns, size)),
        path_of,
    )
    return with_context(encoder.declaration, context, shared, batch)


def with_context(
    declaration: DLRMDeclaration, context: Container[str], shared: FeatureBatch, batch: FeatureBatch
) -> tuple[FeatureBatch | None, FeatureBatch]:
    """``shared``, the context's one sample, or None if it holds nothing; and candidates with its dense features.

    ``context``: names of the features in it, which the candidates in ``batch`` lack.
    """
    is_shared = [name in context for name in declaration.dense_names]
    if any(is_shared):
        batch = msgspec.structs.replace(batch, dense=np.where(is_shared, shared.dense, batch.dense))
    told = _substitutions(shared, batch, np.array(is_shared, dtype=np.bool_))
    return (shared if len(shared.values) or any(is_shared) else None), msgspec.structs.replace(
        batch, substitutions=told
    )


def _substitutions(
    shared: FeatureBatch, batch: FeatureBatch, is_shared: npt.NDArray[np.bool_]
) -> Substitutions | None:
    """Those of the context, which counts once for ids and for each candidate in dense features, and of candidates."""
    one, many = shared.substitutions or Substitutions(), batch.substitutions or Substitutions()
    none = np.zeros(len(is_shared), dtype=np.int64)
    once = len(batch) * (none if one.missing is None else one.missing)
    missing = np.where(is_shared, once, none if many.missing is None else many.missing)
    unknown, truncated = (
        _sum(one.unknown_ids, many.unknown_ids),
        _sum(one.truncated_bags, many.truncated_bags),
    )
    if unknown is None and truncated is None and not missing.any():
        return None
    return Substitutions(missing=missing, unknown_ids=unknown, truncated_bags=truncated)


def _sum(
    one: npt.NDArray[np.int64] | None, other: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64] | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _candidate_path(sent: Any, error: FeatureError) -> str:
    place = column_path if isinstance(sent, dict) else row_path
    return place(sent, error, _CANDIDATES_PATH)


RANKING = Shape(name="ranking", keys=(_CONTEXT, _CANDIDATES, _TOP_K, _RANK_BY), decode=_decode)
