"""Scores and errors → the bytes of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import RequestError
from dlrm_factory.requests.formats.shape import PlainForm

__all__ = [
    "Answer",
    "answer_binary",
    "answer_error",
    "answer_group_lost",
    "answer_internal_error",
    "answer_json",
    "answer_ones",
    "answer_scaled_away",
    "answered_probabilities",
    "answered_scores",
    "shortest",
    "with_error_key",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# Within these the powers of ten needed are exact in float64, so rounding in float64 is rounding in decimal.
_MIN_PLAIN, _MAX_PLAIN = 1e-12, 1e9
_MAX_DIGITS = 9  # of a float32
_MAX_PLACES = 20  # of the 9 digits of a number above _MIN_PLAIN
_POWERS = 10.0 ** np.maximum(np.arange(-_MAX_PLACES, _MAX_PLACES + 1), 0)
# Up to so many scores, one by one is faster than all at once: 1 µs in place of 30 µs for a single one.
_MAX_ONE_BY_ONE = 32
_BLOCK = 65_536  # scores rounded at once: some ten temporary arrays each
_EXACT_PLACES = 15  # so many decimals of a number below 1 are an exact integer in float64


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP answer: its status, its body, the body's type, and further headers; JSON is in UTF-8."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}


def answer_json(content: Any) -> Answer:
    """200 with ``content``, which holds plain Python values only."""
    return Answer(status=200, body=msgspec.json.encode(content))


def answer_binary(content: Any, numbers: Sequence[float]) -> Answer:
    """200 with ``content``, and behind it ``numbers`` as float32, little-endian: KServe v2's binary answer."""
    head = msgspec.json.encode(content)
    return Answer(
        status=200,
        body=head + np.array(numbers, dtype="<f4").tobytes(),
        content_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


def answer_ones(forms: Sequence[PlainForm], scores: list[float]) -> list[Answer]:
    """Answers of requests of one sample: `answer_json` of each form with the score of its place, written at once."""
    written = msgspec.json.encode(scores)[1:-1].split(b",")
    return [
        Answer(status=200, body=b"%b%b%b" % (form.before, number, form.after))
        for form, number in zip(forms, written, strict=True)
    ]


def answer_error(error: RequestError) -> Answer:
    """The error's own status and body."""
    return _answer_error_body(error.code, error.body())


def with_error_key(answer: Answer) -> Answer:
    """The error ``answer`` with its message also under ``error``, where KServe's and Triton's clients read it."""
    body = json.loads(answer.body)
    return _answer_error_body(answer.status, {**body, "error": body["message"]})


def answer_internal_error(message: str) -> Answer:
    """500: the fault is ours."""
    return _answer_error_body(500, {"code": 500, "type": "InternalError", "message": message, "path": "$"})


def answer_scaled_away() -> Answer:
    """503: the request may have been answered already, so this answer must be one that nobody takes for another.

    TorchServe closes a connection after any error.
    """
    message = "the worker that had this request was scaled away; send it again"
    return _answer_error_body(503, {"code": 503, "type": "WorkerScaledAway", "message": message, "path": "$"})


def answer_group_lost() -> Answer:
    """503: a rank of the model is gone, and the request may be sent again."""
    message = "a process of the group that holds the model is gone; send it again"
    return _answer_error_body(503, {"code": 503, "type": "GroupLost", "message": message, "path": "$"})


def _answer_error_body(code: int, body: dict[str, Any]) -> Answer:
    # ASCII: what a client sent may be quoted, and need not be Unicode that UTF-8 can write.
    return Answer(status=code, body=json.dumps(body).encode("ascii"))


def answered_scores(logits: Float32, as_logit: npt.NDArray[np.bool_] | None = None) -> list[float]:
    """Numbers of JSON answers, one a sample: its probability, or its logit where ``as_logit``, bool [B], is true.

    ``logits``: float32 [B]; finite ones for logits, no NaN for probabilities.
    """
    chances: list[float] = answered_probabilities(logits).tolist()
    if as_logit is None:
        return chances
    for i, logit in zip(np.flatnonzero(as_logit), shortest(logits[as_logit]), strict=True):
        chances[i] = logit
    return chances


def answered_probabilities(logits: npt.NDArray[np.floating]) -> Float64:
    """Click-through rates p in [0, 1] as JSON answers give them: float64 [B] of ``logits`` [B].

    Whichever of p and 1 - p is smaller is the shortest decimal that reads back as the same float32, so that scores
    near 1 stay as far apart as scores near 0. p is exactly 1 from a logit of 37 on, and exactly 0 from -104 down.
    """
    if len(logits) > _BLOCK:
        blocks = range(0, len(logits), _BLOCK)
        return np.concatenate([answered_probabilities(logits[i : i + _BLOCK]) for i in blocks])
    smaller = np.exp(-np.abs(logits.astype(np.float64)))
    smaller /= 1 + smaller
    narrow = smaller.astype(np.float32)
    if len(narrow) <= _MAX_ONE_BY_ONE:
        pairs = zip(narrow, (logits > 0).tolist(), strict=True)
        return np.array(
            [_complement(each) if above else float(str(each)) for each, above in pairs], dtype=float
        )
    found, exponents = _shortest(narrow)
    above = np.flatnonzero(logits > 0)
    found[above] = _complements(found[above], exponents[above])
    return found


def _complement(score: np.float32) -> float:
    """1 less the shortest decimal of ``score``, in as few digits: 0.84777105, not 0.8477710500000001."""
    text = str(score)
    digits, _, exponent = text.partition("e")
    return round(1 - float(text), max(len(digits) - 2, 0) - int(exponent or 0))


def _complements(decimals: Float64, exponents: Int64) -> Float64:
    """`_complement` of many, which have the decimal ``exponents``."""
    places = _MAX_DIGITS - 1 - exponents
    powers = _POWERS[_MAX_PLACES + np.minimum(places, _EXACT_PLACES)]
    found = 1 - decimals
    return np.where(places <= _EXACT_PLACES, np.rint(found * powers) / powers, found)


def shortest(scores: Float32) -> list[float]:
    """Floats whose JSON is the shortest decimal that reads back as the same float32.

    So 0.1, not 0.10000000149011612. ``scores``: finite float32 [B].
    """
    if len(scores) <= _MAX_ONE_BY_ONE:
        return [float(str(score)) for score in scores]
    numbers: list[float] = _shortest(scores)[0].tolist()
    return numbers


def _shortest(scores: Float32) -> tuple[Float64, Int64]:
    """`shortest` of many, and the decimal exponent of each; -_MAX_PLACES where it is not plain."""
    wide = scores.astype(np.float64)
    size = np.abs(wide)
    plain = (size > _MIN_PLAIN) & (size < _MAX_PLAIN)
    exponents = np.floor(np.log10(np.where(plain, size, 1.0))).astype(np.int64)
    best = wide.copy()
    for digits in range(
        _MAX_DIGITS, _MAX_DIGITS - 4, -1
    ):  # 9 digits hold any float32; the last that does is the shortest
        rounded = _round(wide, digits - 1 - exponents)
        best = np.where(rounded.astype(np.float32) == scores, rounded, best)
    rest = np.flatnonzero(~plain)
    for i in rest:
        best[i] = float(str(scores[i]))
    exponents[rest] = -_MAX_PLACES
    return best, exponents


def _round(values: Float64, places: Int64) -> Float64:
    """``values`` to decimal ``places``, which may be negative: the float64 nearest to that decimal."""
    up, down = _POWERS[_MAX_PLACES + places], _POWERS[_MAX_PLACES - places]
    rounded: Float64 = np.rint(values * up / down) * down / up
    return rounded
