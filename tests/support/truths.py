"""Clicks from explicit truths that ask for one kind of net each: the rows to train on and to hold out as Parquet.

Every truth draws its constants and rows from a seed, and knows each row's true probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["Truth", "bought", "by_kind", "in_history", "low_rank", "order_three", "write"]

Column = np.ndarray | list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Rows and their truth.

    Fields:
        columns: features and labels by name, N values or lists of ids each.
        probabilities: of each label, float64 [N].
    """

    columns: Mapping[str, Column]
    probabilities: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["price"])


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def signs(random: np.random.Generator, count: int) -> np.ndarray:
    """A sign for each of ``count`` ids, float64 [count]; half of them are -1."""
    return random.permutation(np.where(np.arange(count) < count // 2, -1.0, 1.0))


def labelled(random: np.random.Generator, columns: dict[str, Column], **logits: np.ndarray) -> Truth:
    probabilities = {name: sigmoid(values) for name, values in logits.items()}
    labels = {name: (random.random(len(p)) < p).astype(np.int64) for name, p in probabilities.items()}
    return Truth(columns=columns | labels, probabilities=probabilities)


def order_three(seed: int, rows: int, ids: int = 16, rank: int = 4) -> Truth:
    """A click follows the sum of ``rank`` products of three features' signs: alone and by two they tell nothing."""
    random = np.random.default_rng(seed)
    names = ("user", "item", "place")
    drawn = {name: random.integers(0, ids, rows) for name in names}
    products = np.ones((rows, rank))
    for name in names:
        products *= np.stack([signs(random, ids) for _ in range(rank)], axis=1)[drawn[name]]
    return labelled(random, {"price": random.normal(size=rows), **drawn}, click=1.5 * products.sum(axis=1))


def by_kind(seed: int, rows: int, ids: int = 40, kinds: int = 6, features: int = 3) -> Truth:
    """Every id is of one of ``kinds``, and the kinds of a row's ids have a logit of their own, drawn at random.

    Features are called ``f_0``, ``f_1``, ….
    """
    random = np.random.default_rng(seed)
    drawn = {f"f_{i}": random.integers(0, ids, rows) for i in range(features)}
    row_kinds = [random.permutation(np.arange(ids) % kinds)[column] for column in drawn.values()]
    logits = 2.5 * random.normal(size=(kinds,) * features)
    return labelled(random, {"price": random.normal(size=rows), **drawn}, click=logits[tuple(row_kinds)])


def low_rank(seed: int, rows: int, users: int = 100, items: int = 80, rank: int = 3) -> Truth:
    """A click follows the dot product of a user's and an item's unit vectors of ``rank`` numbers."""
    random = np.random.default_rng(seed)
    user, item = random.integers(0, users, rows), random.integers(0, items, rows)

    def unit(count: int) -> np.ndarray:
        vectors = random.normal(size=(count, rank))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    product = (unit(users)[user] * unit(items)[item]).sum(axis=1)
    return labelled(
        random, {"price": random.normal(size=rows), "user": user, "item": item}, click=4.0 * product
    )


def bought(seed: int, rows: int, users: int = 300, items: int = 200) -> Truth:
    """Few click, and few of them buy: eager users do both, items that draw clicks disappoint.

    ``purchase`` is 1 only where ``click`` is; its probability is that of a row that was clicked.
    """
    random = np.random.default_rng(seed)
    user, item = random.integers(0, users, rows), random.integers(0, items, rows)
    price = random.normal(size=rows)
    eager, draws = 1.2 * random.normal(size=users)[user], 1.2 * random.normal(size=items)[item]
    drawn = labelled(
        random,
        {"price": price, "user": user, "item": item},
        click=eager + draws - 1.5,
        purchase=eager - draws - 0.5 * price - 0.5,
    )
    columns = {
        **drawn.columns,
        "purchase": np.asarray(drawn.columns["purchase"]) * np.asarray(drawn.columns["click"]),
    }
    return Truth(columns=columns, probabilities=drawn.probabilities)


def in_history(seed: int, rows: int, ids: int = 40, longest: int = 10) -> Truth:
    """A click follows whether the item is one of a history, as it is in half of the rows.

    Histories have ``longest`` ids, or fewer down to half as many.
    """
    random = np.random.default_rng(seed)
    item = random.integers(0, ids, rows)
    lengths = random.integers(longest // 2, longest + 1, rows)
    history = [[int(i) for i in random.integers(0, ids - 1, length)] for length in lengths]
    history = [[i + (i >= own) for i in past] for past, own in zip(history, item.tolist(), strict=True)]
    inside = random.random(rows) < 0.5
    for i in np.flatnonzero(inside):
        history[i][random.integers(0, len(history[i]))] = int(item[i])
    return labelled(
        random,
        {"price": random.normal(size=rows), "item": item, "history": history},
        click=np.where(inside, 2.0, -2.0),
    )


def write(truth: Truth, path: Path, rows: np.ndarray) -> Path:
    """Write the rows of the mask ``rows``, bool [N], as Parquet."""
    pq.write_table(pa.table(dict(truth.columns)).filter(pa.array(rows)), path)
    return path
