"""Golden requests: what they exercise, whose scores they carry, and what becomes of damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from support.batches import random_state, unsharded_logits
from support.raw_features import ITEMS, USERS, raw_declaration, raw_vocabularies

from dlrm_factory.config import DLRMDeclaration, ServingOptions, ShardingOptions, SparseFeature, tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.features import FeatureEncoder, Vocabularies
from dlrm_factory.goldens import Goldens, add_goldens, golden_batch, read_goldens
from dlrm_factory.goldens.making import generated_rows
from dlrm_factory.model.model import table_weight_key
from dlrm_factory.scorer import probabilities
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import SealedWeights, seal_folder, seal_weights

CASES = [(tiny(), None), (raw_declaration(), raw_vocabularies())]
REAL = {
    "price": 9.5,
    "user": "user_3",
    "item": "item_1",
    "seen": {"ids": ["item_2"], "weights": [0.5]},
    "tags": [1, 2],
}


def seal(
    folder: Path, declaration: DLRMDeclaration, vocabularies: Vocabularies | None, **changed: Any
) -> tuple[Path, Any]:
    state = {**random_state(declaration), **changed}
    save_checkpoint(folder / "c.safetensors", declaration, state, vocabularies=vocabularies)
    checkpoint = open_checkpoint(folder / "c.safetensors")
    seal_weights(checkpoint, folder / "sealed")
    return folder / "sealed", checkpoint


@pytest.mark.parametrize(("declaration", "vocabularies"), CASES, ids=["tiny", "raw"])
def test_both_scores_are_the_models(
    tmp_path: Path, declaration: DLRMDeclaration, vocabularies: Vocabularies | None
) -> None:
    folder, checkpoint = seal(tmp_path, declaration, vocabularies)
    goldens = add_goldens(folder, trained=checkpoint)
    assert read_goldens(folder) == goldens
    batch = golden_batch(goldens, declaration, vocabularies)
    state = random_state(declaration)
    for name, quantized in (("expected", True), ("trained", False)):
        found = [getattr(golden, name) for golden in goldens.requests]
        if declaration.is_weighted and quantized:
            continue  # the model by hand knows no quantised tables with weights
        by_hand = unsharded_logits(declaration, state, batch, quantized=quantized)
        np.testing.assert_allclose(found, probabilities(by_hand), atol=1e-5)
    assert len({golden.expected for golden in goldens.requests}) > 10
    assert SealedWeights(folder).seal.files.keys() >= {"goldens.json"}


def test_goldens_are_the_same_each_time(tmp_path: Path) -> None:
    made = []
    for name in "ab":
        (tmp_path / name).mkdir()
        folder, checkpoint = seal(tmp_path / name, raw_declaration(), raw_vocabularies())
        add_goldens(folder, real_rows=[REAL], trained=checkpoint)
        made.append([(folder / file).read_bytes() for file in ("goldens.json", "seal.json")])
    assert made[0] == made[1]


def encoded(declaration: DLRMDeclaration, vocabularies: Vocabularies | None) -> list[dict[str, set[int]]]:
    """Table rows that each feature names, by generated row."""
    encoder = FeatureEncoder(declaration, vocabularies)
    found = []
    for row in generated_rows(declaration, vocabularies):
        batch = encoder.encode({name: [value] for name, value in row.items()}, 1)
        bags = np.split(batch.values, np.cumsum(batch.lengths[:, 0])[:-1])
        names = declaration.sparse_names
        found.append({name: set(bag.tolist()) for name, bag in zip(names, bags, strict=True)})
    return found


@pytest.mark.parametrize(("declaration", "vocabularies"), CASES, ids=["tiny", "raw"])
def test_generated_rows_reach_the_ends_of_tables_and_every_kind_of_bag(
    declaration: DLRMDeclaration, vocabularies: Vocabularies | None
) -> None:
    rows = encoded(declaration, vocabularies)
    last = {"t_user": len(USERS) - 1, "t_item": len(ITEMS) - 1}  # of a vocabulary, its last id
    for feature in declaration.sparse_features:
        name, table = feature.name, declaration.table(feature.table)
        assert rows[0][name] == set()
        assert rows[1][name] == {last.get(table.name, table.num_embeddings - 1)}
        assert rows[2][name] == {0}
        if feature.max_length > 1:
            assert max(len(row[name]) for row in rows) > 1
        spare = table.num_embeddings - feature.out_of_vocabulary_rows
        if feature.out_of_vocabulary_rows:
            assert any(each >= spare for row in rows for each in row[name])


@pytest.mark.parametrize("rows", [1, 2, 1000, 45_833_188, 2**31 - 1])
def test_a_hashed_id_for_the_last_row_of_any_table(rows: int) -> None:
    table = msgspec.structs.replace(tiny().tables[0], num_embeddings=rows)
    feature = SparseFeature(name="id", table=table.name, ids="hash")
    declaration = msgspec.structs.replace(tiny(), sparse_features=[feature], tables=[table])
    found = encoded(declaration, None)
    assert (found[1]["id"], found[2]["id"]) == ({rows - 1}, {0})


def test_real_rows_go_first_and_wrong_ones_are_passed_over(tmp_path: Path) -> None:
    folder, checkpoint = seal(tmp_path, raw_declaration(), raw_vocabularies())
    unknown = {**REAL, "item": "nobody saw this"}  # which this feature refuses in requests
    goldens = add_goldens(folder, real_rows=[unknown, REAL, {**REAL, "tags": [50]}], trained=checkpoint)
    assert [golden.real for golden in goldens.requests] == [True, *[False] * 16]
    assert json.loads(bytes(goldens.requests[0].request)) == {"instances": [REAL]}


def test_sealed_weights_alone_give_goldens_too(tmp_path: Path) -> None:
    # Where the declaration wants more ranks than there are processes, one process still makes them.
    declaration = msgspec.structs.replace(tiny(), sharding=ShardingOptions(world_size=2))
    goldens = add_goldens(seal(tmp_path, declaration, None)[0])
    assert all(golden.trained is None for golden in goldens.requests)


def test_requests_over_the_declared_limit_are_not_made(tmp_path: Path) -> None:
    for limit, fits in ((60, True), (5, False)):
        serving = ServingOptions(compile="off", max_body_bytes=limit)
        (tmp_path / str(limit)).mkdir()
        folder, _ = seal(tmp_path / str(limit), msgspec.structs.replace(tiny(), serving=serving), None)
        if fits:
            assert {len(golden.request) <= limit for golden in add_goldens(folder).requests} == {True}
        else:
            with pytest.raises(WeightsError, match="max_body_bytes 5 is too small for any request"):
                add_goldens(folder)


def test_weights_that_are_not_finite_make_no_goldens(tmp_path: Path) -> None:
    key = table_weight_key("t_item_id")
    weight = random_state(tiny())[key]
    weight[-1] = float("nan")
    folder, _ = seal(tmp_path, tiny(), None, **{key: weight})
    with pytest.raises(WeightsError, match="scores are not finite numbers"):
        add_goldens(folder)


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b'{"requests":[]}',
    b'{"requests":[{"request":{},"expected":2}]}',
    b'{"requests":[{"request":{},"expected":0.5}],"format":2}',
    b'{"requests":[{"request":{},"expected":0.5,"more":1}]}',
    b'{"requests":[' + b",".join([b'{"request":{},"expected":0.5}'] * 1001) + b"]}",
    b'{"requests":[{"request":' + b"[" * 100_000,
    b"\xff\xfe",
]


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_goldens_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "goldens.json").write_bytes(data)
    with pytest.raises(WeightsError, match=r"goldens\.json: cannot be read"):
        read_goldens(tmp_path)
    with (tmp_path / "goldens.json").open("ab") as file:
        file.truncate(1 << 36)
    with pytest.raises(WeightsError, match="is larger than"):
        read_goldens(tmp_path)


@pytest.mark.parametrize(
    "request_body",
    [
        {},
        {"instances": []},
        {"instances": [{}, {}]},
        {"instances": [{"nobody": 1}]},
        {"instances": [{"item_id": 10**9}]},
    ],
)
def test_a_golden_that_is_not_of_the_declaration_is_refused(request_body: dict[str, Any]) -> None:
    golden = {"request": request_body, "expected": 0.5}
    goldens = msgspec.json.decode(msgspec.json.encode({"requests": [golden]}), type=Goldens)
    with pytest.raises(WeightsError, match="golden request"):
        golden_batch(goldens, tiny(), None)


def test_sealed_goldens_cannot_be_changed(tmp_path: Path) -> None:
    folder, _ = seal(tmp_path, tiny(), None)
    add_goldens(folder)
    path = folder / "goldens.json"
    path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1))
    with pytest.raises(WeightsError, match=r"goldens\.json: is damaged"):
        SealedWeights(folder)
    seal_folder(folder)  # who reseals them means it
    assert SealedWeights(folder)
