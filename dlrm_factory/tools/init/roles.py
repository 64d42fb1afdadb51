"""Role of a column in the model, by its name and profile, with the size of its table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dlrm_factory.config.declaration import DenseFeature, IdKind, SparseFeature, Table
from dlrm_factory.features import shown
from dlrm_factory.tools.init.profile import ColumnProfile

__all__ = [
    "Role",
    "as_dense",
    "bag_length",
    "embedding_dim",
    "layer_sizes",
    "names_id",
    "role_of",
    "table_rows",
]

_FEATURE = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_ID = frozenset(
    (
        "id", "ids", "uid", "uuid", "guid", "key", "code", "hash", "zip", "zipcode", "postcode",
        "sku", "isbn", "asin", "gtin", "user", "customer", "visitor", "session", "device", "item",
        "product", "movie", "article", "video", "song", "ad", "advert", "campaign", "creative",
        "category", "cat", "brand", "seller", "shop", "store", "site", "app", "page", "publisher",
        "advertiser", "query", "city", "region", "state", "country", "language", "locale",
        "browser", "os", "model", "type", "class", "group", "segment", "gender", "channel", "slot",
        "position",
    )
)  # fmt: skip
_TIME = frozenset(["time", "timestamp", "ts", "date", "datetime", "day", "created", "updated", "at", "when"])

MAX_VOCABULARY = 1_000_000  # more ids are hashed
_STEPS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
_MAX_ROWS = 2**31 - 1
_DIMS = (8, 16, 32, 64)
_CODES = 64  # whole numbers with so few values and hardly a gap are codes
_UNIQUE_ROWS = 20
_UNIQUE_BEGINNING = 1000  # in a short beginning an id may well not have come again yet
_NUMERIC = 0.95  # of the cells, for a column of numbers with mistakes
_SEPARATED = 0.05
_MAX_WORDS = 10  # that mean missing
_EPOCHS = (
    (6e8, 2.5e9),
    (6e11, 2.5e12),
    (6e14, 2.5e15),
    (6e17, 2.5e18),
)  # s, ms, us, ns since 1970: 1989 to 2049
_DATES = (19_000_101, 21_001_231)  # 20260131


def is_feature_name(name: str) -> bool:
    """True if a declaration can have a feature of this name."""
    return _FEATURE.fullmatch(name) is not None


def names_id(name: str) -> bool:
    """``user_id``, ``zip``, ``itemCode``: numbers in such a column are names of things."""
    return _last(name) in _ID


def names_time(name: str) -> bool:
    """``created_at``, ``timestamp``, ``date``."""
    return _last(name) in _TIME


def _last(name: str) -> str:
    words = [word.lower() for word in _WORD.findall(name)]
    return words[-1] if words else ""


def table_rows(ids: int, room: float = 1.2) -> int:
    """``ids`` and ``room`` for new ones, rounded up to a number people would write."""
    return min(_rounded_up(max(ids * room, 10)), _MAX_ROWS)


def bag_length(longest: int, all_rows: bool) -> int:
    """The longest bag that was seen and half as much again, rounded up."""
    return _rounded_up(max(longest, 1) * (1.5 if all_rows else 2))


def embedding_dim(distinct: Iterable[int]) -> int:
    """The same for all tables: the first of 8, 16, 32, 64 that is twice the fourth root of the most ids or more.

    The fourth root is a common rule for one table; a DLRM's tables share one dimension, and the largest matters most.
    """
    wanted = 2 * math.sqrt(math.sqrt(max(distinct, default=1)))
    return next((dim for dim in _DIMS if dim >= wanted), _DIMS[-1])


def layer_sizes(dim: int) -> tuple[list[int], list[int]]:
    """Layer sizes of the dense and the over arch: wider for wider embeddings."""
    return [4 * dim, dim], [8 * dim, 4 * dim, 1]


def _rounded_up(number: float) -> int:
    power = 10 ** math.floor(math.log10(number))
    return next(math.ceil(step * power) for step in _STEPS if step * power >= number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Role of one column.

    Fields:
        reason: why, and what was found, in one line.
        dense, sparse, table: what to declare.
        wrong: cells that the feature cannot take, which count as missing; words that mean missing are none of them.
    """

    column: str
    kind: Literal["dense", "sparse", "time", "left out"]
    reason: str
    dense: DenseFeature | None = None
    sparse: SparseFeature | None = None
    table: Table | None = None
    wrong: int = 0


def role_of(profile: ColumnProfile, *, all_rows: bool, embedding_dim: int = 8) -> Role:
    """``all_rows``: the profile is of all the data, not of its beginning."""
    if problem := _useless(profile):
        return Role(column=profile.name, kind="left out", reason=problem)
    if problem := _time(profile):
        return Role(column=profile.name, kind="time", reason=problem)
    if profile.lists or profile.separated >= _SEPARATED * profile.present:
        return _sparse(profile, _bag_reason(profile), all_rows, embedding_dim, many=True)
    if is_numeric(profile):
        return _of_numbers(profile, all_rows, embedding_dim)
    if problem := _unique(profile, all_rows):
        return Role(column=profile.name, kind="left out", reason=problem)
    what = "numbers with leading zeros" if profile.zeros else "text"
    return _sparse(profile, f"{what}, {_distinct(profile)}", all_rows, embedding_dim)


def as_dense(profile: ColumnProfile, *, all_rows: bool) -> Role | None:
    """The column as a number; None if it holds something else."""
    if profile.lists or not profile.present or not is_numeric(profile):
        return None
    return _dense(profile, "taken as a number, as a DLRM needs one", all_rows)


def is_numeric(profile: ColumnProfile) -> bool:
    """True if the cells are numbers, but for a few mistakes. A leading zero makes a number the name of something."""
    cells = profile.present - profile.blanks
    share = 1 if names_id(profile.name) else _NUMERIC
    return profile.zeros == 0 and profile.numbers >= share * cells


def _useless(profile: ColumnProfile) -> str | None:
    if not is_feature_name(profile.name):
        return 'its name is none for a feature (letters, digits, "_" and "-"); rename the column to use it'
    if profile.other is not None:
        return f"holds {profile.other}"
    if not profile.present:
        return "holds nothing"
    if profile.distinct.count == 1 and not profile.lists:
        return f"holds one value only: {profile.examples[0]}"
    return None


def _time(profile: ColumnProfile) -> str | None:
    if profile.times >= _NUMERIC * profile.present:
        return f"times such as {profile.examples[0]}"
    least, most = profile.sample.least, profile.sample.most
    if profile.lists or profile.whole < profile.present or not least <= most:
        return None
    named = names_time(profile.name)
    if named and _DATES[0] <= least and most <= _DATES[1]:
        return f"dates such as {profile.examples[0]}"
    varied = profile.distinct.count > 0.5 * profile.present
    if (
        (named or varied)
        and any(low <= least and most <= high for low, high in _EPOCHS)
        and not names_id(profile.name)
    ):
        return f"times since 1970, {least:.0f} to {most:.0f}"
    return None


def _of_numbers(profile: ColumnProfile, all_rows: bool, embedding_dim: int) -> Role:
    sample = profile.sample
    plain = profile.whole >= profile.numbers  # written as ids are: 17, not 17.0
    if (names_id(profile.name) and not sample.fractional) or (plain and _codes(profile)):
        if problem := _unique(profile, all_rows):
            return Role(column=profile.name, kind="left out", reason=problem)
        what = (
            "whole numbers under a name of ids" if names_id(profile.name) else "whole numbers used as codes"
        )
        return _sparse(profile, f"{what}, {_distinct(profile)}", all_rows, embedding_dim)
    if plain and sample.most - sample.least < 2 * profile.present and (problem := _unique(profile, all_rows)):
        return Role(column=profile.name, kind="left out", reason=problem)
    return _dense(profile, _number_reason(profile), all_rows)


def _codes(profile: ColumnProfile) -> bool:
    span = profile.sample.most - profile.sample.least + 1
    return span <= _CODES and span <= 1.5 * profile.distinct.count


def _unique(profile: ColumnProfile, all_rows: bool) -> str | None:
    share = 1.0 if profile.distinct.exact else 0.97  # an estimate may be some percent off
    if (
        profile.present >= (_UNIQUE_ROWS if all_rows else _UNIQUE_BEGINNING)
        and profile.distinct.count >= share * profile.present
    ):
        return f"every row has another value ({_distinct(profile)} in {profile.present:,} rows): nothing to learn"
    return None


def _dense(profile: ColumnProfile, reason: str, all_rows: bool) -> Role:
    tail = profile.sample.long_tailed
    words = dict(profile.missing_words().most_common(_MAX_WORDS))
    wrong = profile.present - profile.numbers - sum(words.values())
    feature = DenseFeature(
        name=profile.name,
        default=float(f"{profile.sample.quantile(0.5):.6g}"),
        transform="log1p_standardize" if tail else "standardize",
        missing_values=tuple(words) or None,
        # Other rows than these may hold other words.
        unreadable="missing" if wrong or (words and not all_rows) else "error",
    )
    if words:
        named = ", ".join(f"{shown(word)} ({count:,})" for word, count in words.items())
        reason += f"; {named} {'means' if len(words) == 1 else 'mean'} missing"
    if wrong:
        cells = "1 cell is no number" if wrong == 1 else f"{wrong:,} cells are no numbers"
        known = {word.lower() for word in words}
        odd = next((text for text in profile.words if text.strip().lower() not in known), None)
        example = "" if odd is None else f", such as {shown(odd)}"
        reason += f"; {cells}{example}: missing"
    return Role(column=profile.name, kind="dense", reason=reason, dense=feature, wrong=wrong)


def _number_reason(profile: ColumnProfile) -> str:
    sample = profile.sample
    kind = "numbers with fractions" if sample.fractional else "whole numbers"
    tail = ", with a long tail" if sample.long_tailed else ""
    return (
        f"{kind} from {sample.least:g} to {sample.most:g}{tail}, {_distinct(profile)}, "
        f"{(profile.missing + sum(profile.missing_words().values())) / profile.rows:.1%} missing"
    )


def _sparse(
    profile: ColumnProfile, reason: str, all_rows: bool, embedding_dim: int, *, many: bool = False
) -> Role:
    distinct = (profile.parts if many else profile.distinct).count
    exact = (profile.parts if many else profile.distinct).exact
    whole = profile.whole >= profile.numbers > 0 and profile.numbers >= (0 if many else profile.present)
    greatest = profile.sample.most
    dense_ids = whole and profile.sample.least >= 0 and greatest + 1 <= 1.25 * distinct + 16
    # Names of things, such as users, grow; codes, such as hours, do not.
    fixed = not many and not names_id(profile.name) and _codes(profile)
    ids: IdKind
    if all_rows and exact and dense_ids and fixed:
        ids, rows = "index", table_rows(int(greatest) + 1)
        why = f"a code is a row; one from {rows:,} on is refused, which a vocabulary would take"
    elif exact and distinct <= MAX_VOCABULARY:
        ids, rows = "vocabulary", table_rows(distinct)
        why = "an id that training has not seen takes the last row"
    else:
        ids, rows = "hash", table_rows(distinct, room=1.5)
        why = f"over {MAX_VOCABULARY:,} ids; any new one has a row, perhaps another's, too"
    sparse = SparseFeature(
        name=profile.name,
        table=f"t_{profile.name}",
        ids=ids,
        out_of_vocabulary=1 if ids == "vocabulary" else None,
        max_length=bag_length(profile.longest, all_rows) if many else 1,
        over_max_length="error" if all_rows or not many else "truncate",
    )
    table = Table(
        name=f"t_{profile.name}",
        num_embeddings=rows,
        embedding_dim=embedding_dim,
        pooling="mean" if many else "sum",
    )
    reason = f"{reason}; {ids}: {why}"
    return Role(column=profile.name, kind="sparse", reason=reason, sparse=sparse, table=table)


def _bag_reason(profile: ColumnProfile) -> str:
    what = "lists" if profile.lists else f'text with several ids between "{profile.separator}"'
    return f"{what}, up to {profile.longest} at once, {_count(profile.parts.count, profile.parts.exact)}"


def _distinct(profile: ColumnProfile) -> str:
    return _count(profile.distinct.count, profile.distinct.exact)


def _count(count: int, exact: bool) -> str:
    return f"{count:,} different" if exact else f"about {count:,} different (HyperLogLog)"
