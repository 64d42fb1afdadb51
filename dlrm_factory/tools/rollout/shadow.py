"""The same live requests, asked of two versions: the old one, whose requests they are, and the new one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from dlrm_factory.tools.rollout.judging import (
    VersionFigures,
    kept_of_top,
    population_stability,
    read_scores,
)
from dlrm_factory.tools.rollout.watching import Watch
from dlrm_factory.tools.server import Endpoint
from dlrm_factory.tools.server.management import http_client

__all__ = ["Shadow", "compare_on_live_requests"]

_PAUSE_S = 0.01
_TIMEOUT_S = 30.0
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """Figures of both versions on the same requests; times are those of a client that asks one after the other."""

    old: VersionFigures
    new: VersionFigures
    kept_of_top: float | None

    def as_dict(self) -> dict[str, Any]:
        psi = population_stability(self.old.scores, self.new.scores)
        return {
            "old": self.old.as_dict(),
            "new": self.new.as_dict(),
            "psi": None if psi is None else round(psi, 4),
            "kept_of_top_10": None if self.kept_of_top is None else round(self.kept_of_top, 4),
        }


class _Answers:
    """Answers of one version."""

    def __init__(self, client: httpx.Client, model: str, version: str) -> None:
        self._client, self._path = client, f"/predictions/{quote(model, safe='')}/{quote(version, safe='')}"
        self.requests = self.errors = 0
        self.times: list[float] = []
        self.scores: list[float] = []

    def ask(self, body: bytes) -> list[Any] | None:
        """Ranking of the answer; None if it has none."""
        start = time.perf_counter()
        try:
            response: httpx.Response | None = self._client.post(self._path, content=body, headers=_JSON)
        except httpx.TransportError:
            response = None
        self.requests += 1
        self.times.append(1000 * (time.perf_counter() - start))
        if response is None or response.status_code >= 500:
            self.errors += 1
            return None
        scores, ranking = read_scores(response.content) if response.is_success else ([], None)
        self.scores += scores
        return ranking

    def figures(self) -> VersionFigures:
        return VersionFigures(
            requests=self.requests,
            errors=self.errors,
            times=np.array(self.times, dtype=np.float64),
            scores=np.array(self.scores, dtype=np.float64),
        )


def compare_on_live_requests(
    watch: Watch, endpoint: Endpoint, model: str, old: str, new: str, *, requests: int, seconds: float
) -> Shadow:
    """Ask both versions for ``requests`` of the requests that ``watch`` keeps, or for as many as come in ``seconds``.

    Which version is asked first takes turns. Nothing of a request is kept but its scores.
    """
    pairs: list[tuple[list[Any] | None, list[Any] | None]] = []
    end = time.monotonic() + seconds
    with http_client(endpoint.url.rstrip("/"), endpoint.auth, _TIMEOUT_S) as client:
        asked = [_Answers(client, model, version) for version in (old, new)]
        while asked[0].requests < requests and time.monotonic() < end:
            body = watch.take_body()
            if body is None:
                time.sleep(_PAUSE_S)
                continue
            order = (0, 1) if asked[0].requests % 2 else (1, 0)
            rankings = {place: asked[place].ask(body) for place in order}
            pairs.append((rankings[0], rankings[1]))
    return Shadow(old=asked[0].figures(), new=asked[1].figures(), kept_of_top=kept_of_top(pairs))
