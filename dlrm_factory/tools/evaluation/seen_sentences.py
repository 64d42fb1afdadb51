"""Sentences on the ids of samples that training saw, or did not."""

from __future__ import annotations

from collections.abc import Sequence

from dlrm_factory.tools.evaluation.results import SeenResult

__all__ = ["seen_sentences"]

_NAMED = 5  # features
_NOTABLE = 0.05  # of the ids not seen that count as seen
_NO_RECORD = (
    "The model carries no record of the ids that its training saw (an older version trained it, or it was imported), "
    "so figures for ids not seen are missing."
)


def seen_sentences(found: Sequence[SeenResult] | None) -> list[str]:
    """Say in how many samples an id is one that training did not see, and where the record is coarse."""
    if found is None:
        return [_NO_RECORD]
    cold = sorted((each for each in found if each.share_not_seen), key=lambda each: -each.share_not_seen)
    if not cold:
        sentences = ["Training saw every id of these samples."]
    else:
        named = ", ".join(f"{each.feature} {_percent(each.share_not_seen)}" for each in cold[:_NAMED])
        more = f", and {len(cold) - _NAMED} more features" if len(cold) > _NAMED else ""
        sentences = [f"Samples with an id that training did not see: {named}{more}."]
    coarse = [each for each in found if each.false_share > _NOTABLE]
    return sentences + [
        f"{each.feature}: {each.false_share:.0%} of the ids that training did not see count as seen, as the record of "
        "so many hashed ids is coarse."
        for each in coarse
    ]


def _percent(share: float) -> str:
    return "under 0.1%" if share < 0.001 else f"{share:.1%}"
