"""One round of everything that is compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from compare.archives import Store
from compare.in_process import in_process_sample_rate
from compare.servers import Target
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import ServingError
from dlrm_factory.tools.bench.http.bodies import Body, random_bodies
from dlrm_factory.tools.bench.http.driving import drive
from dlrm_factory.tools.bench.http.outcome import Outcome

__all__ = ["Comparison"]

_OPEN_CONNECTIONS = 256
_SHARE_OF_HIGHEST = 0.7


@dataclass(kw_only=True)
class Comparison:
    """Numbers by key (see `rows`), one a round.

    Args:
        seconds: of each measurement.
        scratch: a folder to write to.
    """

    declaration: DLRMDeclaration
    store: Store
    targets: dict[str, Target]
    seconds: float
    scratch: Path
    numbers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._ones = random_bodies(self.declaration, "1")
        self._plain = random_bodies(self.declaration, "1", body_format="torchserve")
        self._many = random_bodies(self.declaration, "512")

    def run_round(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Every number once, each beside what it is compared with. ``tell`` is told what is measured now."""
        self._tell = tell
        self._one_sample()
        self._lone()
        self._many_samples()
        self._at_share_of_highest("1", self._ones, "")
        self._at_share_of_highest("512", self._many, "512 ", per_request=512)

    def _one_sample(self) -> None:
        for key, target, bodies in (
            ("stock 1", "stock", self._plain),
            ("1", "dlrm", self._ones),
            ("echo 1", "echo", self._ones),
            ("plain echo 1", "plain_echo", self._ones),
            ("default 1", "stock_default", self._plain),
        ):
            self.numbers[key].append(self._drive(key, target, bodies, connections=64).rate)

    def _lone(self) -> None:
        for key, target in (
            ("lone", "dlrm"),
            ("echo lone", "echo"),
            ("plain echo lone", "plain_echo"),
            ("latency lone", "dlrm_latency"),
            ("echo latency lone", "echo_latency"),
            ("plain echo latency lone", "plain_echo_latency"),
        ):
            self.numbers[key].append(self._drive(key, target, self._ones, connections=1).latency_ms(50))

    def _many_samples(self) -> None:
        self._tell("512 samples in one process")
        rate = in_process_sample_rate(self.store.sealed, self._many, self.seconds, self.scratch)
        self.numbers["in process"].append(rate)
        self.numbers["512"].append(self._drive("512", "dlrm", self._many, connections=8).sample_rate)
        with self._two_workers():
            outcome = self._drive("512 on 2", "dlrm", self._many, connections=8)
        self.numbers["512 on 2"].append(outcome.sample_rate)

    @contextmanager
    def _two_workers(self) -> Iterator[None]:
        self._tell("scaling")
        self.targets["dlrm"].scale(2)
        try:
            yield
        finally:
            self.targets["dlrm"].scale(1)

    def _at_share_of_highest(
        self, highest: str, bodies: Sequence[Body], prefix: str, per_request: int = 1
    ) -> None:
        rate = _SHARE_OF_HIGHEST * self.numbers[highest][-1] / per_request
        key = f"{prefix}70 %"
        outcome = self._drive(key, "dlrm", bodies, connections=_OPEN_CONNECTIONS, rate=rate)
        self.numbers[f"{key} p50"].append(outcome.latency_ms(50))
        self.numbers[f"{key} p99"].append(outcome.latency_ms(99))

    def _drive(
        self, key: str, target: str, bodies: Sequence[Body], *, connections: int, rate: float | None = None
    ) -> Outcome:
        self._tell(f"{key}: {target}, {connections} connections")
        load = self.targets[target].load(bodies, connections=connections, rate=rate, seconds=self.seconds)
        outcome = drive(load)
        if outcome.failed:
            raise ServingError(f"{key}: {outcome.statuses} {outcome.failures}")
        self.outcomes[key].append(outcome)
        return outcome
