"""One round of everything that is compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from compare.archives import Store
from compare.in_process import in_process_sample_rate
from compare.measurements import HTTP, SCORER_BATCHES, HTTPMeasurement, needed_keys
from compare.servers import Target
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import ServingError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.bench.http.bodies import Body, random_bodies
from dlrm_factory.tools.bench.http.driving import drive
from dlrm_factory.tools.bench.http.outcome import Outcome
from dlrm_factory.tools.bench.score import one_hot_batch, time_batch

__all__ = ["Comparison"]

_OPEN_CONNECTIONS = 256
_SHARE_OF_HIGHEST = 0.7


@dataclass(kw_only=True)
class Comparison:
    """Numbers by key (see `measurements`), one a round.

    Args:
        keys: of the numbers that are wanted.
        seconds: of each measurement.
        scratch: a folder to write to.
    """

    declaration: DLRMDeclaration
    store: Store
    targets: dict[str, Target]
    keys: set[str]
    seconds: float
    scratch: Path
    numbers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.keys = needed_keys(self.keys)
        self._bodies: dict[tuple[int, bool], list[Body]] = {}

    def run_round(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Measure every number once, each beside what it is compared with. ``tell`` gets the name of each step."""
        self._tell = tell
        self._scorer()
        if "in process" in self.keys:
            tell("512 samples in one process")
            rate = in_process_sample_rate(self.store.sealed, self._requests(512), self.seconds, self.scratch)
            self.numbers["in process"].append(rate)
        for measurement in HTTP:
            if measurement.key in self.keys:
                self._http(measurement)
        if "512 on 2" in self.keys:
            with self._two_workers():
                outcome = self._drive("512 on 2", "dlrm", self._requests(512), connections=8)
            self.numbers["512 on 2"].append(outcome.sample_rate)
        self._at_share_of_highest("70 %", "1", samples=1)
        self._at_share_of_highest("512 70 %", "512", samples=512)

    def _scorer(self) -> None:
        for batch in SCORER_BATCHES:
            key = f"scorer {batch}"
            if key in self.keys:
                self._tell(key)
                ours, eager = self._scorers
                timing = time_batch(ours, eager, one_hot_batch(self.declaration, batch), self.seconds)
                taken = timing.eager if timing.compiled is None else timing.compiled
                self.numbers[key].append(1e3 * batch / taken)
                self.numbers[f"eager {key}"].append(1e3 * batch / timing.eager)

    @cached_property
    def _scorers(self) -> tuple[Scorer, Scorer]:
        """The compiled scorer, and the eager model in one that has no other path."""
        torch.set_num_threads(1)
        ours = Scorer.load(self.store.sealed)
        ours.compile(self.store.sealed)
        return ours, Scorer(DLRMFactory(self.declaration).build(weights=self.store.sealed))

    def _http(self, measurement: HTTPMeasurement) -> None:
        bodies = self._requests(measurement.samples, plain=measurement.plain)
        outcome = self._drive(
            measurement.key, measurement.target, bodies, connections=measurement.connections
        )
        number = {"rate": outcome.rate, "sample_rate": outcome.sample_rate, "p50": outcome.latency_ms(50)}
        self.numbers[measurement.key].append(number[measurement.number])

    def _requests(self, samples: int, *, plain: bool = False) -> list[Body]:
        """Made once: every target gets the same."""
        if (samples, plain) not in self._bodies:
            self._bodies[samples, plain] = random_bodies(
                self.declaration, str(samples), body_format="torchserve" if plain else "columns"
            )
        return self._bodies[samples, plain]

    @contextmanager
    def _two_workers(self) -> Iterator[None]:
        self._tell("scaling")
        self.targets["dlrm"].scale(2)
        try:
            yield
        finally:
            self.targets["dlrm"].scale(1)

    def _at_share_of_highest(self, key: str, highest: str, *, samples: int) -> None:
        percentiles = {f"{key} p{p}": p for p in (50, 99)}
        if not self.keys & set(percentiles):
            return
        rate = _SHARE_OF_HIGHEST * self.numbers[highest][-1] / samples
        bodies = self._requests(samples)
        outcome = self._drive(key, "dlrm", bodies, connections=_OPEN_CONNECTIONS, rate=rate)
        for name, percentile in percentiles.items():
            self.numbers[name].append(outcome.latency_ms(percentile))

    def _drive(
        self, key: str, target: str, bodies: list[Body], *, connections: int, rate: float | None = None
    ) -> Outcome:
        self._tell(f"{key}: {target}, {connections} connections")
        load = self.targets[target].load(bodies, connections=connections, rate=rate, seconds=self.seconds)
        outcome = drive(load)
        if outcome.failed:
            raise ServingError(f"{key}: {outcome.statuses} {outcome.failures}")
        self.outcomes[key].append(outcome)
        return outcome
