"""Rows of the comparison: the work, its reference, and the ratio to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import median

from compare.fastapi_server import KINDS
from compare.measurements import SCORER_BATCHES, targets_of
from dlrm_factory.errors import DataError

__all__ = ["ROWS", "Row", "choose_rows", "without_fastapi"]

Numbers = Mapping[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """``ratio`` of ours to the reference, over all rounds.

    Args:
        name: for the option ``--only``.
        work, reference: in words.
        ours, theirs: keys of the measured numbers.
        bound: what the ratio should reach, the most it may be where ``at_most``; None where it is but told.
    """

    name: str
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
_MANY = "512 candidates, 8 connections, samples/s"
_LONE = "1 sample, 1 connection, p50 ms"
_PLAIN = "echo handler, TorchServe's own wire"
_THREADS = "FastAPI thread pool, eager int8 model"


def _row(
    name: str,
    work: str,
    reference: str,
    keys: tuple[str, str],
    bound: float | None = None,
    *,
    at_most: bool = False,
) -> Row:
    ours, theirs = keys
    return Row(
        name=name, work=work, reference=reference, ours=ours, theirs=theirs, bound=bound, at_most=at_most
    )


def _scorer_row(batch: int, bound: float) -> Row:
    keys = (f"scorer {batch}", f"eager scorer {batch}")
    reference = "eager int8 DistributedModelParallel"
    return _row(f"scorer-{batch}", f"scorer, batch {batch}, samples/s", reference, keys, bound)


ROWS: tuple[Row, ...] = (
    *(_scorer_row(batch, 5.4 if batch == 1 else 4.0) for batch in SCORER_BATCHES),
    _row(
        "512-process",
        _MANY,
        "json.loads + eager int8 model, one process, no HTTP",
        ("512", "in process"),
        5.0,
    ),
    _row("1-stock", _ONE, "stock-like handler, batch 64 / 2 ms, logs off", ("1", "stock 1"), 4.0),
    _row("1-fastapi", _ONE, "FastAPI, dynamic batches 64 / 2 ms, eager int8 model", ("1", "fastapi 1")),
    _row("lone-fastapi", f"{_LONE}, default profile", _THREADS, ("lone", "fastapi lone"), 1.0, at_most=True),
    _row(
        "128-fastapi",
        "128 candidates, 1 connection, samples/s",
        _THREADS,
        ("128 lone", "fastapi 128 lone"),
        2.5,
    ),
    _row(
        "512-fastapi",
        "512 candidates, 1 connection, samples/s",
        _THREADS,
        ("512 lone", "fastapi 512 lone"),
        4.0,
    ),
    _row(
        "1-p99",
        "1 sample at 70 % of the highest load, p99 ms",
        "p50",
        ("70 % p99", "70 % p50"),
        2.5,
        at_most=True,
    ),
    _row(
        "512-p99",
        "512 candidates at 70 % of the highest load, p99 ms",
        "p50",
        ("512 70 % p99", "512 70 % p50"),
        3.0,
        at_most=True,
    ),
    _row("512-workers", f"{_MANY}, 2 workers", "1 worker", ("512 on 2", "512"), 1.4),
    _row("1-default", _ONE, "stock-like handler, TorchServe's default settings", ("1", "default 1"), 15.0),
    _row("1-echo", _ONE, "echo handler, same wire and settings", ("1", "echo 1"), 0.7),
    _row("1-plain", _ONE, _PLAIN, ("1", "plain echo 1")),
    _row(
        "lone-echo",
        f"{_LONE}, default profile",
        "echo handler, same settings",
        ("lone", "echo lone"),
        1.3,
        at_most=True,
    ),
    _row("lone-plain", f"{_LONE}, default profile", _PLAIN, ("lone", "plain echo lone")),
    _row(
        "latency-echo",
        f"{_LONE}, latency profile",
        "echo handler, same settings",
        ("latency lone", "echo latency lone"),
        1.3,
        at_most=True,
    ),
    _row("latency-plain", f"{_LONE}, latency profile", _PLAIN, ("latency lone", "plain echo latency lone")),
)


def choose_rows(patterns: Sequence[str]) -> list[Row]:
    """Rows whose name matches one of the shell ``patterns``; all without any. DataError for one without a match."""
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in ROWS):
            names = ", ".join(row.name for row in ROWS)
            raise DataError(f'there is no row "{pattern}"; the rows are {names}')
    return [row for row in ROWS if not patterns or any(fnmatchcase(row.name, each) for each in patterns)]


def without_fastapi(rows: Sequence[Row]) -> list[Row]:
    """Those of ``rows`` that no FastAPI server is needed for."""
    return [row for row in rows if targets_of({row.ours, row.theirs}).isdisjoint(KINDS)]
