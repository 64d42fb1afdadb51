from __future__ import annotations

import numpy as np
import pytest

from dlrm_factory.config import criteo, demo, tiny
from dlrm_factory.tools.data import synthetic as module
from dlrm_factory.tools.data.files import declared_columns, read_chunks
from dlrm_factory.tools.data.source import generate_clicks, read_clicks
from dlrm_factory.tools.data.synthetic import default_rows, generate, ground_truth
from dlrm_factory.tools.metrics.metrics import auc


def ignore(progress) -> None:
    pass


def rows_of(declaration, rows: int, seed: int = 1) -> tuple[list[dict], np.ndarray]:
    chunks = list(generate(declaration, rows, seed))
    raw = [row for generated in chunks for row in generated.chunk.columns.to_pylist()]
    return raw, np.concatenate([generated.logits for generated in chunks])


def test_logits_follow_the_stated_formula():
    declaration = demo()
    truth = ground_truth(declaration, 1)
    raw, logits = rows_of(declaration, 300)
    assert truth.pair == (2, 5)  # country and item_category
    for row, logit in zip(raw, logits, strict=True):
        z = module.BIAS
        for feature, a, b in zip(declaration.dense_features, truth.linear, truth.quadratic, strict=True):
            u = standardised(feature.name, row[feature.name])
            z += a * u + b * (u**2 - 1)
        for name, effects in zip(declaration.sparse_names, truth.effects, strict=True):
            ids = ids_of(row[name])
            z += np.mean([effects[i] for i in ids]) if ids else 0.0
        country, category = ids_of(row["country"]), ids_of(row["item_category"])
        if country and category:
            z += truth.p[country[0]] @ truth.q[category[0]]
        assert logit == pytest.approx(z)


def standardised(name: str, value: float | None) -> float:
    if name == "hour":  # uniform on 12 ± 12
        return (12.0 if value is None else value) / 12 * 3**0.5 - 3**0.5
    if name == "item_age_days":  # log-normal around 30
        return float(np.log1p(30 if value is None else value) - np.log1p(30))
    return float((np.log1p(value or 0) - np.sqrt(2 / np.pi)) / np.sqrt(1 - 2 / np.pi))


def ids_of(value) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [int(value.rsplit("_", 1)[1])]


@pytest.mark.parametrize("declaration", [tiny(), demo(), criteo(cap=1000), criteo(cap=1000, raw=True)])
def test_parts_have_the_stated_variances_and_clicks_follow_the_logits(declaration):
    spread = []
    for seed in range(4):
        generated = next(generate(declaration, 20_000, seed))
        spread.append(generated.logits.var())
        labels = np.array(generated.chunk.columns[declaration.training.label])
        assert labels.mean() == pytest.approx((1 / (1 + np.exp(-generated.logits))).mean(), abs=0.015)
        assert 0.68 < auc(labels, generated.logits) < 0.92
    interaction = module.INTERACTION if ground_truth(declaration, 1).pair else 0.0
    stated = module.DENSE + module.SPARSE + interaction
    assert np.mean(spread) == pytest.approx(stated, rel=0.4)


def test_a_row_depends_on_its_number_and_the_seed_alone():
    few, few_logits = rows_of(tiny(), 100)
    many, many_logits = rows_of(tiny(), 70_000)
    assert few == many[:100]
    assert few_logits.tolist() == many_logits[:100].tolist()
    assert few != rows_of(tiny(), 100, seed=2)[0]


def test_cells_are_of_the_declared_kinds():
    raw, _ = rows_of(tiny(), 2000)
    assert list(raw[0]) == declared_columns(tiny())
    assert {type(row["item_id"]) for row in raw} == {int, type(None)}
    assert {type(row["user_id"]) for row in raw} == {str, type(None)}
    assert {type(row["item_tags"]) for row in raw} == {list, type(None)}
    assert any(len(row["item_tags"] or ()) > 1 for row in raw)
    assert any(row["age_days"] is None for row in raw)


def test_features_with_many_ids_do_not_interact():
    assert ground_truth(tiny(), 1).pair is None  # 62 users, 200 items, 50 tags
    assert ground_truth(criteo(), 1).pair is not None


def test_default_rows_grow_with_the_ids():
    assert default_rows(tiny()) == 700 * (62 + 200 + 50)
    assert default_rows(demo()) == 1_500_000


@pytest.mark.parametrize("name", ["clicks.csv", "clicks.parquet"])
@pytest.mark.parametrize("declaration", [tiny(), demo()])
def test_written_clicks_are_read_back_to_the_same_samples(tmp_path, name, declaration):
    path = tmp_path / name
    generated = generate_clicks(declaration, rows=500, write_to=path, observe=ignore)
    read = read_clicks(declaration, [path], rows=None, observe=ignore)
    assert read.true_logits is None
    assert generated.true_logits is not None
    assert len(generated.true_logits) == len(read.dataset) == 500
    rows = np.arange(500)
    ours, theirs = generated.dataset.features(rows), read.dataset.features(rows)
    assert ours.dense.tobytes() == theirs.dense.tobytes()
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    assert ours.values.tolist() == theirs.values.tolist()
    assert generated.dataset.labels.tolist() == read.dataset.labels.tolist()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sum(len(chunk.columns) for chunk in read_chunks([path], declaration)) == 500
