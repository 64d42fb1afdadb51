"""The rows of the comparison: what is measured, against what, and what it should reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

__all__ = ["ROWS", "Row"]

Numbers = Mapping[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """``ratio`` of ours to the reference, over all rounds.

    Args:
        work, reference: in words.
        ours, theirs: keys of the measured numbers.
        bound: what the ratio should reach, the most it may be where ``at_most``; None where it is but told.
    """

    work: str
    reference: str
    ours: str
    theirs: str
    bound: float | None = None
    at_most: bool = False

    def ratio(self, numbers: Numbers) -> float:
        """The median of each round's ratio: rounds differ more than what is compared within one."""
        pairs = zip(numbers[self.ours], numbers[self.theirs], strict=True)
        return median(ours / theirs for ours, theirs in pairs)

    def met(self, numbers: Numbers) -> bool | None:
        """None without a bound."""
        if self.bound is None:
            return None
        ratio = self.ratio(numbers)
        return ratio <= self.bound if self.at_most else ratio >= self.bound


_ONE = "1 sample, 64 connections, requests/s"
_MANY = "512 samples, 8 connections, samples/s"
_LONE = "1 sample, 1 connection, p50 ms"
_PLAIN = "echo handler, TorchServe's own wire"

ROWS: tuple[Row, ...] = (
    Row(
        work=_MANY,
        reference="json.loads + eager int8 model, one process, no HTTP",
        ours="512",
        theirs="in process",
        bound=4.0,
    ),
    Row(
        work=_ONE,
        reference="stock-like handler, batch 64 / 2 ms, logs off",
        ours="1",
        theirs="stock 1",
        bound=2.0,
    ),
    Row(
        work=_ONE,
        reference="stock-like handler, TorchServe's default settings",
        ours="1",
        theirs="default 1",
        bound=15.0,
    ),
    Row(work=_ONE, reference="echo handler, same wire and settings", ours="1", theirs="echo 1", bound=0.7),
    Row(work=_ONE, reference=_PLAIN, ours="1", theirs="plain echo 1"),
    Row(
        work=f"{_LONE}, throughput profile",
        reference="echo handler, same settings",
        ours="lone",
        theirs="echo lone",
        bound=1.3,
        at_most=True,
    ),
    Row(work=f"{_LONE}, throughput profile", reference=_PLAIN, ours="lone", theirs="plain echo lone"),
    Row(
        work=f"{_LONE}, latency profile",
        reference="echo handler, same settings",
        ours="latency lone",
        theirs="echo latency lone",
        bound=1.3,
        at_most=True,
    ),
    Row(
        work=f"{_LONE}, latency profile",
        reference=_PLAIN,
        ours="latency lone",
        theirs="plain echo latency lone",
    ),
    Row(
        work="1 sample at 70 % of the highest load, p99 ms",
        reference="p50",
        ours="70 % p99",
        theirs="70 % p50",
        bound=3.0,
        at_most=True,
    ),
    Row(
        work="512 samples at 70 % of the highest load, p99 ms",
        reference="p50",
        ours="512 70 % p99",
        theirs="512 70 % p50",
        bound=3.0,
        at_most=True,
    ),
    Row(work=f"{_MANY}, 2 workers", reference="1 worker", ours="512 on 2", theirs="512", bound=1.4),
)
