"""Scores and errors → the bytes of an answer."""

from __future__ import annotations

import json
import math
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
    "answer_going_away",
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

# Within these the powers of ten needed are exact in float64, so rounding in float64 is rounding in decimal.
_MIN_PLAIN, _MAX_PLAIN = 1e-12, 1e9
_MAX_PLACES = 20  # of the 9 digits of a number above _MIN_PLAIN
_POWERS = 10.0 ** np.maximum(np.arange(-_MAX_PLACES, _MAX_PLACES + 1), 0)
# Up to so many scores, one by one is faster than all at once: 1 µs in place of 30 µs for a single one.
_MAX_ONE_BY_ONE = 64
_MAX_PROBABILITIES_ONE_BY_ONE = 8  # likewise
_BLOCK = 65_536  # probabilities at once, of which each takes some 60 bytes for a moment
_DIGITS = 9  # of a probability, or of what it lacks to 1
# So many decimals of a number below 1 are an integer that float64 holds, and so large a power of ten is exact.
_MAX_DECIMALS, _MAX_POWER = 15, 22
_POWERS_OF_TEN = 10.0 ** np.arange(_MAX_POWER + 1)


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


def answer_going_away() -> Answer:
    """503: the worker's server, or its version of the model, goes away, and takes no more requests."""
    message = "the server, or this version of the model, is going away; send the request again"
    return _answer_error_body(503, {"code": 503, "type": "GoingAway", "message": message, "path": "$"})


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

    9 digits of p or of 1 - p, whichever is smaller: scores near 1 stay as far apart as those near 0. Different
    logits of 0.1 to 22, and of -0.1 to -745, give different numbers; from 38 on p is 1.
    """
    if len(logits) > _BLOCK:
        blocks = range(0, len(logits), _BLOCK)
        return np.concatenate([answered_probabilities(logits[i : i + _BLOCK]) for i in blocks])
    powers_of_e = np.exp(-np.abs(logits, dtype=np.float64))
    if len(logits) <= _MAX_PROBABILITIES_ONE_BY_ONE:
        pairs = zip(powers_of_e.tolist(), logits.tolist(), strict=True)
        return np.array([_answered_probability(e, logit > 0) for e, logit in pairs], dtype=np.float64)
    smaller = powers_of_e / (1 + powers_of_e)
    # The decimals that hold 9 digits. Of the smallest numbers, and of 0, below.
    decimals = _DIGITS - 1 - np.floor(np.log10(np.maximum(smaller, 1e-300))).astype(np.int64)
    powers = _POWERS_OF_TEN[np.minimum(decimals, _MAX_POWER)]
    above = logits > 0
    found: Float64 = np.where(above, 1 - smaller, smaller)
    is_plain = decimals <= np.where(above, _MAX_DECIMALS, _MAX_POWER)
    if is_plain.all():
        return np.rint(found * powers) / powers
    found[is_plain] = np.rint(found[is_plain] * powers[is_plain]) / powers[is_plain]
    for i in np.flatnonzero(~(is_plain | above)):
        found[i] = float(f"{found[i]:.{_DIGITS - 1}e}")
    return found


def _answered_probability(power_of_e: float, above: bool) -> float:
    """One of `answered_probabilities`, to the bit, of e to the power of -|logit|."""
    smaller = power_of_e / (1 + power_of_e)
    decimals = _DIGITS - 1 - math.floor(math.log10(max(smaller, 1e-300)))
    found = 1 - smaller if above else smaller
    if decimals <= (_MAX_DECIMALS if above else _MAX_POWER):
        power = _POWERS_OF_TEN[decimals].item()
        return round(found * power) / power
    return found if above else float(f"{found:.{_DIGITS - 1}e}")


def shortest(scores: Float32) -> list[float]:
    """Floats whose JSON is the shortest decimal that reads back as the same float32.

    So 0.1, not 0.10000000149011612. ``scores``: finite float32 [B].
    """
    if len(scores) <= _MAX_ONE_BY_ONE:
        return [float(str(score)) for score in scores]
    wide = scores.astype(np.float64)
    size = np.abs(wide)
    plain = (size > _MIN_PLAIN) & (size < _MAX_PLAIN)
    exponent = np.floor(np.log10(np.where(plain, size, 1.0))).astype(np.int64)
    best = wide.copy()
    for digits in (9, 8, 7, 6):  # 9 digits hold any float32; the last that does is the shortest
        rounded = _round(wide, digits - 1 - exponent)
        best = np.where(rounded.astype(np.float32) == scores, rounded, best)
    numbers: list[float] = best.tolist()
    for i in np.flatnonzero(~plain):
        numbers[i] = float(str(scores[i]))
    return numbers


def _round(values: npt.NDArray[np.float64], places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """``values`` to decimal ``places``, which may be negative: the float64 nearest to that decimal."""
    up, down = _POWERS[_MAX_PLACES + places], _POWERS[_MAX_PLACES - places]
    rounded: npt.NDArray[np.float64] = np.rint(values * up / down) * down / up
    return rounded
