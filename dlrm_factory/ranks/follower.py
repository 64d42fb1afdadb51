"""The loop of the ranks that do not lead."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.errors import GroupError
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.messages import Command, Head, Messages
from dlrm_factory.ranks.parcels import Part
from dlrm_factory.ranks.step import ANSWER_HEAD, RankStep
from dlrm_factory.scorer import Scorer

__all__ = [
    "BACKGROUND",
    "BFLOAT16",
    "BUILD",
    "EAGERLY",
    "MORE",
    "REASON_BYTES",
    "compile_rank",
    "follow",
    "write_reason",
]

logger = logging.getLogger(__name__)

EAGERLY, BFLOAT16, MORE = 1, 2, 4
BACKGROUND, BUILD = 1, 2
REASON_BYTES = 2048


def follow(scorer: Scorer, group: RankGroup, *, folder: Path | None = None) -> None:
    """Do as the leader says until it says to stop.

    Args:
        scorer: of this rank's part of the model.
        folder: sealed weights whose dense parts are compiled when the leader's are.

    GroupError if the leader or another rank is gone. Then this process should end, by `os._exit`: Python's own way out
    may wait for ranks that are gone.
    """
    messages = Messages(group, scorer.built.device)
    step = RankStep(scorer, group)
    probes: list[FeatureBatch] = []
    group.begin()
    while True:
        try:
            head, parts = messages.receive()
            if head.command is Command.STOP:
                return
            if head.command is Command.SCORE:
                dtype = torch.bfloat16 if head.flags & BFLOAT16 else torch.float32
                steps = _steps(messages, head, parts)
                for answer in step.score(steps, dtype=dtype, eagerly=bool(head.flags & EAGERLY)):
                    if len(answer) > ANSWER_HEAD:
                        messages.answer(answer)
            elif head.command is Command.PROBE:
                probes.append(_kept(parts[0], len(scorer.declaration.sparse_features)))
            elif head.command is Command.COMPILE:
                messages.answer(compile_rank(scorer, step, head, folder, probes), patiently=True)
                probes = []
            else:
                messages.answer(write_reason(step))
        except Exception as error:
            raise GroupError(f"rank {group.rank} of {group.size} cannot follow any more: {error}") from error


def _steps(messages: Messages, head: Head, parts: list[Part]) -> Iterator[list[Part]]:
    """Parts of all steps of a batch, of which ``head`` and ``parts`` are the first."""
    yield parts
    while head.flags & MORE:
        head, parts = messages.receive()
        yield parts


def compile_rank(
    scorer: Scorer, step: RankStep, head: Head, folder: Path | None, probes: list[FeatureBatch]
) -> torch.Tensor:
    """Compile this rank's dense parts, with all other ranks. Float32 [ANSWER_HEAD], an answer."""
    step.reason = ""
    if folder is not None:
        try:
            scorer.compile(
                folder,
                background=bool(head.flags & BACKGROUND),
                build=bool(head.flags & BUILD),
                probes=probes,
            )
        except Exception as error:
            step.note(error)
    answer = torch.zeros(ANSWER_HEAD)
    answer[0] = float(bool(step.reason))
    return answer


def write_reason(step: RankStep) -> torch.Tensor:
    """The rank's first error since this was last asked: uint8 [REASON_BYTES], UTF-8, zeros behind it."""
    text = step.reason.encode("utf-8", "replace")[:REASON_BYTES]
    step.reason = ""
    answer = np.zeros(REASON_BYTES, dtype=np.uint8)
    answer[: len(text)] = np.frombuffer(text, dtype=np.uint8)
    return torch.from_numpy(answer)


def _kept(part: Part, features: int) -> FeatureBatch:
    """The whole batch that a part holds, outside of the message's buffers."""
    bags = part.replicated
    lengths = np.ones((features, len(part.dense))) if bags.lengths is None else bags.lengths.cpu().numpy()
    return FeatureBatch(
        dense=part.dense.cpu().numpy().copy(),
        lengths=lengths.astype(np.int32),
        values=bags.values.cpu().numpy().astype(np.int64),
        weights=None if bags.weights is None else bags.weights.cpu().numpy().copy(),
        one_each=bags.lengths is None,
        in_range=True,
    )
