"""Names of a model of the user's own → those of the declared one, by ``architecture.prefixes``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

__all__ = ["name_before", "with_prefixes"]


def with_prefixes(
    names: Iterable[str], prefixes: Mapping[str, str], is_wrapper: Callable[[str], bool]
) -> dict[str, str]:
    """The declared model's name of each of ``names`` that has a prefix of ``prefixes``: the longest that fits.

    A prefix is whole parts of a name, which points divide; an empty one fits every name. Parts at the front that
    ``is_wrapper`` are left out where no prefix fits otherwise.
    """
    longest = sorted(((_parts(theirs), _parts(ours)) for theirs, ours in prefixes.items()), key=_length)
    found = {}
    for name in names:
        parts = _parts(name)
        while parts:
            ours = next((o + parts[len(t) :] for t, o in longest if parts[: len(t)] == t), None)
            if ours is not None:
                found[name] = ".".join(ours)
                break
            if not is_wrapper(parts[0]):
                break
            parts = parts[1:]
    return found


def name_before(ours: str, prefixes: Mapping[str, str]) -> str:
    """The name that `with_prefixes` would make ``ours`` of; ``ours`` itself if no prefix gives it."""
    parts = _parts(ours)
    pairs = sorted(((_parts(mine), _parts(theirs)) for theirs, mine in prefixes.items()), key=_length)
    return next((".".join(t + parts[len(o) :]) for o, t in pairs if parts[: len(o)] == o), ours)


def _parts(name: str) -> list[str]:
    return [part for part in name.split(".") if part]


def _length(pair: tuple[list[str], list[str]]) -> int:
    return -len(pair[0])
