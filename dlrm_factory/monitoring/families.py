"""Metrics of a worker by Prometheus's conventions: names, units, labels, buckets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from dlrm_factory.config import DLRMDeclaration

__all__ = [
    "ARCHIVE_CREATED",
    "BATCH_REQUESTS",
    "BATCH_SAMPLES",
    "BATCH_SECONDS",
    "CODES",
    "COUNTED_AT",
    "DRIFT_REFERENCE",
    "ENGINES",
    "FAMILIES",
    "GOLDENS",
    "GOLDEN_DIFFERENCE",
    "LOAD_SECONDS",
    "MISSING",
    "READS",
    "REQUESTS",
    "SAMPLES",
    "SCORES",
    "SHAPES",
    "STAGES",
    "STAGE_SECONDS",
    "STARTED",
    "TRUNCATED",
    "UNKNOWN_IDS",
    "WORKERS",
    "Family",
    "series_of",
]

Labels = tuple[str, ...]


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """Metric of one name.

    Fields:
        name: as Prometheus shows it; a counter's ends in ``_total``.
        kind: counter, gauge or histogram.
        help: one line.
        labels: names of its labels, beside model and version.
        buckets: upper bounds of a histogram's, but for +Inf.
        merge: of several workers' values. Those of counters and histograms are always added.
        live: only workers that run count.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()
    merge: Literal["sum", "max", "min"] = "sum"
    live: bool = False

    @property
    def width(self) -> int:
        """Numbers of one series: buckets with +Inf, none cumulative, and the sum; or one."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


_SECONDS = (
    *(0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0),
)
_POWERS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)
_PROBABILITIES = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)

# `unread`: refused before its samples were known, or asked for a description.
SHAPES = ("columns", "rows", "torchserve", "ranking", "kserve", "arrow", "unread")
CODES = ("200", "400", "413", "500", "503")
STAGES = ("decode", "score", "encode")
ENGINES = ("eager", "compiled")
READERS = ("gathered", "columns", "rows", "ranking")

REQUESTS = Family(
    name="dlrm_requests_total",
    kind="counter",
    help="Requests that workers answered, by the shape of the body and the status code.",
    labels=("shape", "code"),
)
SAMPLES = Family(
    name="dlrm_samples_total",
    kind="counter",
    help="Samples in requests that were read, by the shape of the body.",
    labels=("shape",),
)
BATCH_REQUESTS = Family(
    name="dlrm_batch_requests",
    kind="histogram",
    help="Requests in a batch that TorchServe handed to a worker.",
    buckets=_POWERS[:10],
)
BATCH_SAMPLES = Family(
    name="dlrm_batch_samples",
    kind="histogram",
    help="Samples in a batch that TorchServe handed to a worker.",
    buckets=_POWERS,
)
BATCH_SECONDS = Family(
    name="dlrm_batch_duration_seconds",
    kind="histogram",
    help="Time that a worker takes for a batch, from TorchServe's request objects to the bytes of the answers.",
    buckets=_SECONDS,
)
STAGE_SECONDS = Family(
    name="dlrm_stage_duration_seconds",
    kind="histogram",
    help="Parts of a batch's time: decode, score, encode.",
    labels=("stage",),
    buckets=_SECONDS,
)
SCORES = Family(
    name="dlrm_score",
    kind="histogram",
    help="Probabilities that the model gave, of a sample of all where there are many. Their mean is sum / count.",
    buckets=_PROBABILITIES,
)
READS = Family(
    name="dlrm_reads_total",
    kind="counter",
    help="Bodies in JSON by reader. A fast reader reads a body, leaves it to the next reader, or fails, by a fault "
    "of its own; the reference reads or refuses all that is left.",
    labels=("reader", "outcome"),
)
MISSING = Family(
    name="dlrm_feature_missing_total",
    kind="counter",
    help="Samples that lack a feature: a dense one takes its default, a sparse one has an empty bag.",
    labels=("feature",),
)
UNKNOWN_IDS = Family(
    name="dlrm_feature_unknown_ids_total",
    kind="counter",
    help="Ids that the vocabulary of the feature's table lacks.",
    labels=("feature",),
)
TRUNCATED = Family(
    name="dlrm_feature_truncated_bags_total",
    kind="counter",
    help="Bags that were cut to max_length.",
    labels=("feature",),
)
GOLDENS = Family(
    name="dlrm_goldens",
    kind="gauge",
    help="Golden requests that every worker reproduced when it loaded the model.",
    merge="min",
    live=True,
)
GOLDEN_DIFFERENCE = Family(
    name="dlrm_golden_difference",
    kind="gauge",
    help="Largest difference of a golden request's probability from the expected one, over workers.",
    merge="max",
    live=True,
)
WORKERS = Family(
    name="dlrm_workers",
    kind="gauge",
    help="Workers that have loaded the model, by the engine that scores: eager or compiled.",
    labels=("engine",),
    live=True,
)
STARTED = Family(
    name="dlrm_worker_start_time_seconds",
    kind="gauge",
    help="Time at which the newest worker had loaded the model, in seconds since the epoch.",
    merge="max",
    live=True,
)
COUNTED_AT = Family(
    name="dlrm_worker_counted_timestamp_seconds",
    kind="gauge",
    help="Time up to which all workers have counted, in seconds since the epoch; some 0.5 s ago.",
    merge="min",
    live=True,
)
LOAD_SECONDS = Family(
    name="dlrm_load_duration_seconds",
    kind="gauge",
    help="Time that loading the model took, of the slowest worker.",
    merge="max",
    live=True,
)
ARCHIVE_CREATED = Family(
    name="dlrm_archive_created_timestamp_seconds",
    kind="gauge",
    help="Time at which the archive was made, in seconds since the epoch.",
    merge="max",
)
DRIFT_REFERENCE = Family(
    name="dlrm_drift_reference_samples",
    kind="gauge",
    help="Held-out samples that the archive's reference of drift is made of; 0 if it has none, and so no drift.",
    merge="min",
)

FAMILIES = (
    REQUESTS,
    SAMPLES,
    BATCH_REQUESTS,
    BATCH_SAMPLES,
    BATCH_SECONDS,
    STAGE_SECONDS,
    SCORES,
    READS,
    MISSING,
    UNKNOWN_IDS,
    TRUNCATED,
    GOLDENS,
    GOLDEN_DIFFERENCE,
    WORKERS,
    STARTED,
    COUNTED_AT,
    LOAD_SECONDS,
    ARCHIVE_CREATED,
    DRIFT_REFERENCE,
)


def series_of(family: Family, declaration: DLRMDeclaration) -> Sequence[Labels]:
    """Values of the labels of each series that ``family`` has for a model; all are known beforehand."""
    sparse = declaration.sparse_features
    known: dict[str, Sequence[Labels]] = {
        REQUESTS.name: [(shape, code) for shape in SHAPES for code in CODES],
        SAMPLES.name: [(shape,) for shape in SHAPES if shape != "unread"],
        STAGE_SECONDS.name: [(stage,) for stage in STAGES],
        READS.name: [
            *((reader, outcome) for reader in READERS for outcome in ("read", "left", "failed")),
            ("reference", "read"),
        ],
        MISSING.name: [(name,) for name in (*declaration.dense_names, *declaration.sparse_names)],
        UNKNOWN_IDS.name: [(f.name,) for f in sparse if f.ids == "vocabulary"],
        TRUNCATED.name: [(f.name,) for f in sparse if f.over_max_length == "truncate"],
        WORKERS.name: [(engine,) for engine in ENGINES],
    }
    return known.get(family.name, [()])
