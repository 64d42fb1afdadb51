"""Training over raw features: what it finds travels, and serving encodes with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.raw_features import raw_declaration

from dlrm_factory.errors import DataError
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.training import TrainingReport, train
from dlrm_factory.weights.checkpoint import Checkpoint, open_checkpoint
from dlrm_factory.weights.sealed import seal_weights

ROWS = 6000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def report(folder: Path) -> TrainingReport:
    return train(
        raw_declaration(fitted=False),
        output=folder / "raw.safetensors",
        rows=ROWS,
        write_data=folder / "clicks.csv",
    )


@pytest.fixture
def checkpoint(folder: Path, report: TrainingReport) -> Checkpoint:
    return open_checkpoint(folder / "raw.safetensors")


def test_it_learns(report: TrainingReport) -> None:
    assert report.held_out_auc is not None
    assert report.held_out_auc > 0.6


def test_statistics_stand_in_the_checkpoints_declaration(checkpoint: Checkpoint) -> None:
    price, hour, visits = checkpoint.declaration.dense_features
    assert price.mean is not None
    assert 1 < price.mean < 2.5
    assert hour.std is not None
    assert 5 < hour.std < 9
    assert visits.mean is None


def test_the_same_clicks_from_a_file_give_the_same_model(folder: Path, checkpoint: Checkpoint) -> None:
    train(raw_declaration(fitted=False), output=folder / "again.safetensors", data=[folder / "clicks.csv"])
    again = open_checkpoint(folder / "again.safetensors")
    assert again.declaration == checkpoint.declaration
    assert again.vocabularies is not None
    assert checkpoint.vocabularies is not None
    assert bytes(again.vocabularies.data) == bytes(checkpoint.vocabularies.data)
    for table in checkpoint.declaration.tables:
        rows = [c.table_rows(table.name, 0, table.num_embeddings).numpy() for c in (again, checkpoint)]
        np.testing.assert_array_equal(*rows)


def test_an_archive_of_it_scores_raw_requests(folder: Path, checkpoint: Checkpoint) -> None:
    seal_weights(checkpoint, folder / "sealed")
    scorer = Scorer.load(folder / "sealed")
    encoder = FeatureEncoder(scorer.declaration, scorer.vocabularies)
    seen = [["item_0"], {"ids": ["item_0"], "weights": [3.0]}, ["item_0", "no such item"]]
    batch = encoder.encode({"user": ["user_1", "user_1", "user_1"], "seen": seen}, 3)
    one, three, same = scorer.logits(batch)
    assert one == pytest.approx(same, abs=1e-6)
    assert one != pytest.approx(three, abs=1e-4)


def test_a_weighted_feature_needs_its_column(folder: Path, report: TrainingReport) -> None:
    lines = (folder / "clicks.csv").read_text().replace('"seen.weights"', '"seen.weight"', 1)
    (folder / "wrong.csv").write_text(lines)
    with pytest.raises(DataError, match=r'there is no column "seen.weights"; did you mean "seen.weight"'):
        train(raw_declaration(fitted=False), output=folder / "no.safetensors", data=[folder / "wrong.csv"])
