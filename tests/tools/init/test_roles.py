"""Roles of columns, by their values and names."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest

from dlrm_factory.tools.init import roles
from dlrm_factory.tools.init.profile import ColumnProfile
from dlrm_factory.tools.init.roles import Role, role_of

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(RNG.gamma(0.3, 30, 400))
DATES = [datetime.date(2026, 1, 1) + datetime.timedelta(days=i % 90) for i in range(400)]


def role(name: str, values, *, all_rows: bool = True, **options) -> Role:
    profile = ColumnProfile(name)
    array = values if isinstance(values, pa.Array) else pa.array(values)
    for part in (array.slice(0, 150), array.slice(150)):  # in two chunks
        profile.add(part)
    return role_of(profile, all_rows=all_rows, **options)


def text(values) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in values])


@pytest.mark.parametrize("form", [pa.array, text], ids=["typed", "text"])
@pytest.mark.parametrize(
    ("name", "values", "kind", "detail"),
    [
        ("views", COUNTS.tolist(), "dense", "log1p_standardize"),
        ("height", np.round(RNG.normal(170, 9, 400), 1).tolist(), "dense", "standardize"),
        ("age", RNG.choice([1, 18, 25, 35, 45, 56], 400).tolist(), "dense", "standardize"),
        ("hour", (np.arange(400) % 24).tolist(), "sparse", "index"),
        ("user_id", RNG.integers(10**9, 2 * 10**9, 200).repeat(2).tolist(), "sparse", "vocabulary"),
        ("item_id", RNG.integers(0, 50, 400).tolist(), "sparse", "vocabulary"),
        ("weekday", RNG.integers(0, 7, 400).tolist(), "sparse", "index"),
        ("country", RNG.choice(["de", "fr", "NA"], 400).tolist(), "sparse", "vocabulary"),
        ("postcode", [f"0{i % 90 + 100}" for i in range(400)], "sparse", "vocabulary"),
        ("row", [f"r{i}" for i in range(400)], "left out", "every row has another value"),
        ("number", list(range(400)), "left out", "every row has another value"),
        ("order_id", RNG.permutation(10**6)[:400].tolist(), "left out", "every row has another value"),
        ("always", [7] * 400, "left out", "one value only: 7"),
        ("never", [None] * 400, "left out", "holds nothing"),
        ("a name", [1, 2] * 200, "left out", "rename the column"),
        (
            "created_at",
            (1.7e9 + 60 * np.arange(400) // 3 * 3).astype(int).tolist(),
            "time",
            "times since 1970",
        ),
        (
            "seen",
            (1_700_000_000 + RNG.permutation(4 * 10**7)[:400]).tolist(),
            "time",
            "times since 1970",
        ),
        ("day", [20260101 + i % 28 for i in range(400)], "time", "dates such as"),
        ("when", DATES, "time", "times such as 2026-01-01"),
    ],
)
def test_a_column(form, name, values, kind, detail):
    found = role(name, form(values))
    assert found.kind == kind, found.reason
    shown = found.dense.transform if found.dense else found.sparse.ids if found.sparse else found.reason
    assert detail in shown


def test_bags_of_ids():
    typed = role("tags", [[i % 5, 40] if i % 2 else [7] for i in range(400)])
    assert typed.sparse is not None
    assert typed.table is not None
    assert (typed.sparse.ids, typed.sparse.max_length, typed.table.pooling) == ("vocabulary", 3, "mean")
    texts = role("genres", pa.array([f"Drama|g{i % 9}|x" if i % 3 else "Drama" for i in range(400)]))
    assert texts.sparse is not None
    assert (texts.sparse.ids, texts.sparse.max_length) == ("vocabulary", 5)
    assert "up to 3 at once, 8 different" in texts.reason
    partial = role("genres", pa.array(["a|b", "a"] * 200), all_rows=False)
    assert partial.sparse is not None
    assert partial.sparse.over_max_length == "truncate"


def test_a_rare_separator_is_part_of_an_id():
    found = role("title", pa.array([f"t{i % 90}" for i in range(399)] + ["what|ever"]))
    assert found.sparse is not None
    assert found.sparse.max_length == 1


def test_each_kind_of_ids_says_what_becomes_of_new_ones(monkeypatch):
    codes = role("weekday", RNG.integers(0, 7, 400).tolist())
    assert codes.reason.endswith(
        "index: a code is a row; one from 10 on is refused, which a vocabulary would take"
    )
    users = role("user_id", RNG.integers(0, 50, 400).tolist())
    assert users.reason.endswith("vocabulary: an id that training has not seen takes the last row")
    assert users.sparse is not None
    assert users.sparse.out_of_vocabulary == 1
    tags = role("tags", [[i % 7, 8] for i in range(400)])
    assert tags.sparse is not None
    assert tags.sparse.ids == "vocabulary"
    monkeypatch.setattr(roles, "MAX_VOCABULARY", 40)
    many = role("user_id", RNG.integers(0, 50, 400).tolist())
    assert many.reason.endswith("hash: over 40 ids; any new one has a row, perhaps another's, too")


def test_a_beginning_says_nothing_of_the_greatest_code():
    found = role("weekday", RNG.integers(0, 7, 400).tolist(), all_rows=False)
    assert found.sparse is not None
    assert found.sparse.ids == "vocabulary"


def test_a_short_beginning_does_not_make_ids_unique():
    assert role("user_id", [f"u{i}" for i in range(400)], all_rows=False).kind == "sparse"
    assert role("user_id", [f"u{i}" for i in range(1000)], all_rows=False).kind == "left out"


def test_too_many_ids_for_a_vocabulary_are_hashed(monkeypatch):
    monkeypatch.setattr(roles, "MAX_VOCABULARY", 100)
    found = role("user", [f"u{i % 300}" for i in range(400)])
    assert found.sparse is not None
    assert found.table is not None
    assert (found.sparse.ids, found.table.num_embeddings) == ("hash", 500)


def test_a_few_mistakes_do_not_make_numbers_text():
    found = role("price", pa.array([f"{i / 7:.2f}" for i in range(390)] + ["1o", "1O", "I7", "7.1.2"]))
    assert found.kind == "dense"
    assert found.wrong == 4
    assert '4 cells are no numbers, such as "1o": missing' in found.reason
    assert found.dense is not None
    assert (found.dense.missing_values, found.dense.unreadable) == (None, "missing")


def test_words_that_mean_missing_are_declared_as_they_were_seen():
    numbers = [f"{i / 7:.2f}" for i in range(370)]
    words = ["NA"] * 6 + [" na"] + ["?"] * 100 + ["cheap"] + ["no idea"] * 2 + ["inf"] * 2
    found = role("price", pa.array(numbers + words))
    assert found.dense is not None
    assert found.dense.missing_values == ("?", "NA", "no idea", "inf")
    assert found.wrong == 1  # a word that came once is a mistake rather
    assert '"?" (100), "NA" (7), "no idea" (2), "inf" (2) mean missing' in found.reason
    assert '1 cell is no number, such as "cheap": missing' in found.reason
    assert "23.0% missing" in found.reason
    assert found.dense.unreadable == "missing"


def test_other_words_may_come_after_a_beginning():
    cells = pa.array([str(i % 90) for i in range(390)] + ["?"] * 10)
    whole, beginning = (role("price", cells, all_rows=all_rows).dense for all_rows in (True, False))
    assert whole is not None
    assert beginning is not None
    assert whole.missing_values == beginning.missing_values == ("?",)
    assert (whole.unreadable, beginning.unreadable) == ("error", "missing")


def test_the_default_is_the_median():
    found = role("x", [None] * 100 + [1.0, 2.5, 4.0] * 100)
    assert found.dense is not None
    assert found.dense.default == 2.5
    assert "25.0% missing" in found.reason


def test_other_types_are_left_out():
    assert "struct" in role("x", pa.array([{"a": 1}] * 200)).reason
    assert "list" in role("x", pa.array([[1.5]] * 200)).reason
