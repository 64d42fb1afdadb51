"""Options of a declaration beside the model itself: how it is sharded, served and trained."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["ServingOptions", "ServingProfile", "ShardingOptions", "Strict", "TrainingOptions"]

ServingProfile = Literal["throughput", "latency"]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frozen after reading; an unknown field is an error."""


class ShardingOptions(Strict, kw_only=True, frozen=True):
    """The hardware the planner places the tables on, and the ranks that serve.

    Fields:
        world_size: ranks in all.
        hosts: machines the ranks are spread over; divides world_size.
        device: ``cpu`` or ``cuda``.
        memory: bytes a rank has for tables, e.g. ``80GB``; null asks the machine
            (cuda: 80GB if there is none).
        replicate_below: bytes, e.g. ``64MB``; of several ranks that serve, each has a copy of every table with
            ``sharding: auto`` that is smaller, as far as its memory goes; 0 for none.
        timeout_s: seconds until a rank that does not answer counts as gone, when served.
    """

    world_size: int = 1
    hosts: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    memory: str | None = None
    replicate_below: str | int = "64MB"
    timeout_s: float = 5.0

    @property
    def local_world_size(self) -> int:
        """Number of ranks on each host."""
        return self.world_size // self.hosts


class ServingOptions(Strict, kw_only=True, frozen=True):
    """Settings of the archive's model-config.yaml, and the limits on requests.

    Fields:
        profile: ``throughput`` gathers requests into batches; ``latency`` hands each one over at once.
        batch_size: the most requests TorchServe hands over at once; if not given 64 for ``throughput``, 1 for
            ``latency``.
        max_batch_delay_ms: how long the first request of a batch waits for others; 1 if not given, and at least.
            A batch_size of 1 waits for none.
        min_workers, max_workers: worker processes at start, and the most that scaling allows.
        response_timeout_s: a batch older than this fails and its worker is restarted.
        startup_timeout_s: how long a worker may take to load.
        threads: torch threads a worker; keep workers x threads <= cores.
        max_samples: the most samples in one request (413 above it).
        max_body_bytes: the largest request body (413 above it).
        compile: compile the dense parts for the host's CPU, once for all its workers: a worker is not ready
            ``before_ready``; ``background`` scores eagerly until it is done, so that scores change then;
            ``off`` never compiles.
        precision: of the compiled dense parts; ``auto`` is bf16 on a CPU that multiplies it natively, else fp32. Of a
            module of the user's own it is fp32.
        outputs: those that an answer gives if the request names none; null for all probabilities.
        rank_by: what rankings sort by if the request says nothing: an expression of outputs and dense features, such
            as ``click * purchase * price``; null for the first output.
    """

    profile: ServingProfile = "throughput"
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    min_workers: int = 1
    max_workers: int = 4
    response_timeout_s: int = 60
    startup_timeout_s: int = 600
    threads: int = 1
    max_samples: int = 5000
    max_body_bytes: int = 6_553_500
    compile: Literal["before_ready", "background", "off"] = "before_ready"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    outputs: list[str] | None = None
    rank_by: str | None = None

    @property
    def batch_requests(self) -> int:
        """The most requests in a batch: as declared, else as the profile says."""
        return self.batch_size or (64 if self.profile == "throughput" else 1)

    @property
    def batch_delay_ms(self) -> int:
        """Milliseconds that the first request of a batch waits for others: as declared, else the least there is."""
        return self.max_batch_delay_ms or 1


class TrainingOptions(Strict, kw_only=True, frozen=True):
    """Settings of `dlrm train`.

    Fields:
        label: the column with 0 or 1, or a comparison such as ``rating >= 4``; of several outputs each has its own.
        group_column: the column by which GAUC groups held-out rows, such as the user; null for none.
        batch_size: samples a step and rank.
        epochs: passes over the training part.
        optimizer: of all but the tables.
        learning_rate: of the dense optimiser.
        sparse_optimizer: of the tables, fused into their backward pass.
        sparse_learning_rate: of the tables' optimiser.
        warmup_steps: steps over which both learning rates rise from near 0 to what is declared.
        learning_rate_decay: what both do after that, until the last step: ``none``, ``linear`` to 0, ``cosine`` to 0.
        gradient_clipping: the largest L2 norm of the dense gradients of a step; larger ones are scaled down to it.
        evaluate_every: steps between evaluations; null evaluates after each epoch.
        early_stopping: stop after this many evaluations in a row without a better AUC on the validation part, and keep
            the best weights; null trains to the end and keeps the last.
        validation: the share of the training rows that early stopping goes by in place of training on them; null is 0.1
            with early_stopping, and none without it. Held-out rows never decide anything.
        refit: once early stopping has found how long to train, train anew for as long, on the validation rows too.
        split: how the held-out part is chosen: ``hash`` of the row number and the seed, or ``time``, the latest
            rows by time_column. Files of held-out rows given to `dlrm train` replace both.
        time_column: the column to split by, a number or a time; for ``split: time``.
        holdout: the share of rows that is held out.
        max_bad_rows: the share of rows that may be unreadable; they are left out and counted, more is an error.
        seed: of the weights, the split and the order of samples.
        separator: splits a text column of a multi-valued feature into ids.
    """

    label: str = "label"
    group_column: str | None = None
    batch_size: int = 512
    epochs: int = 1
    optimizer: Literal["adam", "adagrad", "sgd"] = "adam"
    learning_rate: float = 0.001
    sparse_optimizer: Literal["row_wise_adagrad", "adagrad", "adam", "sgd"] = "row_wise_adagrad"
    sparse_learning_rate: float = 0.05
    warmup_steps: int = 0
    learning_rate_decay: Literal["none", "linear", "cosine"] = "none"
    gradient_clipping: float | None = None
    evaluate_every: int | None = None
    early_stopping: int | None = None
    validation: float | None = None
    refit: bool = False
    split: Literal["hash", "time"] = "hash"
    time_column: str | None = None
    holdout: float = 0.1
    max_bad_rows: float = 0.0
    seed: int = 1
    separator: str = "|"

    @property
    def validation_share(self) -> float:
        """The share of the training rows that is not trained on: as declared, else as early stopping needs."""
        if self.validation is not None:
            return self.validation
        return 0.0 if self.early_stopping is None else 0.1
