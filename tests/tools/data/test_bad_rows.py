"""Rows that cannot be read are left out whole, counted by column and reason, and refused past a bound."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples
from support.raw_features import raw_declaration, raw_vocabularies

from dlrm_factory.config import DLRMDeclaration, tiny
from dlrm_factory.errors import DataError
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.tools.data.bad_rows import BadRowLedger
from dlrm_factory.tools.data.encoding import EncodedChunk, encode_chunk
from dlrm_factory.tools.data.files import Chunk
from dlrm_factory.tools.data.source import read_clicks
from dlrm_factory.tools.data.split import split_rows

GOOD = {"click": "1", "price": "2.5", "age_days": "3", "user_id": "u", "item_id": "7", "item_tags": "1|2"}
MISTAKES = [
    ("price", "cheap", "not a number"),
    ("price", "inf", "not a finite number"),
    ("age_days", "1e39", "not a finite number"),
    ("click", None, "no label"),
    ("click", "2", "label is not 0 or 1 (or false or true)"),
    ("click", "yes", "not a number"),
    ("item_id", "sku", "not an integer id"),
    ("item_id", "200", "id out of range"),
    ("item_tags", "3|50", "id out of range"),
    ("item_tags", "1|2|3|4|5|6|7|8|9", "bag too long"),
]


def chunk_of(rows: list[dict], types: dict | None = None) -> Chunk:
    columns = {name: pa.array([row[name] for row in rows], (types or {}).get(name)) for name in rows[0]}
    return Chunk(source="clicks", first_row=1, columns=pa.RecordBatch.from_pydict(columns))


def lenient(chunk: Chunk, declaration: DLRMDeclaration, vocabulary=None) -> tuple[EncodedChunk, BadRowLedger]:
    ledger = BadRowLedger(1.0)
    wrong = ledger.chunk(chunk.columns.num_rows)
    encoded = encode_chunk(chunk, declaration, vocabulary, wrong=wrong)
    ledger.close_chunk(wrong)
    assert wrong is not None
    return encoded.take(~wrong.mask), ledger


def assert_same(first: EncodedChunk, second: EncodedChunk) -> None:
    assert first.labels.tolist() == second.labels.tolist()
    assert first.dense.tolist() == second.dense.tolist()
    for one, other in zip(first.bags, second.bags, strict=True):
        assert one.lengths.tolist() == other.lengths.tolist()
        assert one.values.tolist() == other.values.tolist()
        assert (one.weights is None) == (other.weights is None)
        if one.weights is not None:
            assert one.weights.tolist() == other.weights.tolist()


@settings(max_examples=examples(60))
@given(st.lists(st.none() | st.sampled_from(MISTAKES), min_size=1, max_size=14))
def test_what_is_left_is_what_the_good_rows_alone_give(mistakes):
    rows = [GOOD if mistake is None else GOOD | {mistake[0]: mistake[1]} for mistake in mistakes]
    # The first row keeps every column text.
    chunk = chunk_of([GOOD, *rows], dict.fromkeys(GOOD, pa.string()))
    encoded, ledger = lenient(chunk, tiny())
    good = [GOOD, *(row for row in rows if row is GOOD)]
    assert_same(encoded, encode_chunk(chunk_of(good, dict.fromkeys(GOOD, pa.string())), tiny()))
    found = {key: count for key, count in ledger.kinds.items() if count}
    expected: dict[tuple[str, str], int] = {}
    for mistake in mistakes:
        if mistake is not None:
            key = (mistake[0], mistake[2])
            expected[key] = expected.get(key, 0) + 1
    assert found == expected


def test_lists_weights_and_floats_that_are_wrong():
    declaration = raw_declaration()
    vocabulary = VocabularyRows(declaration, raw_vocabularies())
    good = {
        "click": 1,
        "price": 2.0,
        "hour": 3,
        "visits": 1.0,
        "user": "user_1",
        "item": "item_2",
        "seen": ["item_1", "item_3"],
        "seen.weights": [0.5, 2.0],
        "tags": [1.0, 4.0],
    }
    bad = [
        {"seen": ["item_1", None]},
        {"seen.weights": [1.0]},
        {"seen.weights": [1.0, float("inf")]},
        {"seen.weights": [None, 1.0]},
        {"tags": [1.5, 2.0]},
        {"tags": [2.0**60]},
        {"tags": [None]},
        {"tags": [50.0]},
        {"visits": float("inf")},
    ]
    rows = [good, *({**good, **wrong} for wrong in bad), {**good, "seen": None, "seen.weights": None}, good]
    encoded, ledger = lenient(chunk_of(rows), declaration, vocabulary)
    assert_same(encoded, encode_chunk(chunk_of([rows[0], *rows[-2:]]), declaration, vocabulary))
    assert ledger.kinds.total() == len(bad)
    assert ledger.kinds["tags", "not an integer id"] == 2
    assert ledger.kinds["seen.weights", "not one weight for each id"] == 1
    assert ledger.kinds["seen.weights", "null in a bag"] == 1
    for row in rows[1:-2]:
        with pytest.raises(DataError):
            encode_chunk(chunk_of([row]), declaration, vocabulary)


def test_a_column_of_a_wrong_type_is_an_error_all_the_same():
    rows = [{**GOOD, "price": [1.0]}]
    with pytest.raises(DataError, match='column "price": holds list'):
        lenient(chunk_of(rows), tiny())


def test_a_row_counts_once_and_the_first_few_are_shown():
    rows = [GOOD | {"price": "cheap", "item_id": "200"} for _ in range(7)]
    _, ledger = lenient(chunk_of(rows), tiny())
    assert ledger.kinds == {("price", "not a number"): 7}
    assert ledger.examples == [
        f'clicks, row {i}, column "price": "cheap" is not a number; '
        "mend it, or declare the feature unreadable: missing, or the word among its missing_values"
        for i in range(1, 6)
    ]


def test_the_bound_is_checked_at_the_end_or_as_soon_as_it_is_certain():
    def broken(ledger: BadRowLedger, rows: int, bad: int) -> None:
        wrong = ledger.chunk(rows)
        assert wrong is not None
        wrong.add("price", np.arange(bad), "not a number", lambda k: f"row {k}")
        ledger.close_chunk(wrong)

    ledger = BadRowLedger(0.1)
    broken(ledger, 10, 3)
    with pytest.raises(DataError, match=r"3 of 10 rows cannot be read, more than the share of 0\.1"):
        ledger.close()
    broken(ledger, 20, 0)
    found = ledger.close()
    assert found is not None
    assert (found.rows, found.read, found.kinds[0].rows) == (3, 30, 3)
    early = BadRowLedger(0.1, 100)
    broken(early, 20, 10)
    with pytest.raises(DataError, match="11 of at most 100 rows"):
        broken(early, 1, 1)


def with_training(**options) -> DLRMDeclaration:
    training = msgspec.structs.replace(tiny().training, **options)
    return msgspec.structs.replace(tiny(), training=training)


def test_left_out_rows_do_not_move_the_others_to_another_side(write_csv):
    lines = [f"{i % 2},{i},1,u,3,4" for i in range(200)]
    whole = read_clicks(tiny(), [write_csv(*lines)], rows=None, observe=lambda _: None)
    assert whole.bad_rows is None
    lines[5] = lines[150] = "x,1,1,u,3,4"
    path = write_csv(*lines)
    with pytest.raises(DataError, match='row 6, column "click": "x" is not a number'):
        read_clicks(tiny(), [path], rows=None, observe=lambda _: None)
    clicks = read_clicks(with_training(max_bad_rows=0.01), [path], rows=None, observe=lambda _: None)
    assert clicks.bad_rows is not None
    assert (clicks.bad_rows.rows, clicks.bad_rows.read, len(clicks.dataset)) == (2, 200, 198)
    training, held_out = split_rows(200, holdout=0.1, seed=1)
    for numbers, rows in ((training, clicks.training), (held_out, clicks.held_out)):
        assert clicks.dataset.dense[rows, 0].tolist() == [n for n in numbers.tolist() if n not in (5, 150)]


def test_too_many_are_an_error(write_csv):
    path = write_csv(*["1,1,1,u,3,4"] * 90, *["1,cheap,1,u,3,4"] * 10)
    with pytest.raises(
        DataError, match=r'10 of 100 rows .* allows \(column "price", not a number: 10\)'
    ) as error:
        read_clicks(with_training(max_bad_rows=0.09), [path], rows=None, observe=lambda _: None)
    assert 'row 91, column "price": "cheap" is not a number' in str(error.value)


def test_fitting_passes_over_bad_rows(tmp_path, write_csv):
    declaration = msgspec.structs.replace(
        with_training(max_bad_rows=0.5),
        dense_features=[msgspec.structs.replace(f, transform="standardize") for f in tiny().dense_features],
    )
    good = [f"{i % 2},{i % 7},{i % 5},u,3,4" for i in range(100)]
    bad = [f"{i % 2},1000000,1,u,300,4" for i in range(40)]
    mixed = read_clicks(declaration, [write_csv(*good, *bad)], rows=None, observe=lambda _: None)
    alone = read_clicks(declaration, [write_csv(*good, name="g.csv")], rows=None, observe=lambda _: None)
    assert mixed.features == alone.features
    assert mixed.dataset.dense.tolist() == alone.dataset.dense.tolist()
