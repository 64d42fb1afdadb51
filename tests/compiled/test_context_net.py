"""Rankings whose shared parts are computed once score as the same rows sent whole."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from support.batches import random_batch
from support.compiled import seal
from support.sharding import DTYPES, declared, mixed_shardings, weighted

from dlrm_factory.batch import FeatureBatch, SharedContext, join_contexts, tile_context
from dlrm_factory.batch import concatenate as joined
from dlrm_factory.compiled import ContextNet, DenseNet, context_net
from dlrm_factory.compiled.context_net import BREAK_EVEN, MAX_SETS, SLOWER
from dlrm_factory.compiled.context_sets import saved_share
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer

TOLERANCE = 1e-5


def cases() -> Iterator[DLRMDeclaration]:
    yield declared("auto", "sum", DTYPES[0])
    yield declared("auto", "mean", DTYPES[4])
    yield mixed_shardings()
    yield weighted(mixed_shardings())
    yield msgspec.structs.replace(declared("auto", "sum", DTYPES[0]), over_arch_layer_sizes=[32, 24, 16, 1])
    yield declared("auto", "mean", DTYPES[0], "dlrm_projection")


def only(batch: FeatureBatch, features: Sequence[int]) -> FeatureBatch:
    """``batch`` with empty bags for all other features."""
    lengths = batch.lengths.copy()
    is_kept = np.isin(np.arange(len(lengths)), list(features))
    lengths[~is_kept] = 0
    kept = np.repeat(is_kept, batch.lengths.sum(axis=1))
    weights = None if batch.weights is None else batch.weights[kept]
    return FeatureBatch(dense=batch.dense, lengths=lengths, values=batch.values[kept], weights=weights)


def ranking(
    declaration: DLRMDeclaration, size: int, context: Sequence[int], *, dense: bool, seed: int = 1
) -> tuple[FeatureBatch, FeatureBatch]:
    """Candidates and their context, which has the sparse features ``context`` and, with ``dense``, all dense ones."""
    own = [f for f in range(len(declaration.sparse_features)) if f not in context]
    one = only(random_batch(declaration, 1, seed=seed), context)
    samples = only(random_batch(declaration, size, seed=seed + 100), own)
    if dense:
        samples = msgspec.structs.replace(samples, dense=np.tile(one.dense, (size, 1)))
    return samples, one


def ask(service: DLRMService, body: object) -> Any:
    (answer,) = service.handle([Request(json.dumps(body).encode())])
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the rankings whose context was computed once; as many as share something are, whatever they gain."""
    for precision in ("fp32", "bf16"):
        monkeypatch.setitem(BREAK_EVEN, precision, 1e-9)
        monkeypatch.setitem(SLOWER, precision, 0.0)
    found: list[int] = []
    whole = ContextNet.__call__

    def counted(self: ContextNet, batch: FeatureBatch, context: FeatureBatch) -> np.ndarray:
        found.append(len(batch))
        return whole(self, batch, context)

    monkeypatch.setattr(ContextNet, "__call__", counted)
    return found


@pytest.mark.parametrize(
    "declaration", list(cases()), ids=["fp32", "mean", "order", "weighted", "deep", "projection"]
)
def test_every_set_of_shared_features_scores_as_tiled(
    tmp_path: Path, declaration: DLRMDeclaration, calls: list[int]
) -> None:
    scorer = Scorer.load(seal(declaration, tmp_path))
    features = range(len(declaration.sparse_features))
    sets = [s for size in range(len(features)) for s in itertools.combinations(features, size)]
    for context, dense in itertools.product(sets, (True, False)):
        samples, one = ranking(declaration, 40, context, dense=dense)
        shared = SharedContext(bags=one, spans=[(0, 40)])
        found = scorer.outputs(samples, shared)
        expected = scorer.reference_outputs(tile_context(samples, shared))
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        assert np.ptp(found) > 1e-2
    # All but the set that shares nothing, if only because a bag of the context may be empty.
    assert len(calls) >= 2 * len(sets) - 1


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize(
    "declaration", list(cases()), ids=["fp32", "mean", "order", "weighted", "deep", "projection"]
)
def test_in_bf16_every_set_of_shared_features_scores_as_the_dense_parts_do(
    tmp_path: Path, declaration: DLRMDeclaration, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed:  # as where oneDNN has no bfloat16
        monkeypatch.setattr("dlrm_factory.compiled.context_sets._multiplies_bf16", lambda: False)
    scorer = Scorer.load(seal(declaration, tmp_path))
    lookup = scorer._lookup
    assert lookup is not None
    module = scorer.built.model.module
    net = context_net(module.net.module, declaration, lookup, "bf16")
    assert net is not None
    dense_net = DenseNet(copy.deepcopy(module.net.module), declaration, "bf16")
    features = range(len(declaration.sparse_features))
    sets = [s for size in range(len(features)) for s in itertools.combinations(features, size)]
    for (context, dense), size in itertools.product(itertools.product(sets, (True, False)), (40, 600)):
        samples, one = ranking(declaration, size, context, dense=dense)
        tiled = tile_context(samples, SharedContext(bags=one, spans=[(0, size)]))
        exact = scorer.reference_outputs(tiled)
        with torch.no_grad():
            narrow = dense_net(torch.from_numpy(tiled.dense), lookup.look_up(tiled, torch.bfloat16).pooled)
        found = net(samples, one)
        assert found.shape == (size, 1)
        assert found.dtype == np.float32
        # As near as what scores candidate by candidate in this precision, and not in float32.
        bound = max(2 * np.abs(narrow.numpy() - exact).max(), 4e-3 * np.abs(exact).max())
        assert 0 < np.abs(found - exact).max() <= bound
        assert np.ptp(exact) > bound


def test_a_net_that_scores_otherwise_is_not_used(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    declaration = declared("auto", "sum", DTYPES[0])
    scorer = Scorer.load(seal(declaration, tmp_path))
    nets = scorer._context_nets
    assert nets is not None
    nets.expect(scorer.reference_outputs)
    nets.use("fp32", TOLERANCE)
    nets.use("bf16", 2e-2)
    assert calls == [150, 150]
    assert nets.of(torch.float32) is not None
    assert nets.of(torch.bfloat16) is not None
    wrong = ContextNet.__call__
    monkeypatch.setattr(ContextNet, "__call__", lambda *args: wrong(*args) + np.float32(0.5))
    nets.use("bf16", 2e-2)
    assert nets.of(torch.float32) is not None
    assert nets.of(torch.bfloat16) is None
    assert "computed once in bf16" in caplog.text
    monkeypatch.setattr(ContextNet, "__call__", lambda *args: wrong(*args) * np.float32(np.nan))
    nets.use("fp32", TOLERANCE)
    assert nets.of(torch.float32) is None

    def fail(*_: object) -> np.ndarray:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(ContextNet, "__call__", wrong)
    nets.use("bf16", 2e-2)
    assert nets.of(torch.bfloat16) is not None
    monkeypatch.setattr(ContextNet, "__call__", fail)
    nets.use("bf16", 2e-2)
    assert nets.of(torch.bfloat16) is None
    assert "could not create a primitive" in caplog.text


def test_rankings_and_plain_requests_in_one_batch(tmp_path: Path, calls: list[int]) -> None:
    declaration = mixed_shardings()
    scorer = Scorer.load(seal(declaration, tmp_path))
    parts = [
        (random_batch(declaration, 3, seed=9), None),
        ranking(declaration, 50, [0], dense=True, seed=1),
        ranking(declaration, 7, [], dense=False, seed=2),
        ranking(declaration, 12, [1, 2], dense=False, seed=3),
        (random_batch(declaration, 2, seed=8), None),
        ranking(declaration, 64, [0], dense=True, seed=4),
    ]
    batches, contexts = zip(*parts, strict=True)
    shared = join_contexts(batches, contexts)
    assert shared is not None
    batch = joined(batches)
    found = scorer.outputs(batch, shared)
    assert calls == [50, 12, 64]
    tiled = tile_context(batch, shared)
    np.testing.assert_allclose(found, scorer.reference_outputs(tiled), rtol=0, atol=TOLERANCE)
    # Each alone, and the samples of one by one.
    start = 0
    for samples, context in parts:
        own = None if context is None else SharedContext(bags=context, spans=[(0, len(samples))])
        stop = start + len(samples)
        np.testing.assert_allclose(scorer.outputs(samples, own), found[start:stop], rtol=0, atol=TOLERANCE)
        start = stop


def test_rankings_that_save_little_are_left_to_compiled_code(tmp_path: Path) -> None:
    declaration = declared("auto", "sum", DTYPES[0])
    scorer = Scorer.load(seal(declaration, tmp_path))
    net = context_net(scorer.built.model.module.net.module, declaration, scorer._lookup)
    assert net is not None
    # Weights: 2 * 16 + 16 * 8, and 14 * 16 + 16; products 4 * 4 * 8. Vectors: the dense one and three features'.
    whole = 160 + 240 + 128
    module = scorer.built.model.module.net.module

    def saved(own: int, dense_shared: bool) -> float:
        return saved_share(module, declaration, own, dense_shared)

    assert saved(3, False) == 0
    assert saved(2, True) == pytest.approx((160 + 16 * (8 + 1) + 8 * (16 - 2 * 4)) / whole)
    assert saved(1, False) == pytest.approx((16 * 1 + 8 * (16 - 2 * 4)) / whole)
    for size, context, dense, gains in (
        (28, [0], True, False),
        (40, [0], True, True),
        (40, [0], False, False),
    ):
        samples, one = ranking(declaration, size, context, dense=dense)
        assert one.lengths.sum() > 0
        spans = net.worthwhile(samples, SharedContext(bags=one, spans=[(0, size)]))
        assert spans == ([(0, size)] if gains else [])


def test_long_rankings_are_scored_in_pieces(tmp_path: Path, calls: list[int]) -> None:
    declaration = declared("auto", "mean", DTYPES[2])
    scorer = Scorer.load(seal(declaration, tmp_path))
    samples, one = ranking(declaration, 1300, [0], dense=True)
    shared = SharedContext(bags=one, spans=[(0, 1300)])
    expected = scorer.reference_outputs(tile_context(samples, shared))
    np.testing.assert_allclose(scorer.outputs(samples, shared), expected, rtol=0, atol=TOLERANCE)
    assert calls == [1300]


def test_what_shares_nothing_or_everything_is_left_alone(tmp_path: Path, calls: list[int]) -> None:
    declaration = declared("auto", "sum", DTYPES[0])
    scorer = Scorer.load(seal(declaration, tmp_path))
    for context, dense in (([], False), ([0, 1, 2], True)):
        samples, one = ranking(declaration, 40, context, dense=dense)
        shared = SharedContext(bags=one, spans=[(0, 40)])
        expected = scorer.reference_outputs(tile_context(samples, shared))
        np.testing.assert_allclose(scorer.outputs(samples, shared), expected, rtol=0, atol=TOLERANCE)
    assert calls == []


def test_sets_that_were_not_used_for_long_are_dropped(tmp_path: Path, calls: list[int]) -> None:
    base = declared("auto", "sum", DTYPES[0])
    features = [
        msgspec.structs.replace(base.sparse_features[1], name=f"f{i}", table="t_item_id") for i in range(5)
    ]
    declaration = msgspec.structs.replace(base, sparse_features=features, tables=[base.tables[1]])
    scorer = Scorer.load(seal(declaration, tmp_path))
    for context in itertools.chain.from_iterable(itertools.combinations(range(5), n) for n in range(1, 5)):
        samples, one = ranking(declaration, 40, context, dense=True)
        shared = SharedContext(bags=one, spans=[(0, 40)])
        expected = scorer.reference_outputs(tile_context(samples, shared))
        np.testing.assert_allclose(scorer.outputs(samples, shared), expected, rtol=0, atol=TOLERANCE)
    assert scorer._context_nets is not None
    net = scorer._context_nets.of(torch.float32)
    assert net is not None
    assert len(net._sets) == MAX_SETS


def test_an_id_outside_its_table_stops(tmp_path: Path, calls: list[int]) -> None:
    declaration = declared("auto", "sum", DTYPES[0])
    scorer = Scorer.load(seal(declaration, tmp_path))
    samples, one = ranking(declaration, 40, [0], dense=True)
    for wrong in (10**6, -1):
        one = FeatureBatch(
            dense=one.dense, lengths=np.array([[1], [0], [0]], np.int32), values=np.array([wrong])
        )
        with pytest.raises(RuntimeError):
            scorer.outputs(samples, SharedContext(bags=one, spans=[(0, 40)]))


@pytest.mark.parametrize("context", [{"price": 2.5, "age_days": 3}, {"price": 2.5, "user_id": "u1"}, {}])
def test_a_ranking_request_scores_as_its_rows(
    tmp_path: Path, calls: list[int], context: dict[str, object]
) -> None:
    scorer = Scorer.load(seal(declared("auto", "mean", DTYPES[0]), tmp_path))
    service = DLRMService(scorer)
    candidates = [{"item_id": i, "item_tags": [i % 50, 3]} for i in range(40)]
    ranked = ask(service, {"context": context, "candidates": candidates})["ranking"]
    found = {entry["index"]: entry["score"] for entry in ranked}
    rows = [{**context, **candidate} for candidate in candidates]
    expected = ask(service, {"instances": rows})["predictions"]
    assert [found[i] for i in range(40)] == pytest.approx(expected, abs=TOLERANCE)
    # Dense features that neither has are their defaults in all candidates.
    assert calls == ([40] if context else [])
