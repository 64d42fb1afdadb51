"""Figures for ids that training saw and for those that it did not."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from dlrm_factory.config import tiny
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.cli.main import app
from dlrm_factory.tools.data.split import split_rows
from dlrm_factory.tools.evaluation import EvaluationSource, as_json, evaluate
from dlrm_factory.tools.evaluation.figures import measure
from dlrm_factory.tools.evaluation.report import page
from dlrm_factory.tools.evaluation.results import SeenResult, SliceResult
from dlrm_factory.tools.evaluation.seen_sentences import seen_sentences
from dlrm_factory.tools.training import train
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint

ROWS = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of few rows, so that many ids of the held-out ones are new to it, and its archive."""
    folder = tmp_path_factory.mktemp("seen")
    base = tiny()
    options = msgspec.structs.replace(base.training, epochs=1, holdout=0.3)
    declaration = msgspec.structs.replace(base, training=options)
    train(declaration, output=folder / "m.safetensors", rows=ROWS, write_data=folder / "c.parquet")
    archive_model(folder / "m.safetensors", folder / "m.mar")
    return folder


def expected(folder) -> dict[str, dict[str, int]]:
    """Samples of each group, found id by id."""
    table = pyarrow.parquet.read_table(folder / "c.parquet")
    training, held_out = split_rows(ROWS, holdout=0.3, seed=1)
    found = {}
    for name in ("user_id", "item_id", "item_tags"):
        cells = [[] if c is None else c if isinstance(c, list) else [c] for c in table[name].to_pylist()]
        known = {each for row in training for each in cells[row]}
        counts: dict[str, int] = {}
        for row in held_out:
            hits = [each in known for each in cells[row]]
            group = (
                "no id"
                if not hits
                else "all seen"
                if all(hits)
                else "some seen"
                if any(hits)
                else "none seen"
            )
            counts[group] = counts.get(group, 0) + 1
        found[name] = counts
    return found


@pytest.mark.parametrize("model", ["m.safetensors", "m.mar"])
@pytest.mark.parametrize("data", ["c.parquet", None])
def test_every_sample_is_in_the_group_of_its_ids(folder, model, data):
    given = {} if data is None else {"data": [folder / data]}
    found = evaluate(folder / model, EvaluationSource(**given))
    assert found.seen is not None
    counts = {each.feature: {g.name: g.figures[0].samples for g in each.groups} for each in found.seen}
    assert counts == expected(folder)
    assert counts["item_id"]["none seen"] > 10  # or the test would prove little
    assert [group.name for group in found.seen[1].groups] == ["all seen", "none seen", "no id"]


def test_the_samples_that_travel_with_a_model_are_grouped_too(folder):
    checkpoint = open_checkpoint(folder / "m.safetensors")
    path = folder / "as_if_of_files.safetensors"
    tables = {
        f"sparse_arch.embedding_bag_collection.embedding_bags.{table.name}.weight": checkpoint.table_rows(
            table.name, 0, table.num_embeddings
        )
        for table in checkpoint.declaration.tables
    }
    state = checkpoint.dense_state() | tables
    beside = {"held_out": checkpoint.held_out, "seen_ids": checkpoint.seen_ids}
    save_checkpoint(path, checkpoint.declaration, state, {}, **beside)
    found = evaluate(path, EvaluationSource())
    assert "travel with the model" in found.samples_from
    assert found.seen == evaluate(folder / "m.safetensors", EvaluationSource()).seen
    # A model of an older version.
    save_checkpoint(path, checkpoint.declaration, state, {})
    old = evaluate(path, EvaluationSource(data=[folder / "c.parquet"]))
    assert old.seen is None
    assert as_json(old)["seen"] is None
    assert "carries no record of the ids that its training saw" in page(old, {})


def test_figures_of_a_group_are_those_of_its_samples(folder):
    found = evaluate(folder / "m.safetensors", EvaluationSource(data=[folder / "c.parquet"]))
    whole = found.models[0].figures
    for each in found.seen:
        parts = [group.figures[0] for group in each.groups]
        assert sum(part.clicks for part in parts) == whole.clicks
        assert sum(part.samples * part.log_loss for part in parts) == pytest.approx(
            whole.log_loss * whole.samples
        )


def test_the_command_shows_them(folder, tmp_path):
    arguments = ["evaluate", str(folder / "m.safetensors"), "--data", str(folder / "c.parquet")]
    done = CliRunner().invoke(app, [*arguments, "--report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    counts = expected(folder)["item_id"]
    share = counts["none seen"] / sum(counts.values())
    assert f"Samples with an id that training did not see: item_id {share:.1%}" in done.stdout
    assert "ids in training" in done.stdout
    assert "item_id: none seen" in done.stdout
    text = (tmp_path / "report.html").read_text()
    assert "By ids seen in training" in text
    assert "none seen</span></th>" in text
    done = CliRunner().invoke(app, [*arguments, "--json"])
    (item,) = [each for each in json.loads(done.stdout)["seen"] if each["feature"] == "item_id"]
    assert item["share_not_seen"] == pytest.approx(share)
    assert item["false_share"] == 0
    assert {g["name"]: g["models"]["DLRM"]["samples"] for g in item["groups"]} == counts


def result(feature: str, false_share: float = 0.0, **samples: int) -> SeenResult:
    groups = tuple(
        SliceResult(name=name.replace("_", " "), figures=(measure(np.zeros(n, np.uint8), np.zeros(n)),))
        for name, n in samples.items()
    )
    return SeenResult(feature=feature, groups=groups, false_share=false_share)


def test_sentences_name_the_features_with_most_new_ids():
    assert seen_sentences(()) == ["Training saw every id of these samples."]
    assert seen_sentences([result("a", all_seen=3, no_id=1)]) == ["Training saw every id of these samples."]
    found = [
        result("a", all_seen=2000, none_seen=1),
        result("b", all_seen=1, some_seen=1, none_seen=1, no_id=1),
    ]
    assert seen_sentences(found) == ["Samples with an id that training did not see: b 50.0%, a under 0.1%."]
    many = [result(f"f{i}", all_seen=i, none_seen=1) for i in range(7)]
    assert seen_sentences(many)[0].endswith("f4 20.0%, and 2 more features.")
    assert (
        "a: 12% of the ids that training did not see count as seen" in seen_sentences([result("a", 0.12)])[1]
    )
