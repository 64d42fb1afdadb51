"""The draft goes through few rows often enough, and stops in time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
import yaml
from support.ratings import write_latent_ratings

from dlrm_factory.config import parse_declaration
from dlrm_factory.tools.evaluation import EvaluationSource, evaluate
from dlrm_factory.tools.init import draft_declaration
from dlrm_factory.tools.init.draft import passes
from dlrm_factory.tools.training import train
from dlrm_factory.tools.training.optimizers import MAX_ADAM_VALUES


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs", "early_stopping", "refit"),
    [
        (200, 64, 5, None, False),
        (1_999, 64, 5, None, False),
        (2_000, 64, 30, 3, True),
        (10_000, 256, 20, 3, True),
        (100_000, 512, 4, 2, True),
        (1_000_000, 4096, 3, 1, False),
        (10_000_000, 4096, 1, None, False),
    ],
)
def test_passes_go_by_the_number_of_rows(rows, batch_size, epochs, early_stopping, refit):
    found = yaml.safe_load("\n".join(passes(rows, 100_000)))
    assert found["learning_rate_decay"] == "linear"
    assert (found["batch_size"], found["epochs"]) == (batch_size, epochs)
    assert (found.get("early_stopping"), found.get("refit", False)) == (early_stopping, refit)


@pytest.mark.parametrize(
    ("rows", "table_values", "adam"),
    [
        (49_999, 100_000, False),
        (50_000, 100_000, True),
        (50_000, MAX_ADAM_VALUES, True),
        (50_000, MAX_ADAM_VALUES + 1, False),
        (1_000_000, 100_000, False),
    ],
)
def test_small_tables_of_some_rows_get_adam(rows, table_values, adam):
    found = yaml.safe_load("\n".join(passes(rows, table_values)))
    assert (found.get("sparse_optimizer") == "adam") == adam
    assert (found.get("epochs") == 4) == adam


@pytest.mark.slow
def test_the_draft_is_not_beaten_by_a_simpler_model_as_one_epoch_is(tmp_path: Path):
    pytest.importorskip("lightgbm")
    torch.set_num_threads(1)
    ratings = tmp_path / "ratings.csv"
    write_latent_ratings(ratings, rows=6_000, users=300, items=200)
    text = draft_declaration([ratings], "rating >= 4").text
    draft = parse_declaration(text)
    once = msgspec.structs.replace(
        draft,
        training=msgspec.structs.replace(
            draft.training, epochs=1, early_stopping=None, validation=None, refit=False
        ),
    )
    found = {}
    for name, declaration in (("draft", draft), ("once", once)):
        checkpoint = tmp_path / f"{name}.safetensors"
        found[name] = train(declaration, output=checkpoint, data=[ratings])
    beside = evaluate(tmp_path / "draft.safetensors", EvaluationSource(data=[ratings]), baseline=True)
    simpler = beside.models[1].figures.auc
    assert found["once"].held_out_auc < simpler - 0.01
    assert found["draft"].held_out_auc > simpler - 0.002  # 0.003 above it where this was written
    assert found["draft"].refit_epochs is not None
    assert beside.models[0].figures.auc == pytest.approx(found["draft"].held_out_auc, abs=1e-6)
