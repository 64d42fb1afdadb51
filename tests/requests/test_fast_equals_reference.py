"""Fast readers read what the reference reads, and leave the rest to it."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples
from support.json_bodies import bodies, damaged, ranking_bodies
from support.references import reference

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config import DLRMDeclaration, tiny
from dlrm_factory.features import FeatureEncoder, FeatureError
from dlrm_factory.requests.formats import DecodedRequest, RequestReader
from dlrm_factory.requests.formats.columns.fast import ColumnsReader
from dlrm_factory.requests.formats.fast import FastReaders
from dlrm_factory.requests.formats.ranking.fast import RankingReader
from dlrm_factory.requests.formats.ranking.order import ByExpression
from dlrm_factory.requests.formats.ranking.reference import RankingForm
from dlrm_factory.requests.formats.rows.fast import RowsReader

DECLARATION = tiny()


def hashed(declaration: DLRMDeclaration) -> DLRMDeclaration:
    """The declaration with every id hashed, whatever it is."""
    features = [msgspec.structs.replace(feature, ids="hash") for feature in declaration.sparse_features]
    return msgspec.structs.replace(declaration, sparse_features=features)


READERS = [
    RequestReader(encoder=FeatureEncoder(declaration), max_samples=6)
    for declaration in (DECLARATION, hashed(DECLARATION))
]


COLUMNS = [ColumnsReader(reader) for reader in READERS]
RANKINGS = [RankingReader(reader) for reader in READERS]


def fast(raw: bytes, reader: RequestReader) -> DecodedRequest | None:
    """Request that the fast readers of either shape make of ``raw``; they must not depend on being asked rightly.

    The reader of columns expects what it met before: nulls, or none. So it is asked in either mood. The reader of
    rankings expects the last one's features in the context.
    """
    columns, rankings = COLUMNS[READERS.index(reader)], RANKINGS[READERS.index(reader)]
    answers = [
        columns.read(raw),
        columns.read(raw),
        FastReaders(reader).read(raw),
        RowsReader(reader).read(raw),
        rankings.read(raw),
        RankingReader(reader).read(raw),
    ]
    found = [answer for answer in answers if answer is not None]
    for answer in found[1:]:
        assert_same(answer, found[0])
    return found[0] if found else None


def check(raw: bytes) -> None:
    for reader in READERS:
        quick = fast(raw, reader)
        if quick is None:
            continue
        slow = reference(raw, reader)
        assert slow is not None, raw
        assert_same(quick, slow)


def assert_same(one: DecodedRequest, other: DecodedRequest) -> None:
    for field in ("dense", "lengths", "values"):
        a, b = getattr(one.batch, field), getattr(other.batch, field)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field
    assert one.batch.values.flags.writeable
    assert one.batch.weights is other.batch.weights is None
    assert (one.asked, one.shape) == (other.asked, other.shape)
    assert plain(one) == plain(other)
    for sample in range(len(one.batch)):
        error = FeatureError("", feature="price", sample=sample)
        assert one.path_of(error) == other.path_of(error)


def told_of(batch: FeatureBatch) -> dict[str, list[int]]:
    found = {} if batch.substitutions is None else msgspec.structs.asdict(batch.substitutions)
    return {name: counts.tolist() for name, counts in found.items() if counts is not None and counts.any()}


def plain(request: DecodedRequest) -> Any:
    """Values to compare of what holds arrays: substitutions, the context, and a ranking's order by an expression."""
    batches = [each for each in (request.batch, request.context) if each is not None]
    told = [told_of(each) for each in batches]
    context = [(each.dense.tobytes(), each.lengths.tolist(), each.values.tolist()) for each in batches[1:]]
    form: Any = request.form
    if isinstance(form, RankingForm):
        order: Any = form.order
        if isinstance(order, ByExpression):
            dense = {name: (values.shape, values.tolist()) for name, values in order.dense.items()}
            order = (order.expression, dense, order.defaults, order.path)
        form = (form.labels, form.top_k, order)
    return told, context, form


@given(bodies())
@settings(max_examples=examples(600))
def test_the_same_batch_or_left_to_the_reference(raw: bytes) -> None:
    check(raw)


@given(bodies(), st.randoms(use_true_random=False))
@settings(max_examples=examples(300))
def test_the_same_for_damaged_bodies(raw: bytes, rng: random.Random) -> None:
    check(damaged(raw, rng))


@given(ranking_bodies())
@settings(max_examples=examples(600))
def test_the_same_ranking_or_left_to_the_reference(raw: bytes) -> None:
    check(raw)


@given(ranking_bodies(), st.randoms(use_true_random=False))
@settings(max_examples=examples(300))
def test_the_same_for_damaged_rankings(raw: bytes, rng: random.Random) -> None:
    check(damaged(raw, rng))


BAGS = [[3, 9], [], [1, 2, 3], [49]]
TAKEN = {
    "numbers": {"price": [1, 2.5, -3e5, 0], "age_days": [0, 1, 2, 3], "user_id": [1, -2, 2**62, 0]},
    "one column": {"item_id": [0, 1, 199, 7]},
    "bags": {"price": [1, 2, 3, 4], "item_tags": BAGS},
    "bags of one": {"item_tags": [[1], [2], [3], [4]]},
    "empty bags": {"item_tags": [[], [], [], []]},
    "nulls": {"price": [None, 2, None, 4], "item_id": [None, 3, [4], []], "item_tags": BAGS},
    "all null": {"price": [None] * 4, "age_days": [None] * 4, "user_id": [None] * 4, "item_tags": [None] * 4},
    "the stand-in": {"price": [-997, 1, 2, 3], "user_id": [-997, 1, 2, [-997, 5]], "item_tags": BAGS},
    "no samples": {"price": [], "item_tags": []},
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("output", [{}, {"output": "logit"}])
def test_columns_that_are_taken(name: str, output: dict[str, str]) -> None:
    pytest.importorskip("simdjson")
    for body in ({"inputs": TAKEN[name], **output}, {**output, "inputs": TAKEN[name]}):
        raw = json.dumps(body).encode()
        quick, slow = FastReaders(READERS[0]).read(raw), reference(raw, READERS[0])
        assert quick is not None
        assert slow is not None
        assert_same(quick, slow)


@pytest.mark.parametrize(
    "rows_",
    [
        [],
        [{}],
        [{"price": 1, "age_days": 2.5, "user_id": 7, "item_id": 3, "item_tags": 4}] * 3,
        [{"price": 1, "user_id": "u17", "item_tags": [3, 9]}, {"price": None, "item_tags": None}],
        [{"user_id": ["a", 2]}, {"item_tags": []}],
    ],
)
def test_rows_that_are_taken(rows_: Any) -> None:
    raw = json.dumps({"instances": rows_}).encode()
    quick, slow = FastReaders(READERS[0]).read(raw), reference(raw, READERS[0])
    assert quick is not None
    assert slow is not None
    assert_same(quick, slow)


USER = {"price": 2.5, "user_id": "u1"}
RANKINGS_TAKEN: dict[str, dict[str, Any]] = {
    "ids": {"context": USER, "candidates": [{"id": "a", "item_id": 1}, {"id": 7, "item_id": 2}]},
    "some ids": {"context": USER, "candidates": [{"item_id": 1, "id": "ä"}, {"item_id": 2, "id": None}, {}]},
    "no context": {"candidates": [{"price": 1, "item_tags": [1, 2]}, {"user_id": "x"}]},
    "context of null": {"context": None, "candidates": [{"item_id": 1}]},
    "nulls": {"context": {"price": None, "user_id": None}, "candidates": [{"item_id": None}, {"item_id": 3}]},
    "bags": {"context": {"item_tags": [1, 2]}, "candidates": [{"item_id": [1]}, {"age_days": 2}, {}]},
    "all dense": {"context": {"price": 1, "age_days": 2}, "candidates": [{"item_id": 1}, {"item_id": 2}]},
    "nothing": {"context": {**USER, "age_days": 1, "item_id": 2, "item_tags": 3}, "candidates": [{}, {}]},
    "columns": {"context": USER, "candidates": {"item_id": [1, None, 3], "age_days": [1, 2.5, None]}},
    "columns of bags": {"context": USER, "candidates": {"id": ["x", 2], "item_tags": [[1, 2], []]}},
    "columns of ids": {"context": USER, "candidates": {"id": ["x", None]}},
    "best": {"top_k": 2, "context": USER, "candidates": [{"item_id": 1}] * 3},
    "by a price": {
        "rank_by": "score / price + age_days",
        "context": USER,
        "candidates": [{"age_days": 3}, {}],
    },
    "by columns": {"rank_by": "price", "context": {}, "candidates": {"price": [None, 3]}, "output": "logit"},
}


@pytest.mark.parametrize("name", RANKINGS_TAKEN)
def test_rankings_that_are_taken(name: str) -> None:
    raw = json.dumps(RANKINGS_TAKEN[name]).encode()
    quick, slow = FastReaders(READERS[0]).read(raw), reference(raw, READERS[0])
    assert quick is not None
    assert slow is not None
    assert_same(quick, slow)


def test_rankings_with_any_context_in_turn() -> None:
    readers = FastReaders(READERS[0])
    values: dict[str, Any] = {"price": 2.5, "age_days": 3, "user_id": "u1", "item_id": 7, "item_tags": [3, 9]}
    for places in range(2 ** len(values) + 3):
        names = [name for i, name in enumerate(values) if places >> i & 1]
        own = {name: value for name, value in values.items() if name not in names}
        body = {"context": {name: values[name] for name in names}, "candidates": [own, own]}
        raw = json.dumps(body).encode()
        # Expected once it came for a while; what is expected may be wrong for the next.
        for _ in range(12 if places % 3 == 0 else 2):
            quick, slow = readers.read(raw), reference(raw, READERS[0])
            assert quick is not None
            assert slow is not None
            assert_same(quick, slow)


@pytest.mark.parametrize(
    "text",
    [
        '{"context": {"price": null}, "candidates": [{"age_days": 1}, {"price": null}]}',
        '{"context": {"price": 1}, "candidates": [{"price": 2}]}',
        '{"context": {"price": 1, "user_id": "u"}, "candidates": [{"user_id": "x"}]}',
        '{"context": {"price": 1}, "candidates": {"price": [2]}}',
        '{"context": {"id": 1}, "candidates": [{}]}',
        '{"context": [], "candidates": [{}]}',
        '{"context": {}, "candidates": []}',
        '{"context": {}, "candidates": {}}',
        '{"context": {}, "candidates": null}',
        '{"context": {}}',
        '{"context": {}, "candidates": [{}, 1]}',
        '{"context": {}, "candidates": {"price": [1], "item_id": [1, 2]}}',
        '{"context": {}, "candidates": {"id": ["a"], "item_id": [1, 2]}}',
        '{"context": {}, "candidates": {"price": null}}',
        '{"context": {}, "candidates": [{}, {}, {}, {}, {}, {}, {}]}',
        '{"context": {}, "candidates": [{"id": true}]}',
        '{"context": {}, "candidates": [{"id": 1.0}]}',
        '{"context": {}, "candidates": [{"id": 9223372036854775808}]}',
        '{"context": {}, "candidates": [{"id": "\\ud800"}]}',
        '{"context": {}, "candidates": [{"price": 1e39}]}',
        '{"context": {"price": 1e39}, "candidates": [{}]}',
        '{"context": {}, "candidates": [{"item_id": 100000}]}',
        '{"context": {}, "candidates": [{"itm": 1}]}',
        '{"context": {}, "candidates": [{}], "top_k": 0}',
        '{"context": {}, "candidates": [{}], "top_k": 1.0}',
        '{"context": {}, "candidates": [{}], "top_k": true}',
        '{"context": {}, "candidates": [{}], "rank_by": "score *"}',
        '{"context": {}, "candidates": [{}], "rank_by": 1}',
        '{"context": {}, "candidates": [{}], "outputs": ["cvr"]}',
        '{"context": {}, "candidates": [{}], "inputs": {}}',
        '{"context": {}, "candidates": [{}], "topk": 1}',
        '{"context": {}, "candidates": [{}]} x',
    ],
)
def test_rankings_that_are_left(text: str) -> None:
    readers = FastReaders(READERS[0])
    assert readers.read(text.encode()) is None
    for _ in range(12):
        assert readers.read(b'{"context": {"price": 1}, "candidates": [{"item_id": 2}]}') is not None
    assert readers.read(text.encode()) is None


def test_contexts_with_other_features_each_make_no_type_of_their_own() -> None:
    readers = FastReaders(READERS[0])
    names = ["price", "age_days", "user_id", "item_id", "item_tags"]
    for i in range(200):
        context = {name: 1 for j, name in enumerate(names) if i >> j & 1}
        body = {"context": context, "candidates": [{"id": "a"}] * 3}
        assert readers.read(json.dumps(body).encode()) is not None
    assert len(readers._ranking._layouts) == 0


def test_a_feature_called_id_leaves_rankings_to_the_reference() -> None:
    raw = b'{"context": {"price per unit": 2}, "candidates": [{"id": 3}]}'
    for name, taken in (("id", False), ("ad", True)):
        reader = renamed("price per unit", "1", "class", name, "last")
        quick, slow = FastReaders(reader).read(raw), reference(raw, reader)
        assert slow is not None
        assert (quick is not None) == taken


@pytest.mark.parametrize(
    "text",
    [
        '{"inputs": {"price": [1], "price": [2]}}',
        '{"inputs": {"price": [1]}, "inputs": {"price": [2]}}',
        '{"inputs": {"price": [[1, 2], []]}}',
        '{"inputs": {"item_tags": [[[1]], [[2]]]}}',
        '{"inputs": {"item_id": [[1, 2], []], "price": [1, 2]}, "output": "["}',
        '{"inputs": {"item_id": [3.0]}}',
        '{"inputs": {"item_id": [true]}}',
        '{"inputs": {"price": ["1"]}}',
        '{"inputs": {"price": [1e39]}}',
        '{"inputs": {"item_id": [9223372036854775808]}}',
        '{"inputs": {"price": [1], "item_id": [1, 2]}}',
        '{"inputs": {"price": [1, 2, 3, 4, 5, 6, 7]}}',
        '{"inputs": {}}',
        '{"inputs": [1]}',
        '{"inputs": {"price": 1}}',
        '{"inputs": {"price": "1"}}',
        '{"inputs": {"price": {"0": 1}}}',
        '\ufeff{"inputs": {"price": [1]}}',
        '{"inputs": {"price": [1]}} x',
        '{"inputs": {"price": [1',
        '{"inputs": {"price": [NaN]}}',
        '{"inputs": {"user_id": [null, -997]}}',
        '{"inputs": {"user_id": [1null, -997]}}',
        '{"inputs": {"price": [1, null, -997]}}',
        '{"inputs": {"price": [1enull, -997]}}',
        '{"inputs": {"item_tags": [[1], [null]]}}',
        '{"inputs": {"user_id": [[1], [-997], null]}}',
        '{"inputs": {"price": null}}',
        '{"inputs": null}',
        '{"instances": [{"price": true, "price": 1}]}',
        '{"instances": 1, "instances": [{}]}',
        '{"instances": [{"price": true}]}',
        '{"instances": [{"item_id": 3.0}]}',
        '{"instances": [{"item_id": [[3]]}]}',
        '{"instances": [{"usr": 3}]}',
        '{"instances": [3]}',
    ],
)
def test_bodies_that_are_left(text: str) -> None:
    assert FastReaders(READERS[0]).read(text.encode()) is None


def test_a_large_body_needs_no_kept_memory_and_a_small_one_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simdjson")
    reader = RequestReader(encoder=FeatureEncoder(DECLARATION), max_samples=10**6)
    quick = ColumnsReader(reader)
    size = 200_000
    large = json.dumps({"inputs": {"price": list(range(size)), "item_id": [7] * size}}).encode()
    for raw, samples in ((large, size), (b'{"inputs": {"item_id": [3]}}', 1)) * 2:
        decoded = quick.read(raw)
        assert decoded is not None
        assert len(decoded.batch) == samples


def test_without_simdjson_the_reference_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "simdjson", None)
    assert ColumnsReader(READERS[0]).read(b'{"inputs": {"item_id": [3]}}') is None


def renamed(*names: str) -> RequestReader:
    """A reader of two dense and three sparse features with these names."""
    found = iter(names)
    features = {
        kind: [msgspec.structs.replace(feature, name=next(found)) for feature in getattr(DECLARATION, kind)]
        for kind in ("dense_features", "sparse_features")
    }
    declaration = msgspec.structs.replace(DECLARATION, **features)
    return RequestReader(encoder=FeatureEncoder(declaration), max_samples=5)


@pytest.mark.parametrize("last", ["é", 'q"', "\\"])
def test_features_may_have_any_name(last: str) -> None:
    reader = renamed("price per unit", "1", "class", "a:b", last)
    row = {"price per unit": 2.5, "1": 3, "class": 7, last: [1, 2]}
    for body in ({"instances": [row, row]}, {"inputs": {name: [value] * 2 for name, value in row.items()}}):
        raw = json.dumps(body).encode()
        quick, slow = FastReaders(reader).read(raw), reference(raw, reader)
        assert slow is not None
        assert slow.batch.lengths.tolist() == [[1, 1], [0, 0], [2, 2]]
        if quick is None:
            assert last != "é"
            assert "instances" in body
        else:
            assert_same(quick, slow)
