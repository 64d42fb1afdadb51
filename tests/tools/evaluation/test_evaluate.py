from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from dlrm_factory.errors import DataError, DLRMError, StackError, WeightsError
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.data.split import split_rows
from dlrm_factory.tools.evaluation import EvaluationSource, evaluate
from dlrm_factory.tools.metrics.metrics import auc
from dlrm_factory.tools.training import train
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.held_out import HeldOut


def figures(model: Path, **source):
    return evaluate(model, EvaluationSource(**source)).models[0].figures


def saved_again(path: Path, target: Path, *, metadata: dict[str, str], held_out: HeldOut | None) -> Path:
    """The checkpoint with another history and other samples."""
    old = open_checkpoint(path)
    tables = {
        f"sparse_arch.embedding_bag_collection.embedding_bags.{table.name}.weight": old.table_rows(
            table.name, 0, table.num_embeddings
        )
        for table in old.declaration.tables
    }
    save_checkpoint(target, old.declaration, old.dense_state() | tables, metadata, held_out=held_out)
    return target


def test_generated_clicks_are_generated_again(trained):
    found = evaluate(trained.checkpoint, EvaluationSource())
    assert (
        found.samples_from
        == "the held-out rows of the 8,000 generated clicks of its training, generated again"
    )
    own, report = found.models[0].figures, trained.report
    assert own.samples == report.held_out_rows
    assert own.auc == pytest.approx(report.held_out_auc, abs=1e-6)
    assert own.log_loss == pytest.approx(report.held_out_log_loss, abs=1e-6)
    assert own.auc_low < own.auc < own.auc_high
    assert (found.best.auc, found.best.log_loss) == pytest.approx((report.best_auc, report.best_log_loss))
    assert found.best.share == pytest.approx((own.auc - 0.5) / (report.best_auc - 0.5))
    assert [point.held_out_auc for point in found.history] == [point.held_out_auc for point in report.history]
    assert (found.slices, found.comparison) == (None, None)


def test_files_are_split_as_training_split_them(trained, on_files):
    own = figures(on_files.checkpoint, data=[on_files.data])
    assert own.samples == on_files.report.held_out_rows
    assert own.auc == pytest.approx(on_files.report.held_out_auc, abs=1e-6)
    assert own == figures(trained.checkpoint, data=[trained.data])
    assert evaluate(trained.checkpoint, EvaluationSource(data=[trained.data])).best is None


def test_without_data_the_samples_that_travel_with_the_model(on_files):
    found = evaluate(on_files.checkpoint, EvaluationSource())
    rows = on_files.report.held_out_rows
    assert found.samples_from == f"the {rows} held-out samples that travel with the model"
    assert found.models[0].figures == figures(on_files.checkpoint, data=[on_files.data])


def test_clicks_that_come_out_otherwise_today_are_not_used(trained, tmp_path):
    old = open_checkpoint(trained.checkpoint)
    other = HeldOut(batch=old.held_out.batch, labels=1 - old.held_out.labels, logits=old.held_out.logits)
    path = saved_again(trained.checkpoint, tmp_path / "m.safetensors", metadata=old.metadata, held_out=other)
    found = evaluate(path, EvaluationSource())
    assert "travel with the model" in found.samples_from
    assert found.models[0].figures.auc == pytest.approx(1 - trained.report.held_out_auc, abs=1e-6)


def test_all_rows_and_the_first_rows(trained):
    assert figures(trained.checkpoint, all_rows=True).samples == 8000
    assert figures(trained.checkpoint, data=[trained.data], all_rows=True).samples == 8000
    _, held_out = split_rows(1000, holdout=0.1, seed=1)
    assert figures(trained.checkpoint, data=[trained.data], rows=1000).samples == len(held_out)


def test_files_of_held_out_rows_are_evaluated_whole(trained, tmp_path):
    table = pyarrow.parquet.read_table(trained.data)
    paths = tmp_path / "early.parquet", tmp_path / "late.parquet"
    for path, part in zip(paths, (table.slice(0, 7000), table.slice(7000)), strict=True):
        pyarrow.parquet.write_table(part, path)
    alone = figures(trained.checkpoint, held_out=[paths[1]])
    assert alone.samples == 1000
    found = evaluate(
        trained.checkpoint, EvaluationSource(data=[paths[0]], held_out=[paths[1]]), baseline=True
    )
    assert found.samples_from == f"all rows of {paths[1]}"
    assert found.models[0].figures == alone
    assert found.models[1].figures.samples == 1000


def test_a_split_by_time_is_made_again(trained, tmp_path):
    times = np.random.default_rng(0).permutation(8000)
    table = pyarrow.parquet.read_table(trained.data).append_column("at", pa.array(times))
    pyarrow.parquet.write_table(table, tmp_path / "timed.parquet")

    options = replace(trained.declaration.training, split="time", time_column="at", epochs=1)
    report = train(
        replace(trained.declaration, training=options),
        output=tmp_path / "m.safetensors",
        data=[tmp_path / "timed.parquet"],
    )
    own = figures(tmp_path / "m.safetensors", data=[tmp_path / "timed.parquet"])
    assert own.samples == report.held_out_rows
    assert own.auc == pytest.approx(report.held_out_auc, abs=1e-6)


def test_an_archive_is_evaluated_as_it_is_served(trained, tmp_path):
    archive_model(trained.checkpoint, tmp_path / "m.mar")
    found = evaluate(tmp_path / "m.mar", EvaluationSource(data=[trained.data]))
    assert "as served: tables" in found.models[0].detail
    assert "eager" in found.models[0].detail
    assert found.models[0].figures.auc == pytest.approx(trained.report.held_out_auc, abs=2e-3)
    assert evaluate(tmp_path / "m.mar", EvaluationSource()).best.auc == pytest.approx(trained.report.best_auc)


@pytest.mark.parametrize("column", ["item_id", "item_tags", "price", "user_id"])
def test_slices_are_parts_of_the_whole(trained, column):
    found = evaluate(trained.checkpoint, EvaluationSource(column=column))
    whole, slices = found.models[0].figures, [each.figures[0] for each in found.slices.slices]
    assert found.slices.overlap == (column == "item_tags")
    if not found.slices.overlap:
        assert sum(part.samples for part in slices) == whole.samples
        assert sum(part.clicks for part in slices) == whole.clicks
        assert sum(part.samples * part.log_loss for part in slices) == pytest.approx(
            whole.log_loss * whole.samples
        )
    assert [len(found.slices.slices), found.slices.slices[0].name[:2]] == {
        "item_id": [22, "0"],
        "item_tags": [22, found.slices.slices[0].name[:2]],
        "price": [11, "-1"],
        "user_id": [22, "us"],
    }[column]


def test_a_slice_by_a_column_that_is_no_feature(trained, tmp_path):
    table = pyarrow.parquet.read_table(trained.data)
    table = table.append_column("site", pa.array(["[red]a", "b"] * 4000))
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    pyarrow.csv.write_csv(
        table.drop_columns(["item_tags"]).append_column("item_tags", pa.array([""] * 8000)),
        tmp_path / "c.csv",
    )
    for path in (tmp_path / "c.parquet", tmp_path / "c.csv"):
        found = evaluate(trained.checkpoint, EvaluationSource(data=[path], column="site"))
        _, held_out = split_rows(8000, holdout=0.1, seed=1)
        assert {each.name: each.figures[0].samples for each in found.slices.slices} == {
            "[red]a": int((held_out % 2 == 0).sum()),
            "b": int((held_out % 2 == 1).sum()),
        }
    with pytest.raises(DataError, match='there is no column "sites"; did you mean "site"'):
        evaluate(trained.checkpoint, EvaluationSource(data=[tmp_path / "c.csv"], column="sites"))


def test_bad_rows_are_left_out_as_in_training(trained, tmp_path):

    table = pyarrow.parquet.read_table(trained.data)
    labels = table["click"].to_pylist()
    _, held_out = split_rows(8000, holdout=0.1, seed=1)
    for row in (held_out[3], held_out[5], 0):
        labels[row] = 7
    table = table.set_column(table.column_names.index("click"), "click", pa.array(labels))
    table = table.append_column("number", pa.array(np.arange(8000)))
    pyarrow.parquet.write_table(table, tmp_path / "bad.parquet")
    options = replace(trained.declaration.training, max_bad_rows=0.01, epochs=1)
    report = train(
        replace(trained.declaration, training=options),
        output=tmp_path / "m.safetensors",
        data=[tmp_path / "bad.parquet"],
    )
    found = evaluate(
        tmp_path / "m.safetensors", EvaluationSource(data=[tmp_path / "bad.parquet"], column="number")
    )
    own = found.models[0].figures
    assert own.samples == report.held_out_rows == len(held_out) - 2
    assert own.auc == pytest.approx(report.held_out_auc, abs=1e-6)
    # The column's cells belong to the same rows: the last bin ends with the last held-out row.
    assert found.slices.slices[-1].name.endswith(f" {held_out[-1]}")
    with pytest.raises(DataError, match="row 1, column"):
        evaluate(trained.checkpoint, EvaluationSource(data=[tmp_path / "bad.parquet"]))


def test_the_baseline_stands_beside(trained):
    found = evaluate(trained.checkpoint, EvaluationSource(column="item_tags"), baseline=True)
    assert [model.name for model in found.models] == ["DLRM", "LightGBM"]
    ours, theirs = (model.figures for model in found.models)
    assert (ours.samples, ours.clicks) == (theirs.samples, theirs.clicks)
    assert theirs.auc > 0.6
    assert found.comparison.difference.difference == pytest.approx(ours.auc - theirs.auc)
    assert all(len(each.figures) == 2 for each in found.slices.slices)


@pytest.mark.parametrize(
    ("source", "baseline", "message"),
    [
        ({"column": "price"}, False, "--slice needs the data; name its files with --data"),
        ({"all_rows": True}, False, "--all-rows needs the data"),
        ({}, True, "--baseline needs the data that the model was trained on"),
        ({"all_rows": True}, True, "do not go together"),
        ({"held_out": [Path("x.csv")]}, True, "--baseline needs the training rows beside --held-out"),
        ({"data": [Path("missing.csv")]}, False, "missing.csv: there is no such"),
        ({"rows": 5}, False, "--rows needs the data"),
    ],
)
def test_what_is_asked_for_must_be_there(on_files, source, baseline, message):
    with pytest.raises(DataError, match=message):
        evaluate(on_files.checkpoint, EvaluationSource(**source), baseline=baseline)


def test_generated_clicks_have_the_declared_columns_and_all_their_rows(trained):
    with pytest.raises(DataError, match='there is no column "prize"; did you mean "price"'):
        evaluate(trained.checkpoint, EvaluationSource(column="prize"))
    with pytest.raises(DataError, match="--rows needs the data"):
        evaluate(trained.checkpoint, EvaluationSource(rows=5))


def test_a_model_without_samples_needs_data(trained, tmp_path):
    path = saved_again(trained.checkpoint, tmp_path / "m.safetensors", metadata={}, held_out=None)
    with pytest.raises(DataError, match="no held-out samples travel with it; name files with --data"):
        evaluate(path, EvaluationSource())
    found = evaluate(path, EvaluationSource(data=[trained.data]))
    assert found.history == ()
    assert found.models[0].figures.auc == pytest.approx(trained.report.held_out_auc, abs=1e-6)


def test_no_held_out_row(trained, tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.parquet.read_table(trained.data).slice(0, 2), tmp_path / "few.parquet"
    )
    with pytest.raises(DataError, match="there are no rows to evaluate"):
        evaluate(trained.checkpoint, EvaluationSource(data=[tmp_path / "few.parquet"]))


def test_what_is_no_model(tmp_path):
    (tmp_path / "model.pt").touch()
    with pytest.raises(WeightsError, match="neither a checkpoint"):
        evaluate(tmp_path / "model.pt", EvaluationSource())
    with pytest.raises(DLRMError, match="there is no such"):
        evaluate(tmp_path / "model.mar", EvaluationSource())


def test_a_history_that_cannot_be_read(trained, tmp_path):
    held_out = open_checkpoint(trained.checkpoint).held_out
    path = saved_again(
        trained.checkpoint, tmp_path / "m.safetensors", metadata={"history": "[1]"}, held_out=held_out
    )
    with pytest.raises(WeightsError, match="its training history cannot be read"):
        evaluate(path, EvaluationSource())


def run(*arguments: str | Path):
    from dlrm_factory.tools.cli.main import app

    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_the_command_prints_tables_and_writes_the_report(trained, tmp_path):
    result = run(trained.checkpoint, "--slice", "price", "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    for shown in (
        "normalised entropy",
        "best reachable",
        "of the way from an AUC of 0.5",
        "(missing)",
        "report.html",
    ):
        assert shown in result.stdout
    assert f"{trained.report.held_out_auc:.4f}" in result.stdout
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "By price" in page


def test_the_command_prints_json(on_files):
    result = run(on_files.checkpoint, "--data", on_files.data, "--baseline", "lightgbm", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [model["name"] for model in printed["models"]] == ["DLRM", "LightGBM"]
    assert printed["models"][0]["auc"] == pytest.approx(on_files.report.held_out_auc, abs=1e-6)
    assert (printed["best_reachable"], printed["slices"], printed["report"]) == (None, None, None)
    assert len(printed["history"]) == 2


def test_mistakes_show_before_the_work(trained, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert isinstance(run(trained.checkpoint, "--report", tmp_path / "file").exception, DataError)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    assert isinstance(run(tmp_path / "nowhere.safetensors", "--baseline", "lightgbm").exception, StackError)


def test_auc_of_the_travelling_samples_is_that_of_the_kept_logits(on_files):
    kept = open_checkpoint(on_files.checkpoint).held_out
    assert figures(on_files.checkpoint).auc == pytest.approx(
        auc(kept.labels[:, 0], kept.logits[:, 0]), abs=1e-6
    )
