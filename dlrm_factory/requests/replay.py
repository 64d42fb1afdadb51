"""Golden requests through the whole of the service: decode, batch, score, encode."""

from __future__ import annotations

import math

import msgspec

from dlrm_factory.errors import WeightsError
from dlrm_factory.goldens import Golden, Goldens
from dlrm_factory.ranks import RankedScorer
from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer

__all__ = ["replay", "replay_with"]

_SHOWN = 200

Prediction = float | dict[str, float | list[float]]


def replay(service: DLRMService, goldens: Goldens, tolerance: float) -> float:
    """Ask every golden request alone, then all in the largest batches that come.

    Args:
        tolerance: the most that a probability may differ from what is expected.

    Returns:
        The largest difference of a probability.

    WeightsError names the first golden request that is not reproduced.
    """
    requests = [Request(bytes(golden.request)) for golden in goldens.requests]
    alone = [service.handle([request])[0] for request in requests]
    largest = _compare(goldens, alone, tolerance, "alone")
    # As many as come in one batch, so that memory and kernels meet the largest batch before clients do.
    size = max(service.batch_requests, len(requests))
    together = service.handle([requests[i % len(requests)] for i in range(size)])
    for start in range(0, size, len(requests)):
        answers = together[start : start + len(requests)]
        largest = max(largest, _compare(goldens, answers, tolerance, f"in a batch of {size}"))
    return largest


def replay_with(scorer: Scorer | RankedScorer, goldens: Goldens, tolerance: float) -> float:
    """`replay` with a service over ``scorer``."""
    return replay(DLRMService(scorer, vocabularies=scorer.vocabularies), goldens, tolerance)


def _compare(goldens: Goldens, answers: list[Answer], tolerance: float, how: str) -> float:
    largest = 0.0
    for number, (golden, answer) in enumerate(zip(goldens.requests, answers, strict=False), start=1):
        found = _prediction(answer)
        difference = float("inf") if found is None else _difference(golden, found)
        if not difference <= tolerance:
            got = (
                f"gives {found}"
                if found is not None
                else f"is answered {answer.status} {_short(answer.body)}"
            )
            raise WeightsError(
                f"golden request {number} of {len(goldens)} ({how}) {got}, but {_expected(golden)} is expected "
                f"(within {tolerance:g}); the weights, the code or the installed packages do not score as those "
                f"that the archive was made with: {_short(bytes(golden.request))}"
            )
        largest = max(largest, difference)
    return largest


def _expected(golden: Golden) -> Prediction | None:
    return golden.expected if golden.outputs is None else golden.outputs


def _difference(golden: Golden, found: Prediction) -> float:
    """Largest difference of a probability, or of a vector's number by its length; infinity if outputs are others."""
    expected = _expected(golden)
    if not isinstance(found, dict) or not isinstance(expected, dict):
        same = isinstance(found, float) and isinstance(expected, float)
        return abs(found - expected) if same else math.inf  # type: ignore[operator]
    if found.keys() != expected.keys():
        return math.inf
    return max(_distance(found[name], expected[name]) for name in expected)


def _distance(found: float | list[float], expected: float | list[float]) -> float:
    if isinstance(found, float) and isinstance(expected, float):
        return abs(found - expected)
    if not isinstance(found, list) or not isinstance(expected, list) or len(found) != len(expected):
        return math.inf
    length = max(1.0, math.hypot(*expected))
    return max((abs(a - b) / length for a, b in zip(found, expected, strict=True)), default=0.0)


def _prediction(answer: Answer) -> Prediction | None:
    if answer.status != 200:
        return None
    try:
        return msgspec.json.decode(answer.body, type=_Predictions).predictions[0]
    except (msgspec.MsgspecError, IndexError):
        return None


class _Predictions(msgspec.Struct):
    predictions: list[float | dict[str, float | list[float]]]


def _short(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
