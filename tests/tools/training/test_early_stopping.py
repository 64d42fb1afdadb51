from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dlrm_factory.config import DLRMDeclaration, TrainingOptions, tiny
from dlrm_factory.errors import DataError
from dlrm_factory.tools.cli.tables import seed_lines
from dlrm_factory.tools.metrics.history import read_history, still_rising
from dlrm_factory.tools.metrics.metrics import auc
from dlrm_factory.tools.training import Evaluation, Progress, train
from dlrm_factory.tools.training.report import spread_of
from dlrm_factory.weights.checkpoint import open_checkpoint

OPTIONS = TrainingOptions(label="click")  # not the preset's, which are tuned

ROWS = 3000


def declared(**training) -> DLRMDeclaration:
    """Overfits after a few epochs: 2700 rows or less for 1000 users, at a high rate."""
    base = tiny()
    options = {"batch_size": 128, "sparse_learning_rate": 0.3, "learning_rate": 0.01} | training
    return msgspec.structs.replace(base, training=msgspec.structs.replace(OPTIONS, **options))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    path = tmp_path_factory.mktemp("stopped") / "c.safetensors"
    torch.set_num_threads(1)
    return train(declared(epochs=30, early_stopping=2), output=path, rows=ROWS), path


def test_it_stops_after_two_evaluations_without_a_better_auc(stopped):
    report, _ = stopped
    areas = [evaluation.validation_auc for evaluation in report.history]
    best = int(np.argmax(areas))
    assert len(areas) == best + 3 < 30
    assert report.stopped_early
    assert report.kept_step == report.history[best].step < report.steps == report.history[-1].step


def test_the_checkpoint_holds_the_best_weights_and_their_logits(stopped, tmp_path):
    report, path = stopped
    best = max(report.history, key=lambda evaluation: evaluation.validation_auc or 0)
    assert report.held_out_auc == best.held_out_auc
    assert report.held_out_log_loss == best.held_out_log_loss
    kept = open_checkpoint(path).held_out
    assert auc(kept.labels[:, 0], kept.logits[:, 0]) == pytest.approx(report.held_out_auc, abs=1e-9)
    epochs = best.step // report.history[0].step
    train(declared(epochs=epochs, validation=0.1), output=tmp_path / "short.safetensors", rows=ROWS)
    short, stored = load_file(tmp_path / "short.safetensors"), load_file(path)
    assert all(torch.equal(stored[key], short[key]) for key in short)


def test_the_metadata_holds_the_history_without_seconds(stopped):
    report, path = stopped
    text = open_checkpoint(path).metadata["history"]
    assert set(json.loads(text)[0]) == {
        "step",
        "samples",
        "training_loss",
        "held_out_auc",
        "held_out_log_loss",
        "learning_rate",
        "validation_auc",
        "validation_log_loss",
    }
    assert read_history(text) == [msgspec.structs.replace(e, seconds=None) for e in report.history]
    assert [e.samples for e in report.history][:2] == [report.training_rows, 2 * report.training_rows]
    assert all(e.seconds is not None for e in report.history)


def test_a_run_that_still_improves_goes_to_its_end(tmp_path):
    report = train(declared(epochs=2, early_stopping=5), output=tmp_path / "c.safetensors", rows=ROWS)
    assert not report.stopped_early
    assert len(report.history) == 2


def test_evaluations_by_steps_come_at_the_last_step_too(tmp_path):
    report = train(declared(epochs=1, evaluate_every=10), output=tmp_path / "c.safetensors", rows=ROWS)
    assert [evaluation.step for evaluation in report.history] == [10, 20, report.steps]
    assert report.steps == 22
    assert report.held_out_auc == report.history[-1].held_out_auc


def test_seconds_grow_through_epochs_without_an_evaluation(tmp_path):
    report = train(declared(epochs=4, evaluate_every=10_000), output=tmp_path / "c.safetensors", rows=ROWS)
    (only,) = report.history
    assert only.seconds == report.seconds
    assert report.samples_per_second == pytest.approx(4 * report.training_rows / report.seconds)


def test_evaluating_often_does_not_change_the_weights(tmp_path):
    train(declared(epochs=2), output=tmp_path / "seldom.safetensors", rows=ROWS)
    train(declared(epochs=2, evaluate_every=3), output=tmp_path / "often.safetensors", rows=ROWS)
    seldom, often = load_file(tmp_path / "seldom.safetensors"), load_file(tmp_path / "often.safetensors")
    assert all(torch.equal(seldom[key], often[key]) for key in seldom)


def test_labels_that_are_all_alike_are_refused_before_training(tmp_path, write_csv):
    path = write_csv(*("0,1,2,u,3,4" for _ in range(60)))
    with pytest.raises(
        DataError, match=r"early_stopping goes by the AUC of the validation rows, but all \d+ .* label 0"
    ):
        train(declared(early_stopping=1), output=tmp_path / "c.safetensors", data=[path])


def written(path: Path, rows: int, seed: int, *, flip: bool = False) -> Path:
    """Clicks that a few features decide, or the opposite."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 40, rows), rng.integers(0, 30, rows)
    clicks = ((users % 5 + items % 3 + rng.integers(0, 4, rows)) > 4) ^ flip
    lines = [f"{int(c)},1,2,u{u},{i},3" for c, u, i in zip(clicks, users, items, strict=True)]
    path.write_text("click,price,age_days,user_id,item_id,item_tags\n" + "\n".join(lines) + "\n")
    return path


def test_held_out_rows_decide_nothing(tmp_path):
    """Keep the same weights whose labels are turned round."""
    declaration = declared(epochs=6, early_stopping=1, batch_size=64)
    data = written(tmp_path / "data.csv", 800, 0)
    reports = []
    for flip in (False, True):
        held_out = written(tmp_path / f"held_out_{flip}.csv", 200, 1, flip=flip)
        output = tmp_path / f"{flip}.safetensors"
        reports.append(train(declaration, output=output, data=[data], held_out=[held_out]))
    assert reports[0].kept_step == reports[1].kept_step
    assert reports[0].held_out_auc == pytest.approx(1 - reports[1].held_out_auc)
    assert reports[0].validation_rows + reports[0].training_rows == 800
    one, other = (load_file(tmp_path / f"{flip}.safetensors") for flip in (False, True))
    assert all(torch.equal(one[key], other[key]) for key in one if not key.startswith("held_out."))


@pytest.fixture(scope="module")
def refitted(tmp_path_factory):
    path = tmp_path_factory.mktemp("refitted") / "c.safetensors"
    torch.set_num_threads(1)
    return train(declared(epochs=30, early_stopping=2, refit=True), output=path, rows=ROWS), path


def test_a_refit_is_a_run_on_all_rows_for_as_long_as_was_best(stopped, refitted, tmp_path):
    (search, _), (report, path) = stopped, refitted
    best = search.kept_step // search.history[0].step
    assert report.refit_epochs == best
    assert report.stopped_early
    assert [e.validation_auc for e in report.history] == [e.validation_auc for e in search.history]
    alone = train(declared(epochs=best), output=tmp_path / "alone.safetensors", rows=ROWS)
    assert alone.training_rows == report.training_rows + report.validation_rows
    assert report.held_out_auc == alone.held_out_auc
    assert report.steps == search.steps + alone.steps == report.kept_step
    one, other = load_file(tmp_path / "alone.safetensors"), load_file(path)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("at", ["search", "refit"])
def test_a_refit_is_taken_up_again_where_it_was(refitted, tmp_path, at):
    report, path = refitted
    declaration = declared(epochs=30, early_stopping=2, refit=True)
    snapshots = tmp_path / "snapshots"

    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == ("training" if at == "search" else "refit") and progress.done >= 2500:
            raise Stop

    with pytest.raises(Stop):
        train(
            declaration,
            output=tmp_path / "c.safetensors",
            rows=ROWS,
            checkpoint_dir=snapshots,
            checkpoint_every=7,
            observe=stop,
        )
    resumed = train(
        declaration,
        output=tmp_path / "c.safetensors",
        rows=ROWS,
        checkpoint_dir=snapshots,
        checkpoint_every=7,
        resume=True,
    )
    assert (resumed.refit_epochs, resumed.steps) == (report.refit_epochs, report.steps)
    one, other = load_file(path), load_file(tmp_path / "c.safetensors")
    assert all(torch.equal(one[key], other[key]) for key in one)


def point(samples: int, held_out: float, validation: float | None = None) -> Evaluation:
    return Evaluation(
        step=samples,
        samples=samples,
        training_loss=0.5,
        held_out_auc=held_out,
        held_out_log_loss=0.5,
        learning_rate=0.1,
        validation_auc=validation,
        validation_log_loss=None if validation is None else 0.5,
    )


@pytest.mark.parametrize(
    ("history", "gain"),
    [
        ([], None),
        ([point(10, 0.7)], None),
        ([point(10, 0.7), point(20, 0.71)], 0.01),
        ([point(10, 0.7), point(20, 0.7009)], None),  # too little
        ([point(10, 0.7), point(20, 0.72), point(30, 0.71)], None),  # it has fallen
        ([point(10 * i, 0.7 + i / 100) for i in range(1, 9)], 0.02),  # the last quarter
        ([point(10, 0.7, 0.8), point(20, 0.71, 0.79)], None),  # validation rows go first
        ([point(10, 0.71, 0.79), point(20, 0.7, 0.8)], 0.01),
    ],
)
def test_a_curve_that_still_rises(history, gain):
    assert still_rising(history) == (None if gain is None else pytest.approx(gain))


def test_several_seeds_share_the_rows_and_the_first_is_saved(tmp_path):
    alone = train(declared(epochs=2, validation=0.1), output=tmp_path / "alone.safetensors", rows=ROWS)
    path = tmp_path / "c.safetensors"
    report = train(declared(epochs=2, validation=0.1), output=path, rows=ROWS, seeds=3)
    assert [each.seed for each in report.seeds] == [1, 2, 3]
    assert report.seeds[0].held_out_auc == report.held_out_auc == alone.held_out_auc
    assert len({each.held_out_auc for each in report.seeds}) == 3
    one, other = load_file(path), load_file(tmp_path / "alone.safetensors")
    assert all(torch.equal(one[key], other[key]) for key in one)
    spread = spread_of(each.held_out_auc for each in report.seeds)
    assert spread is not None
    assert spread.mean == pytest.approx(np.mean([each.held_out_auc for each in report.seeds]))
    assert any("held-out AUC over 3 seeds: " in line for line in seed_lines(report))
    with pytest.raises(DataError, match="leave seeds or checkpoint_dir out"):
        train(declared(), output=path, rows=ROWS, seeds=2, checkpoint_dir=tmp_path / "snapshots")
