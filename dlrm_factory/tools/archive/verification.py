"""An archive without a server: its files, its golden requests, and what serving costs in quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import FeatureBatch, split
from dlrm_factory.config.trust import is_trusted
from dlrm_factory.errors import UntrustedCodeError, WeightsError
from dlrm_factory.goldens import Goldens, golden_batch, read_goldens
from dlrm_factory.requests.numbers import answered_probabilities
from dlrm_factory.requests.replay import replay_with
from dlrm_factory.scorer import EAGER_TOLERANCE, TOLERANCE, Scorer
from dlrm_factory.tools.archive.archive_code import code_in
from dlrm_factory.tools.archive.findings import (
    CANDIDATES,
    CompiledFigures,
    EngineDrift,
    GoldenFigures,
    Verification,
)
from dlrm_factory.tools.archive.group_replay import replay_in_group
from dlrm_factory.tools.archive.reading import check_archive, unpacked_weights
from dlrm_factory.tools.metrics.metrics import answers_log_loss, auc, compare_aucs, log_loss, ties
from dlrm_factory.weights.held_out import HELD_OUT_FILE, HeldOut, read_held_out
from dlrm_factory.weights.seal import installed_versions
from dlrm_factory.weights.sealed import SealedWeights

__all__ = ["Verification", "verify", "verify_weights"]

_BEST = 10
# Compiled code for few samples, and for many. Scoring each alone takes ten times as long, so some are.
_BATCHES = (16, 512)
_MORE_BATCHES, _MAX_ALONE = (1, 7, 100), 512

Float32 = npt.NDArray[np.float32]


def verify(path: Path, *, ranks: int | None = None) -> Verification:
    """Prove the archive at ``path`` without a server, as ``dlrm verify`` does; `Verification.check` holds bounds.

    Sets torch's threads to the declared number, and compiles the dense parts if this host has not yet done so.

    Args:
        path: a ``.mar``, a ``.tar.gz``, or the folder of an archive or of sealed weights.
        ranks: replay the golden requests through a group of so many new processes too; None for as many as a worker
            of the archive has, if that is more than one.

    Raises:
        ArchiveError: the archive is damaged, was not made by dlrm, or this disk has no room to unpack it.
        WeightsError: a file is damaged or was added, or a golden request is not reproduced.
    """
    with unpacked_weights(path) as folder:
        check_archive(path, folder)
        found = verify_weights(folder)
        if ranks is None:
            declared = SealedWeights(folder).declaration.sharding.local_world_size
            ranks = declared if declared > 1 else None
        return found if ranks is None else replace(found, group=replay_in_group(folder, ranks))


def verify_weights(folder: Path, *, build: bool = True) -> Verification:
    """Check the sealed weights in ``folder``: every byte, the golden requests, the scores of the held-out samples.

    Args:
        build: compile the dense parts if this host has not yet done so.

    WeightsError if a file is damaged or a golden request is not reproduced.
    """
    sealed = SealedWeights(folder, again=True)
    code = code_in(folder)
    if not is_trusted(sealed.declaration):
        raise UntrustedCodeError(
            "every file is as it was sealed, but golden requests run the model's own dense net "
            f"({', '.join(code.module)}), which is code",
            sealed.declaration,
        )
    # As a worker does: packages are compiled for a number of threads.
    torch.set_num_threads(sealed.declaration.serving.threads)
    scorer = Scorer.load(folder, release=True)
    held_out = read_held_out(folder)
    if held_out is not None:
        held_out.check(sealed.declaration, str(folder / HELD_OUT_FILE))
    goldens = read_goldens(folder)
    engines: list[EngineDrift] = []
    largest: dict[str, float] = {}
    # Golden requests are one batch of all, in declared order; held-out samples keep theirs.
    asked = [] if goldens is None else [golden_batch(goldens, scorer.declaration, scorer.vocabularies)]
    scored: list[list[Float32]] = []
    batch_difference = 0.0

    def measure() -> None:
        compared = [*(scorer.logits(batch) for batch in asked)]
        if held_out is not None:
            compared.insert(0, scorer.logits(held_out.batch))
        if not all(np.isfinite(logits).all() for logits in compared):
            raise WeightsError(
                f"{folder}: {scorer.engine} scores are not finite numbers; are its weights finite?"
            )
        if held_out is not None:
            engines.append(_drift(scorer.engine, held_out, compared[0]))
        scored.append(compared)
        if goldens is not None:
            tolerance = EAGER_TOLERANCE if scorer.engine == "eager" else TOLERANCE[scorer.precision]
            largest[scorer.engine] = replay_with(scorer, goldens, tolerance)

    measure()
    if (held_out is not None or goldens is not None) and sealed.declaration.serving.compile != "off":
        scorer.compile(folder, build=build, probes=asked)
        if scorer.engine == "compiled":
            measure()
            batches = asked if held_out is None else [held_out.batch, *asked]
            batch_difference = max(_batch_difference(scorer, batch) for batch in batches)
    return Verification(
        files=len(sealed.seal.files),
        code=code,
        eager_reason=scorer.eager_reason,
        tables=len(sealed.tables.tables),
        samples=0 if held_out is None else len(held_out.batch),
        float_auc=None if held_out is None else auc(*_trained(held_out)),
        float_log_loss=None if held_out is None else log_loss(*_trained(held_out)),
        precision=scorer.precision,
        is_auto=sealed.declaration.serving.precision == "auto",
        engines=tuple(engines),
        compiled=None
        if len(scored) < 2
        else _compiled_figures(*scored, ranked=held_out is not None, batch_difference=batch_difference),
        goldens=None if goldens is None else _golden_figures(goldens, largest),
        training=sealed.seal.training,
        sealed_versions=sealed.seal.versions,
        versions=installed_versions(),
    )


def _trained(held_out: HeldOut) -> tuple[npt.NDArray[np.uint8], Float32]:
    """Labels and logits of the first probability, of the samples that count for it."""
    rows = held_out.counts_for(0)
    return held_out.labels[rows, 0], held_out.logits[rows, 0]


def _drift(engine: str, held_out: HeldOut, logits: Float32) -> EngineDrift:
    labels, trained = _trained(held_out)
    logits = logits[held_out.counts_for(0)]
    answered = answered_probabilities(logits)
    narrow = answered.astype(np.float32)
    differences = np.abs(answered - answered_probabilities(trained))
    reached, best = auc(labels, answered), auc(labels, trained)
    compared = compare_aucs(labels, trained, answered)
    return EngineDrift(
        engine=engine,
        auc=reached,
        log_loss=answers_log_loss(labels, answered),
        auc_loss=best - reached,
        auc_loss_low=None if compared is None else compared.low,
        auc_loss_high=None if compared is None else compared.high,
        auc_loss_is_chance=compared is None or not compared.is_significant,
        mean_difference=float(differences.mean()),
        max_difference=float(differences.max()),
        ties=ties(logits, answered),
        float32_auc_loss=best - auc(labels, narrow),
        float32_ties=ties(logits, narrow),
    )


def _batch_difference(scorer: Scorer, batch: FeatureBatch) -> float:
    """Largest difference of a sample's probability in batches of one size from the same sample's in another."""
    some = next(iter(split(batch, _MAX_ALONE)))
    few, many = (_answered(scorer, batch, size) for size in _BATCHES)
    more = [_answered(scorer, some, size) for size in _MORE_BATCHES]
    ways = [few[: len(some)], many[: len(some)], *more]
    return float(max(np.abs(few - many).max(), np.ptp(ways, axis=0).max()))


def _answered(scorer: Scorer, batch: FeatureBatch, size: int) -> npt.NDArray[np.float64]:
    """Probabilities of ``batch``, scored ``size`` samples at a time."""
    return np.concatenate([answered_probabilities(scorer.logits(piece)) for piece in split(batch, size)])


def _compiled_figures(
    eager: list[Float32], compiled: list[Float32], *, ranked: bool, batch_difference: float = 0.0
) -> CompiledFigures:
    """``ranked``: the first arrays are of held-out samples."""
    pairs = list(zip(eager, compiled, strict=True))
    overlaps = _overlaps(*pairs[0]) if ranked else np.empty(0)
    return CompiledFigures(
        max_difference=max(
            float(np.abs(answered_probabilities(one) - answered_probabilities(other)).max(initial=0))
            for one, other in pairs
        ),
        batch_difference=batch_difference,
        rankings=len(overlaps),
        top_10_overlap=float(overlaps.mean()) if len(overlaps) else None,
    )


def _overlaps(one: Float32, other: Float32) -> npt.NDArray[np.float64]:
    """The share of the 10 best by ``one`` that are among the 10 best by ``other``, of each ranking of 100 candidates.

    By logits, and equal ones as they come, as a server ranks them.
    """
    whole = len(one) // CANDIDATES * CANDIDATES
    best = [
        np.argsort(-logits[:whole].reshape(-1, CANDIDATES), axis=1, kind="stable")[:, :_BEST]
        for logits in (one, other)
    ]
    return np.array([len(np.intersect1d(*pair)) / _BEST for pair in zip(*best, strict=True)])


def _golden_figures(goldens: Goldens, largest: Mapping[str, float]) -> GoldenFigures:
    drifts = [
        abs(g.expected - g.trained)
        for g in goldens.requests
        if g.trained is not None and g.expected is not None
    ]
    return GoldenFigures(
        requests=len(goldens),
        real=sum(golden.real for golden in goldens.requests),
        largest=dict(largest),
        mean_drift=sum(drifts) / len(drifts) if drifts else None,
        max_drift=max(drifts, default=None),
    )
