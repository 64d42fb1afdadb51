"""Models with several outputs are evaluated by output, on the rows that count, and by group."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.nets import trusted

from dlrm_factory.errors import DataError
from dlrm_factory.tools.cli.tables import evaluation_tables, training_table
from dlrm_factory.tools.evaluation import Evaluation, EvaluationSource, as_json, evaluate, write_report
from dlrm_factory.tools.metrics.metrics import grouped_auc
from dlrm_factory.tools.training import TrainingReport, train
from dlrm_factory.weights.checkpoint import open_checkpoint

ROWS = 4000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def trained(folder) -> TrainingReport:
    """A purchase model on generated clicks, which are in a file with a further column, ``session``."""
    declaration = trusted("mmoe", group_column="session", epochs=2)
    report = train(declaration, output=folder / "c.safetensors", rows=ROWS, write_data=folder / "raw.parquet")
    table = pq.read_table(folder / "raw.parquet")
    sessions = np.random.default_rng(0).integers(0, 300, len(table))
    names = [None if each == 7 else f"s{each}" for each in sessions]
    pq.write_table(table.append_column("session", pa.array(names)), folder / "clicks.parquet")
    return report


@pytest.fixture(scope="module")
def found(folder, trained) -> Evaluation:
    source = EvaluationSource(data=[folder / "clicks.parquet"], column="tags")
    return evaluate(folder / "c.safetensors", source, baseline=True)


def test_each_output_has_the_figures_of_its_training_beside_a_baseline(found, trained):
    assert [each.output for each in found.outputs] == ["click", "purchase"]
    for each, own in zip(found.outputs, trained.outputs, strict=True):
        assert [model.name for model in each.models] == ["DLRM", "LightGBM"]
        figures, beside = (model.figures for model in each.models)
        assert figures.samples == beside.samples == own.held_out_rows
        assert figures.auc == pytest.approx(own.held_out_auc, abs=1e-5)
        assert figures.log_loss == pytest.approx(own.held_out_log_loss, abs=1e-5)
        assert beside.auc != figures.auc
        assert each.comparison.difference.difference == pytest.approx(figures.auc - beside.auc)
        assert sum(s.figures[0].samples for s in each.slices.slices) == figures.samples
        assert all(sum(g.figures[0].samples for g in s.groups) == figures.samples for s in each.seen)
    click, purchase = (each.models[0].figures for each in found.outputs)
    assert purchase.samples == click.clicks
    assert (found.history, found.others[0].history) == (found.history, ())
    assert len(found.history) == 2


def test_gauc_is_of_the_declared_column_on_the_rows_that_count(found, folder):
    kept = open_checkpoint(folder / "c.safetensors").held_out
    table = pq.read_table(folder / "clicks.parquet")
    sessions = table["session"].to_pylist()
    from dlrm_factory.tools.data.split import split_rows

    _, held_out = split_rows(ROWS, holdout=0.1, seed=1)
    groups = np.array([-1 if sessions[i] is None else int(sessions[i][1:]) for i in held_out])
    for place, each in enumerate(found.outputs):
        counted = kept.counts_for(place)
        expected = grouped_auc(kept.labels[counted, place], kept.logits[counted, place], groups[counted])
        assert each.grouped.aucs[0] == pytest.approx(expected.auc, abs=1e-6)
        assert (each.grouped.groups, each.grouped.samples) == (expected.groups, expected.samples)
        assert each.grouped.aucs[1] != each.grouped.aucs[0]
    assert found.grouped.groups > found.others[0].grouped.groups > 0


def test_samples_that_travel_have_groups_only_where_a_feature_tells(folder, trained, tmp_path):
    sample = evaluate(folder / "c.safetensors")
    assert not sample.grouped.known
    assert sample.grouped.aucs == (None,)
    checkpoint = open_checkpoint(folder / "c.safetensors")
    from dlrm_factory.tools.evaluation.groups import groups_of_batch

    training = msgspec.structs.replace(checkpoint.declaration.training, group_column="user")
    declaration = msgspec.structs.replace(checkpoint.declaration, training=training)
    batch = checkpoint.held_out.batch
    groups = groups_of_batch(batch, declaration)
    assert len(groups) == len(batch)
    assert groups.null_count == (batch.lengths[0] == 0).sum() > 0
    assert groups.drop_null().to_pylist() == batch.values[: batch.lengths[0].sum()].tolist()
    several = msgspec.structs.replace(training, group_column="tags")
    assert batch.lengths[1].max() <= 1
    assert groups_of_batch(batch, msgspec.structs.replace(declaration, training=several)) is not None


def test_a_group_column_must_be_in_the_data_and_hold_one_value_a_row(folder, trained, tmp_path):
    with pytest.raises(DataError, match='there is no column "session"'):
        evaluate(folder / "c.safetensors", EvaluationSource(data=[folder / "raw.parquet"]))
    table = pq.read_table(folder / "raw.parquet")
    pq.write_table(table.append_column("session", pa.array([[1]] * len(table))), tmp_path / "lists.parquet")
    with pytest.raises(DataError, match=r'group_column: column "session" holds list'):
        evaluate(folder / "c.safetensors", EvaluationSource(data=[tmp_path / "lists.parquet"]))


def test_table_json_and_page_show_each_output(found, trained, tmp_path):
    console = Console(file=io.StringIO(), width=150)
    for each in evaluation_tables(found):
        console.print(each)
    said = console.file.getvalue()
    for each in found.outputs:
        assert f"output {each.output}\n" in said
        assert f"{each.grouped.aucs[0]:.4f}" in said
        assert f"{each.models[1].figures.auc:.4f}" in said
    assert "GAUC by session" in said

    json_found = json.loads(json.dumps(as_json(found)))
    assert [each["output"] for each in json_found["outputs"]] == ["click", "purchase"]
    assert json_found["models"] == json_found["outputs"][0]["models"]
    assert json_found["outputs"][1]["gauc"]["models"] == dict(
        zip(("DLRM", "LightGBM"), found.others[0].grouped.aucs, strict=True)
    )

    (tmp_path / "old-roc.svg").touch()
    names = {path.name for path in write_report(found, tmp_path)}
    assert {"roc.svg", "purchase-roc.svg", "purchase-calibration.svg", "learning.svg"} <= names
    assert "purchase-learning.svg" not in names
    assert not (tmp_path / "old-roc.svg").exists()
    page = (tmp_path / "report.html").read_text()
    assert page.index("Output click") < page.index("Output purchase")
    assert f"{found.others[0].models[0].figures.auc:.4f}" in page

    console = Console(file=io.StringIO(), width=150)
    console.print(training_table(trained))
    assert f"{trained.outputs[1].held_out_auc:.4f}" in console.file.getvalue()
