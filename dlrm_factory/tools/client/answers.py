"""The JSON of an answer → what a client returns. Each reader raises ValueError, KeyError or TypeError."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Explanation",
    "Float32",
    "ModelDescription",
    "RankedCandidate",
    "read_description",
    "read_explanations",
    "read_ranking",
    "read_scores",
]

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RankedCandidate:
    """One candidate of a ranking.

    Fields:
        id: the id it was sent with, None if it had none.
        index: its place among the candidates that were sent, from 0.
        score: as asked for, a probability or a logit.
    """

    id: str | int | None
    index: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why one sample has its score.

    Fields:
        score: of the sample as it is.
        contributions: feature → how much its value adds to the score.
    """

    score: float
    contributions: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """One version of a model as the server has it.

    Fields:
        name, version: as registered.
        ready_workers: processes that answer now.
        details: what the model says of itself: its features, limits, plan and versions.
    """

    name: str
    version: str
    ready_workers: int
    details: dict[str, Any]


def read_scores(answer: Any) -> Float32:
    """Float32 [B]."""
    scores = np.array(answer["predictions"], dtype=np.float32)
    if scores.ndim != 1:
        raise ValueError(f"the predictions have {scores.ndim} dimensions")
    return scores


def read_ranking(answer: Any) -> tuple[RankedCandidate, ...]:
    """Best first."""
    return tuple(
        RankedCandidate(id=each.get("id"), index=int(each["index"]), score=float(each["score"]))
        for each in answer["ranking"]
    )


def read_explanations(answer: Any) -> tuple[Explanation, ...]:
    """One a sample."""
    return tuple(
        Explanation(
            score=float(each["score"]),
            contributions={name: float(value) for name, value in each["contributions"].items()},
        )
        for each in answer["explanations"]
    )


def read_description(answer: Any) -> ModelDescription:
    """The first of TorchServe's list, which holds one version unless all were asked for."""
    found = answer[0]
    return ModelDescription(
        name=str(found["modelName"]),
        version=str(found["modelVersion"]),
        ready_workers=sum(worker["status"] == "READY" for worker in found["workers"]),
        details=dict(found.get("customizedMetadata") or {}),
    )
